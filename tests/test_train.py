"""When learners ask whether they are to stop, without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from fakes import small

from genray import train
from genray.course import Place
from genray.plan import Plan
from genray.rundir import RunDirectory
from genray.train import Asked


class Clock:
    """Seconds that pass when a step is made, or a block is waited for."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One learner, a clock, and a notice that may be given."""
    found = SimpleNamespace(clock=Clock(), notice=None, looks=0)

    def info() -> Any:
        found.looks += 1
        return found.notice

    monkeypatch.setattr(train, "time", found.clock)
    monkeypatch.setattr(train, "broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr(ray.train, "get_preemption_info", info)
    return found


def wishes(asked: Asked, plan: Plan, world: SimpleNamespace, steps: int, step_s: float, wait_s: float) -> list[str]:
    """What is asked after each step of a run whose blocks are waited for."""
    place, found = Place(), []
    for _ in range(steps):
        if not place.num_workers:
            world.clock.now += wait_s
        world.clock.now += step_s
        place = place.after_step(plan)
        found.append(asked(place))
    return found


def test_fast_steps_are_not_asked_after_each(world: SimpleNamespace, tmp_path: Path) -> None:
    plan = Plan.of(small(stream={"ticket_batches": 500}))
    assert set(wishes(Asked(RunDirectory(tmp_path), plan, 0), plan, world, 500, step_s=0.01, wait_s=0)) == {"go on"}
    assert world.looks == 3  # after the first step, and then every two seconds of five


def test_each_block_is_asked_for_however_long_it_was_waited_for(world: SimpleNamespace, tmp_path: Path) -> None:
    plan = Plan.of(small(stream={"ticket_batches": 4}))
    run = RunDirectory(tmp_path)
    asked = Asked(run, plan, 0)
    wishes(asked, plan, world, 40, step_s=0.01, wait_s=20)
    assert world.looks >= 10
    run.stop.touch()
    place = Place(40, 10).after_step(plan)
    assert asked(place) == "stop"  # at the first step of the next block


def test_a_notice_is_answered_with_checkpoints_until_the_end(world: SimpleNamespace, tmp_path: Path) -> None:
    plan = Plan.of(small(stream={"ticket_batches": 1000}))
    world.notice = object()
    found = wishes(Asked(RunDirectory(tmp_path), plan, 0), plan, world, 400, step_s=0.1, wait_s=0)
    saved = [step for step, wish in enumerate(found, start=1) if wish == "save"]
    assert saved == [1, 151, 301]  # every 15 s
