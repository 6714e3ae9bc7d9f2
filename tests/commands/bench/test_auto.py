"""What a configuration leaves to a measurement, without measuring."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import small

from genray.cluster import ray_cluster
from genray.commands.bench import auto, micro_batch
from genray.config.errors import RunStopped
from genray.config.load import build
from genray.config.run import Config
from genray.runs.directory import RunDirectory

RATES = {"generators": 2.0, "generator": 100.0, "learner": 700.0}


def left_open(storage: Path, **stream: Any) -> Config:
    return small(storage_path=str(storage), stream={"reuse": "auto", "ticket_batches": "auto", **stream})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that were measured."""
    found: list[Config] = []

    def bench(config: Config, **how: Any) -> dict[str, Any]:
        found.append(config)
        return {"median": RATES, "empty_stream": {"blocks_per_s": 30.0}}

    monkeypatch.setattr(auto, "bench", bench)
    return found


@pytest.mark.parametrize(
    ("learner", "expected"), [(50, 1), (200, 1), (215, 1), (230, 2), (400, 2), (700, 4), (10_000, auto.MAX_REUSE)]
)
def test_each_view_is_used_so_often_that_the_learners_do_not_wait(learner: float, expected: int) -> None:
    assert auto.needed_reuse({**RATES, "learner": learner}) == expected


@pytest.mark.parametrize("reuse", [1, 4])
@pytest.mark.parametrize("learner", [40.0, 7000.0])
def test_a_ticket_is_the_smallest_with_which_few_enough_blocks_move(learner: float, reuse: int) -> None:
    config = small(stream={"batch_size": 4, "reuse": reuse})
    rates = {**RATES, "learner": learner}
    fresh = min(200, learner / reuse) / 4  # batches a second that have to be rendered
    batches = auto.ticket_batches(rates, config, max_blocks_per_s=10)
    assert fresh / batches <= 10
    assert batches == 1 or fresh / (batches - 1) > 10


def test_a_ticket_is_no_larger_than_the_look_ahead_allows(tmp_path: Path, measured: list[Config]) -> None:
    """A batch of 256 anchors takes 96 KiB, and two tickets of each of two learners must fit into one MiB."""
    config = small(
        storage_path=str(tmp_path),
        stream={"batch_size": 256, "ticket_batches": "auto"},
        pool={"look_ahead_mib": 1},
        learners={"num_workers": 2},
    )
    fast = {**RATES, "generator": 1e6, "learner": 1e6}
    assert auto.ticket_batches(fast, config, max_blocks_per_s=10) == 2**20 // (4 * 256 * 2 * 3 * 8 * 8) == 2


def test_what_is_open_is_measured_once(tmp_path: Path, measured: list[Config]) -> None:
    said: list[str] = []
    config = auto.with_measured_fields(left_open(tmp_path), say=said.append)
    assert (config.stream.reuse, config.stream.ticket_batches) == (4, 5)
    assert said == [
        "measuring for stream.reuse and stream.ticket_batches",
        "stream.reuse = 4, stream.ticket_batches = 5",
    ]
    run = RunDirectory.of(config)
    run.claim(config)
    run.metrics.touch()
    assert auto.with_measured_fields(left_open(tmp_path), say=said.append) == config
    assert len(measured) == 1


def test_what_is_given_is_not_measured(tmp_path: Path, measured: list[Config]) -> None:
    config = small(storage_path=str(tmp_path), stream={"reuse": 3})
    assert auto.with_measured_fields(config) is config
    half = auto.with_measured_fields(left_open(tmp_path, reuse=2), say=lambda line: None)
    assert half.stream.reuse == 2
    assert len(measured) == 1


def test_measured_values_make_a_configuration(tmp_path: Path, measured: list[Config]) -> None:
    config = auto.with_measured_fields(left_open(tmp_path), say=lambda line: None)
    assert build(config.to_dict()) == config


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations whose micro-batch was searched for, each placed first; without Ray."""
    found: list[Config] = []
    placed: list[Config] = []

    @contextmanager
    def joined(address: str | None) -> Any:
        yield address == "cluster"

    def search(config: Config) -> int:
        assert placed.pop() is config
        found.append(config)
        return 32

    monkeypatch.setattr(ray_cluster, "joined", joined)
    monkeypatch.setattr(ray_cluster, "check_placement", lambda config, autoscaling: placed.append(config))
    monkeypatch.setattr(micro_batch, "measure_by_task", search)
    return found


def test_a_micro_batch_is_searched_for_once(tmp_path: Path, searched: list[Config], measured: list[Config]) -> None:
    said: list[str] = []
    open_ = small(storage_path=str(tmp_path), generator={"micro_batch": "auto"})
    config = auto.with_measured_fields(open_, say=said.append)
    assert config == small(storage_path=str(tmp_path), generator={"micro_batch": 32})
    assert said == ["measuring for generator.micro_batch", "generator.micro_batch = 32"]
    run = RunDirectory.of(config)
    run.claim(config)
    run.metrics.touch()
    assert auto.with_measured_fields(open_, say=said.append) == config
    assert len(searched) == 1
    assert not measured


def test_a_search_can_be_stopped(tmp_path: Path, searched: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    def search(config: Config) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return 32

    monkeypatch.setattr(micro_batch, "measure_by_task", search)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunStopped, match="was stopped during a measurement"):
        auto.with_measured_fields(
            small(storage_path=str(tmp_path), generator={"micro_batch": "auto"}), say=lambda line: None
        )
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("render_on", ["pool", "learners"])
def test_the_stream_is_measured_with_the_micro_batch_that_was_found(
    tmp_path: Path, searched: list[Config], measured: list[Config], render_on: str
) -> None:
    stream = {"ticket_batches": "auto"}
    open_ = small(storage_path=str(tmp_path), generator={"micro_batch": "auto"}, stream=stream, render_on=render_on)
    config = auto.with_measured_fields(open_, say=lambda line: None)
    assert config.generator.micro_batch == 32
    assert config.stream.ticket_batches == (5 if render_on == "pool" else auto.INLINE_TICKET_BATCHES)
    assert [of.generator.micro_batch for of in measured] == [32] * (render_on == "pool")
