"""When learners ask whether they are to stop, and when they draw what they see, without Ray."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch
from fakes import small, uses

from genray.learner import worker
from genray.learner.learner import Learner
from genray.learner.worker import StopPoll, with_previews
from genray.runs import previews
from genray.stream.renderer import Renderer
from genray.stream.run import Run
from genray.stream.tickets import Course


class Clock:
    """Seconds that pass when a step is made, or a block is waited for."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One learner, a clock, and a notice that may be given."""
    found = SimpleNamespace(clock=Clock(), notice=None, step=0, looks=[])

    def info() -> Any:
        found.looks.append(found.step)
        return found.notice

    monkeypatch.setattr(worker, "time", found.clock)
    monkeypatch.setattr(worker, "broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr(ray.train, "get_preemption_info", info)
    return found


def run_of(storage: Path, workers: int = 1, **stream: int) -> Run:
    """A run whose directory is there."""
    sections = {"stream": {"batch_size": 12, **stream}, "learners": {"num_workers": workers}}
    run = Run.of(small(storage_path=str(storage), **sections))
    run.directory.path.mkdir(exist_ok=True)
    return run


def begins_tickets(run: Run, step: int, ticket_batches: int, reuse: int = 1, window: int = 64) -> bool:
    """Whether a step (counted from 1) is the first to show something of new tickets, by what a ticket is."""
    use, fresh = uses(step, reuse, window)[-1]
    return use == 0 and fresh % (ticket_batches * run.plan.num_workers) == 0


def wishes(
    asked: StopPoll, run: Run, world: SimpleNamespace, steps: int, step_s: float, wait_s: float = 0, begin: int = 0
) -> list[str]:
    """What is asked after each step of a run whose blocks, of four batches, are waited for."""
    found = []
    for step in range(begin + 1, begin + steps + 1):
        if begins_tickets(run, step, ticket_batches=4):
            world.clock.now += wait_s
        world.clock.now += step_s
        world.step = step
        found.append(asked(step))
    return found


def test_fast_steps_are_not_asked_after_each(world: SimpleNamespace, tmp_path: Path) -> None:
    run = run_of(tmp_path, ticket_batches=500)
    assert set(wishes(StopPoll(run, 0), run, world, 500, step_s=0.01)) == {"continue"}
    assert world.looks == [1, 201, 401]  # after the first step, and then every two seconds of five


def test_slow_steps_are_all_asked_after(world: SimpleNamespace, tmp_path: Path) -> None:
    run = run_of(tmp_path, ticket_batches=500)
    wishes(StopPoll(run, 0), run, world, 5, step_s=30)
    assert world.looks == [1, 2, 3, 4, 5]


def test_the_pace_is_that_of_the_steps_since_the_last_look(world: SimpleNamespace, tmp_path: Path) -> None:
    run = run_of(tmp_path, ticket_batches=500)
    asked = StopPoll(run, 0)
    wishes(asked, run, world, 201, step_s=0.01)
    wishes(asked, run, world, 204, step_s=1, begin=201)
    assert world.looks == [1, 201, 401, 403, 405]


@pytest.mark.parametrize("begin", [0, 1, 3, 5, 11, 12, 13])
@pytest.mark.parametrize("ticket_batches", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_the_first_step_of_each_round_of_tickets_is_asked_after(
    workers: int, ticket_batches: int, begin: int, world: SimpleNamespace, tmp_path: Path
) -> None:
    """So fast that nothing else would make them ask: after the first step, wherever that is, and then at rounds."""
    run, size = run_of(tmp_path, workers, ticket_batches=ticket_batches), workers * ticket_batches
    wishes(StopPoll(run, begin), run, world, 60, step_s=1e-4, begin=begin)
    assert world.looks == [
        step for step in range(begin + 1, begin + 61) if step == begin + 1 or step % size == 1 % size
    ]


@pytest.mark.parametrize(("reuse", "window"), [(2, 5), (3, 4), (2, 12), (2, 16), (3, 2)])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_with_reuse_the_first_step_of_each_round_of_tickets_is_asked_after(
    workers: int, reuse: int, window: int, world: SimpleNamespace, tmp_path: Path
) -> None:
    run = run_of(tmp_path, workers, ticket_batches=4, reuse=reuse, reuse_window=window)
    for begin in (0, 1, window, reuse * window - 1):
        world.looks.clear()
        wishes(StopPoll(run, begin), run, world, 120, step_s=1e-4, begin=begin)
        due = {step for step in range(begin + 1, begin + 121) if begins_tickets(run, step, 4, reuse, window)}
        assert world.looks == sorted(due | {begin + 1})


def test_each_block_is_asked_for_however_long_it_was_waited_for(world: SimpleNamespace, tmp_path: Path) -> None:
    run = run_of(tmp_path, ticket_batches=4)
    asked = StopPoll(run, 0)
    wishes(asked, run, world, 40, step_s=0.01, wait_s=20)
    assert {1, 5, 9, 13, 17, 21, 25, 29, 33, 37} <= set(world.looks)
    run.directory.stop.touch()
    assert asked(41) == "stop"  # at the first step of the next block


def test_a_run_is_stopped_at_the_next_look(world: SimpleNamespace, tmp_path: Path) -> None:
    run = run_of(tmp_path, ticket_batches=500)
    asked = StopPoll(run, 0)
    wishes(asked, run, world, 50, step_s=0.01)
    run.directory.stop.touch()
    world.notice = object()  # stopping also saves
    assert wishes(asked, run, world, 151, step_s=0.01, begin=50) == ["continue"] * 150 + ["stop"]


@pytest.mark.parametrize("ticket_batches", [1, 5, 1000])  # however often they ask
def test_a_notice_is_answered_with_checkpoints_until_the_end(
    ticket_batches: int, world: SimpleNamespace, tmp_path: Path
) -> None:
    run = run_of(tmp_path, ticket_batches=ticket_batches)
    world.notice = object()
    found = wishes(StopPoll(run, 0), run, world, 400, step_s=0.1)
    saved = [step for step, wish in enumerate(found, start=1) if wish == "save"]
    assert saved == [1, 151, 301]  # every 15 s


def test_the_other_learners_do_as_the_first_one_says(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They look at nothing of their own, and come together with it at the same steps."""
    run = run_of(tmp_path, 2, ticket_batches=4)
    run.directory.stop.touch()
    said = {1: ("continue", 3), 3: ("save", 100), 9: ("stop", 9)}
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))

    def told(value: Any) -> Any:
        assert value is None
        return said[world.step]

    monkeypatch.setattr(worker, "broadcast_from_rank_zero", told)
    found = wishes(StopPoll(run, 0), run, world, 9, step_s=0.01)
    assert found == ["continue", "continue", "save", *["continue"] * 5, "stop"]


def test_grids_are_drawn_along_the_steps(tmp_path: Path) -> None:
    sections = {"model": {"backbone": "resnet18"}, "tracking": {"previews_every": 10}}
    run = Run.of(small(storage_path=str(tmp_path), **sections))
    learner, renderer = Learner(run, 0, torch.device("cpu")), Renderer(run.config, "cpu")
    blocks = [renderer.block(ticket) for ticket in islice(Course(learner.plan).of_learner(0), 12)]  # of 2 steps each

    def steps_drawn(begin: int) -> list[int]:
        learner.step = begin
        for _ in with_previews(iter(blocks), learner):
            learner.step += 3
        return list(previews.existing(run.directory.previews))

    assert steps_drawn(0) == [0, 12, 21, 30]
    first = previews.path_of(run.directory.previews, 0).read_bytes()
    assert first.startswith(b"\x89PNG")
    assert steps_drawn(24) == [0, 12, 21, 30, 42, 51]  # it goes on from a checkpoint
    assert previews.path_of(run.directory.previews, 0).read_bytes() == first
    learner.rank = 1
    assert steps_drawn(60) == [0, 12, 21, 30, 42, 51]
