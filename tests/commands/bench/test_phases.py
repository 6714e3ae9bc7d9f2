"""The phases of a bench with one learner, on blocks that are rendered when they are asked for; no Ray is started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import small

from genray.commands.bench import phases
from genray.commands.bench.bench import bench_config
from genray.commands.bench.phases import ITERATOR_BLOCKS, MIN_ROUNDS, Phases
from genray.commands.bench.rates import MAX_PHASE_TICKETS
from genray.config.run import Config
from genray.learner.learner import Learner
from genray.stream.renderer import Renderer
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.types import Block

MODEL = {
    "backbone": "resnet18",
    "model_args": {"layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8], "stem_width": 8},
    "projection": [8, 4],
}
RENDER_S = 0.5
REPEATS = 2


class Stream:
    """Blocks that claim to have taken RENDER_S each."""

    def __init__(self, config: Config, learner: Learner):
        self.renderer, self.course, self.taken = Renderer(config, "cpu"), Course(learner.plan), 0

    def __iter__(self) -> Iterator[Block]:
        for ticket in self.course.of_learner(0):
            self.taken += 1
            yield {**self.renderer.block(ticket), "render_s": np.full(len(ticket.positions), RENDER_S)}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited for the generators to stand still."""
    found: list[float] = []
    monkeypatch.setattr(phases.time, "sleep", found.append)
    return found


@pytest.fixture
def measured(tmp_path: Path, slept: list[float]) -> tuple[Phases, Stream]:
    config = small(
        storage_path=str(tmp_path),
        model=MODEL,
        pool={"num": 3, "num_gpus": 0, "look_ahead_mib": 1},
        learners={"num_gpus": 0},
        stream={"batch_size": 64, "ticket_batches": 2},
    )
    config = bench_config(config, REPEATS)
    learner = Learner(Run.of(config), 0, torch.device("cpu"))
    source = Stream(config, learner)
    made = Phases(learner, iter(source), 1)
    made.prepare(1e-6)
    return made, source


def test_a_phase_has_some_tickets_of_each_generator(measured: tuple[Phases, Stream]) -> None:
    made, _ = measured
    assert made.tickets == {
        "learner": 1,
        "generator": 1,
        "inline": 1,
        "stream": 3 * MIN_ROUNDS,
        "together": 3 * MIN_ROUNDS,
    }


def test_what_had_lain_ready_is_passed_over(measured: tuple[Phases, Stream]) -> None:
    made, source = measured
    assert made.ready == made.learner.plan.look_ahead + 2 * 3 + ITERATOR_BLOCKS
    before = source.taken
    made.measure()
    assert source.taken - before == 2 * made.ready + 2 * made.tickets["stream"] + 3 + made.tickets["together"]
    assert made.learner.step == source.taken * made.learner.plan.ticket_steps


def test_the_stream_is_long_enough_for_every_repetition(measured: tuple[Phases, Stream]) -> None:
    made, source = measured
    made.prepare(1e9)
    assert made.tickets["stream"] == made.tickets["together"] == MAX_PHASE_TICKETS
    used = source.taken + REPEATS * (2 * made.ready + 3 + 3 * MAX_PHASE_TICKETS)
    assert used <= len(Course(made.learner.plan)) < 3 * used


def test_a_phase_aside_waits_until_the_generators_stand_still(
    measured: tuple[Phases, Stream], slept: list[float]
) -> None:
    made, _ = measured
    assert made.stop_s == pytest.approx(1.5 * (made.ready + 3) * RENDER_S / 3)
    slept.clear()
    made.measure()
    assert slept == [made.stop_s]  # after what uses the stream; before it they stood still
    made.measure()
    assert slept == [made.stop_s] * 2


def test_what_is_measured(measured: tuple[Phases, Stream]) -> None:
    made, _ = measured
    found = made.measure()
    assert set(found) == {
        *("learner", "stream", "together", "inline", "generator", "rendering", "generators"),
        *("blocks_per_s", "mib_per_s"),
    }
    assert found["rendering"] == pytest.approx(2 * 64 / RENDER_S)
    assert found["generators"] == 3
    assert found["stream"] == pytest.approx(found["blocks_per_s"] * 2 * 64)
    assert found["mib_per_s"] == pytest.approx(found["blocks_per_s"] * 2 * 64 * 2 * 3 * 8 * 8 / 2**20)
    assert min(found["learner"], found["inline"], found["generator"]) > 0


def test_a_repetition_begins_with_what_the_one_before_ended_with(
    measured: tuple[Phases, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = measured
    counted = iter(range(1, 100))
    monkeypatch.setattr(made, "measure_idle", lambda: {"learner": float(next(counted))})
    assert [made.measure()["learner"] for _ in range(3)] == [1.5, 2.5, 3.5]


def test_learners_without_room_for_a_generator_render_nothing(
    measured: tuple[Phases, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, source = measured
    monkeypatch.setattr(phases, "InlineGenerator", lambda *_: pytest.fail("a learner renders"))
    alone = Phases(made.learner, iter(source), 1, inline=False)
    made.learner.step = 0
    alone.prepare(1e-6)
    found = alone.measure()
    assert found["generator"] == found["rendering"] == pytest.approx(2 * 64 / RENDER_S)
    assert "inline" not in found
