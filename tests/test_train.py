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

from genray import grids, train
from genray.course import Course
from genray.learner import Learner
from genray.plan import Plan
from genray.rundir import RunDirectory
from genray.train import Asked
from genray.views import Renderer


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

    monkeypatch.setattr(train, "time", found.clock)
    monkeypatch.setattr(train, "broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr(ray.train, "get_preemption_info", info)
    return found


def plan_of(workers: int = 1, **stream: int) -> Plan:
    return Plan.of(small(stream={"batch_size": 12, **stream}, learners={"num_workers": workers}))


def begins_tickets(plan: Plan, step: int, ticket_batches: int, reuse: int = 1, window: int = 64) -> bool:
    """Whether a step (counted from 1) is the first to show something of new tickets, by what a ticket is."""
    use, fresh = uses(step, reuse, window)[-1]
    return use == 0 and fresh % (ticket_batches * plan.num_workers) == 0


def wishes(
    asked: Asked, plan: Plan, world: SimpleNamespace, steps: int, step_s: float, wait_s: float = 0, begin: int = 0
) -> list[str]:
    """What is asked after each step of a run whose blocks, of four batches, are waited for."""
    found = []
    for step in range(begin + 1, begin + steps + 1):
        if begins_tickets(plan, step, ticket_batches=4):
            world.clock.now += wait_s
        world.clock.now += step_s
        world.step = step
        found.append(asked(step))
    return found


def test_fast_steps_are_not_asked_after_each(world: SimpleNamespace, tmp_path: Path) -> None:
    plan = plan_of(ticket_batches=500)
    assert set(wishes(Asked(RunDirectory(tmp_path), plan, 0), plan, world, 500, step_s=0.01)) == {"go on"}
    assert world.looks == [1, 201, 401]  # after the first step, and then every two seconds of five


def test_slow_steps_are_all_asked_after(world: SimpleNamespace, tmp_path: Path) -> None:
    plan = plan_of(ticket_batches=500)
    wishes(Asked(RunDirectory(tmp_path), plan, 0), plan, world, 5, step_s=30)
    assert world.looks == [1, 2, 3, 4, 5]


def test_the_pace_is_that_of_the_steps_since_the_last_look(world: SimpleNamespace, tmp_path: Path) -> None:
    plan = plan_of(ticket_batches=500)
    asked = Asked(RunDirectory(tmp_path), plan, 0)
    wishes(asked, plan, world, 201, step_s=0.01)
    wishes(asked, plan, world, 204, step_s=1, begin=201)
    assert world.looks == [1, 201, 401, 403, 405]


@pytest.mark.parametrize("begin", [0, 1, 3, 5, 11, 12, 13])
@pytest.mark.parametrize("ticket_batches", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_the_first_step_of_each_round_of_tickets_is_asked_after(
    workers: int, ticket_batches: int, begin: int, world: SimpleNamespace, tmp_path: Path
) -> None:
    """So fast that nothing else would make them ask: after the first step, wherever that is, and then at rounds."""
    plan, size = plan_of(workers, ticket_batches=ticket_batches), workers * ticket_batches
    wishes(Asked(RunDirectory(tmp_path), plan, begin), plan, world, 60, step_s=1e-4, begin=begin)
    assert world.looks == [
        step for step in range(begin + 1, begin + 61) if step == begin + 1 or step % size == 1 % size
    ]


@pytest.mark.parametrize(("reuse", "window"), [(2, 5), (3, 4), (2, 12), (2, 16), (3, 2)])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_with_reuse_the_first_step_of_each_round_of_tickets_is_asked_after(
    workers: int, reuse: int, window: int, world: SimpleNamespace, tmp_path: Path
) -> None:
    plan = plan_of(workers, ticket_batches=4, reuse=reuse, reuse_window=window)
    for begin in (0, 1, window, reuse * window - 1):
        world.looks.clear()
        wishes(Asked(RunDirectory(tmp_path), plan, begin), plan, world, 120, step_s=1e-4, begin=begin)
        due = {step for step in range(begin + 1, begin + 121) if begins_tickets(plan, step, 4, reuse, window)}
        assert world.looks == sorted(due | {begin + 1})


def test_each_block_is_asked_for_however_long_it_was_waited_for(world: SimpleNamespace, tmp_path: Path) -> None:
    plan = plan_of(ticket_batches=4)
    run = RunDirectory(tmp_path)
    asked = Asked(run, plan, 0)
    wishes(asked, plan, world, 40, step_s=0.01, wait_s=20)
    assert {1, 5, 9, 13, 17, 21, 25, 29, 33, 37} <= set(world.looks)
    run.stop.touch()
    assert asked(41) == "stop"  # at the first step of the next block


def test_a_run_is_stopped_at_the_next_look(world: SimpleNamespace, tmp_path: Path) -> None:
    plan, run = plan_of(ticket_batches=500), RunDirectory(tmp_path)
    asked = Asked(run, plan, 0)
    wishes(asked, plan, world, 50, step_s=0.01)
    run.stop.touch()
    world.notice = object()  # stopping also saves
    assert wishes(asked, plan, world, 151, step_s=0.01, begin=50) == ["go on"] * 150 + ["stop"]


def test_a_notice_is_answered_with_checkpoints_until_the_end(world: SimpleNamespace, tmp_path: Path) -> None:
    plan = plan_of(ticket_batches=1000)
    world.notice = object()
    found = wishes(Asked(RunDirectory(tmp_path), plan, 0), plan, world, 400, step_s=0.1)
    saved = [step for step, wish in enumerate(found, start=1) if wish == "save"]
    assert saved == [1, 151, 301]  # every 15 s


def test_the_other_learners_do_as_the_first_one_says(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They look at nothing of their own, and come together with it at the same steps."""
    plan, run = plan_of(2, ticket_batches=4), RunDirectory(tmp_path)
    run.stop.touch()
    said = {1: ("go on", 3), 3: ("save", 100), 9: ("stop", 9)}
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))

    def told(value: Any) -> Any:
        assert value is None
        return said[world.step]

    monkeypatch.setattr(train, "broadcast_from_rank_zero", told)
    found = wishes(Asked(run, plan, 0), plan, world, 9, step_s=0.01)
    assert found == ["go on", "go on", "save", *["go on"] * 5, "stop"]


def test_grids_are_drawn_along_the_steps(tmp_path: Path) -> None:
    config = small(storage_path=str(tmp_path), model={"backbone": "resnet18"}, tracking={"previews_every": 10})
    learner, renderer = Learner(config, 0, torch.device("cpu")), Renderer(config, "cpu")
    blocks = [renderer.block(ticket) for ticket in islice(Course(learner.plan).of_learner(0), 12)]  # of 2 steps each

    def steps_drawn(begin: int) -> list[int]:
        learner.step = begin
        for _ in train._drawn(iter(blocks), learner):
            learner.step += 3
        return list(grids.drawn(RunDirectory.of(config).previews))

    assert steps_drawn(0) == [0, 12, 21, 30]
    first = grids.path_of(RunDirectory.of(config).previews, 0).read_bytes()
    assert first.startswith(b"\x89PNG")
    assert steps_drawn(24) == [0, 12, 21, 30, 42, 51]  # it goes on from a checkpoint
    assert grids.path_of(RunDirectory.of(config).previews, 0).read_bytes() == first
    learner.rank = 1
    assert steps_drawn(60) == [0, 12, 21, 30, 42, 51]
