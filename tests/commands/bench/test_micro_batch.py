"""How many images at once are fastest: the search by itself, with memory that runs out, and with a real generator."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from fakes import small
from ray.exceptions import RayTaskError

from genray.cluster import ray_cluster
from genray.cluster.placement import GENERATOR_NODE, LEARNER_NODE
from genray.commands.bench import micro_batch
from genray.commands.bench.micro_batch import MIN_GAIN, Memory, fastest
from genray.config.errors import RunFailed, UserError
from genray.config.load import build
from genray.stream.plan import Plan
from genray.views.generators import load as loaded


def search(seconds: Any, images: int) -> tuple[int, list[int]]:
    """What was found, and the sizes that were tried."""
    tried: list[int] = []

    def noted(size: int) -> float | None:
        tried.append(size)
        return seconds(size)  # type: ignore[no-any-return]

    return fastest(noted, images), tried


def test_it_stops_where_larger_ones_gain_nothing() -> None:
    found, tried = search(lambda size: 1e-3 * max(size, 32), images=2048)
    assert found == 32
    assert tried == [4, 8, 16, 32, 64, 128]


def test_a_gain_too_small_to_matter_is_not_worth_the_memory() -> None:
    found, _ = search(lambda size: 1e-3 * size * (1 + 0.4 * MIN_GAIN / size), images=2048)
    assert found == 4


def test_the_launch_of_a_micro_batch_makes_large_ones_better() -> None:
    found, tried = search(lambda size: 1e-2 + 1e-5 * size, images=2048)
    assert found == tried[-1] == 2048


def test_the_images_that_fill_up_the_last_one_count() -> None:
    """Each image is faster in a larger micro-batch, but 33 images are 9 of 4, or 36, and 2 of 32, or 64."""
    found, tried = search(lambda size: 1e-3 * size**0.9, images=33)
    assert found == 4
    assert tried == [4, 8, 16]
    assert search(lambda size: 1e-2 + 1e-6 * size, images=33)[1][-1] == 64  # no larger one is of use


def test_one_that_takes_long_is_the_last() -> None:
    found, tried = search(lambda size: 0.9 * micro_batch.SLOW_S * (size / 8) ** 0.5, images=2048)
    assert tried == [4, 8, 16]
    assert found == 16


@pytest.mark.parametrize(("room", "expected"), [(3, 1), (4, 4), (31, 16), (64, 64)])
def test_where_memory_ends_the_search_does(room: int, expected: int) -> None:
    found, _ = search(lambda size: 1e-2 if size <= room else None, images=2048)
    assert found == expected


def test_memory_is_not_tried_out_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: what twice as much would take is told from what was taken."""
    held, used = 0, list[int]()
    monkeypatch.setattr(micro_batch, "peak_memory", lambda: held)

    def once(size: int) -> None:
        nonlocal held
        used.append(size)
        held = max(held, 10 * size)

    memory = Memory(torch.device("cpu"), 0, processes=1)
    memory.limit = 350
    assert [memory.holds(size, once) for size in (4, 8, 16, 32)] == [True, True, True, True]
    assert memory.holds(64, once) is False
    assert used == [4, 8, 16, 32]


def test_processes_on_one_machine_share_its_memory() -> None:
    one, four = (Memory(torch.device("cpu"), 0, processes=n).limit for n in (1, 4))
    assert one == 4 * four > 2**20


@pytest.mark.parametrize("render_on", ["pool", "learners"])
def test_so_do_all_that_render(render_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[int] = []

    def memory(device: torch.device, gpus: float, processes: int) -> Memory:
        shared.append(processes)
        return Memory(device, gpus, processes)

    monkeypatch.setattr(micro_batch, "Memory", memory)
    monkeypatch.setattr(micro_batch, "SIZE_MEASURE_S", 0.0)
    sides: dict[str, Any] = {"render_on": render_on, "pool": {"num": [1, 3]}, "learners": {"num_workers": 2}}
    micro_batch.measure(small(generator={"micro_batch": "auto"}, stream={"batch_size": 16}, **sides))
    assert shared == [3 if render_on == "pool" else 2]


@pytest.mark.parametrize(("limit", "counts"), [("1048576\n", True), ("max\n", False), (None, False)])
def test_a_container_may_have_less_than_the_machine(
    limit: str | None, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batch, "CGROUP_LIMIT", tmp_path / "memory.max")
    if limit:
        (tmp_path / "memory.max").write_text(limit)
    most = Memory(torch.device("cpu"), 0, processes=1).limit
    assert (most == micro_batch.HOST_MEMORY_SHARE * 2**20) == counts
    assert most > 0


def test_memory_that_runs_out_while_a_size_is_measured_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def render(generator: Any, latents: Any, labels: Any, seeds: Any, size: int, device: Any) -> None:
        calls.append(size)
        if calls.count(16) == 2:  # the first time is a try
            raise torch.OutOfMemoryError("out of memory")
        time.sleep(0.002)

    monkeypatch.setattr(micro_batch, "render", render)
    monkeypatch.setattr(micro_batch, "SIZE_MEASURE_S", 0.0)
    assert micro_batch.measure(small(generator={"micro_batch": "auto"}, stream={"batch_size": 256})) == 8
    assert max(calls) == 16


def test_a_size_is_measured_for_a_while_but_a_slow_one_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, 0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def taking(first: float, rest: float) -> Any:
        def once(size: int) -> None:
            nonlocal now, calls
            now += first if calls == 0 else rest
            calls += 1

        return once

    assert micro_batch.least_time(taking(0.2, 0.1), 4) == pytest.approx(0.1)
    assert calls == 4
    calls = 0
    assert micro_batch.least_time(taking(3.0, 2.0), 4) == pytest.approx(2.0)
    assert calls == 2
    calls = 0
    assert micro_batch.least_time(taking(9.0, 2.0), 4) == pytest.approx(9.0)
    assert calls == 1


def test_the_embedded_generator_is_searched_without_what_would_have_to_compile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plain(config: Any, device: torch.device) -> Any:
        assert not config.compile
        assert config.precision == "bfloat16"
        return loaded(config, device)

    monkeypatch.setattr(micro_batch, "load", plain)
    monkeypatch.setattr(micro_batch, "SIZE_MEASURE_S", 0.02)
    generator = {"micro_batch": "auto", "compile": True, "precision": "bfloat16"}
    config = build({"name": "x", "generator": generator, "stream": {"batch_size": 8}, "pool": {"num_gpus": 0}})
    found = micro_batch.measure(config)
    assert found in (4, 8, 16, 32, 64)


def test_a_custom_generator_is_searched_with_latents_and_classes_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []

    class Seen:
        image_size, latent_dim, num_classes = 8, 4, 3

        def unchecked(self, z: torch.Tensor, labels: torch.Tensor, seeds: torch.Tensor) -> Any:
            assert z.dtype == torch.float32
            assert z.abs().max() <= 2
            seen.append((len(z), int(labels.min()), int(labels.max())))
            time.sleep(0.02 / len(z))
            return torch.zeros(len(z), 3, 8, 8, dtype=torch.uint8), torch.ones(len(z), dtype=torch.bool)

    monkeypatch.setattr(micro_batch, "load", lambda config, device: Seen())
    monkeypatch.setattr(micro_batch, "SIZE_MEASURE_S", 0.01)
    config = small(generator={"micro_batch": "auto"}, stream={"batch_size": 16})
    assert micro_batch.measure(config) == 64  # 16 anchors, 2 batches, 2 views
    assert {size for size, _, _ in seen} == {4, 8, 16, 32, 64}
    assert min(least for _, least, _ in seen) == 0
    assert max(most for _, _, most in seen) == 2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray is asked for; it answers 48 without running anything."""
    found: list[dict[str, Any]] = []

    def remote(**resources: Any) -> Any:
        found.append(resources)
        return lambda function: SimpleNamespace(remote=lambda config: (function, config))

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray_cluster, "by_labels", lambda config: config.placement == "labels")
    monkeypatch.setattr(ray, "get", lambda task: 48 if task[0] is micro_batch.measure else None)
    return found


@pytest.mark.parametrize(("render_on", "cpus", "gpus"), [("pool", 2, 0.5), ("learners", 3, 1)])
def test_it_is_searched_with_what_a_process_that_renders_has(
    asked: list[dict[str, Any]], render_on: str, cpus: float, gpus: float
) -> None:
    sides = {"pool": {"num_cpus": 2, "num_gpus": 0.5}, "learners": {"num_cpus": 3, "num_gpus": 1}}
    config = small(render_on=render_on, **sides)
    assert micro_batch.measure_by_task(config) == 48
    assert asked == [{"num_cpus": cpus, "num_gpus": gpus, "label_selector": {}, "max_retries": 1}]


@pytest.mark.parametrize(("render_on", "node"), [("pool", GENERATOR_NODE), ("learners", LEARNER_NODE)])
def test_it_is_searched_on_a_node_of_those_that_render(
    asked: list[dict[str, Any]], render_on: str, node: dict[str, str]
) -> None:
    micro_batch.measure_by_task(small(placement="labels", render_on=render_on))
    assert asked[0]["label_selector"] == node


@pytest.mark.parametrize(
    ("last", "kind", "told"),
    [
        ("genray.config.errors.ConfigError: generator.model must be here", UserError, "generator.model must be here"),
        ("genray.views.types.BadImages: 1 of 4 images", RunFailed, "1 of 4 images"),
        ("RuntimeError: something else", RunFailed, "RuntimeError: something else"),
    ],
)
def test_what_fails_in_the_search_is_told_in_a_line(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, last: str, kind: type[Exception], told: str
) -> None:
    def fail(task: Any) -> None:
        raise RayTaskError("measured", f"Traceback (most recent call last):\n  File\n{last}", ValueError())

    monkeypatch.setattr(ray, "get", fail)
    with pytest.raises(kind, match=f"^{told}$"):
        micro_batch.measure_by_task(small())


def test_a_dry_run_says_that_it_will_be_measured() -> None:
    config = small(generator={"micro_batch": "auto"})
    assert "micro-batch    measured when the run begins" in Plan.of(config).lines(config)
    assert not [line for line in Plan.of(small()).lines(small()) if line.startswith("micro-batch")]
