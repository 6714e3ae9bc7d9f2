"""Where time goes: to the name of the lap that ends it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from genray.learner.stopwatch import Stopwatch


class Clock:
    """Goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def passed(clock: Clock, stopwatch: Stopwatch, **laps: float) -> None:
    for name, seconds in laps.items():
        clock.now += seconds
        stopwatch.lap(name)


def test_the_time_before_a_lap_has_its_name(clock: Clock) -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    passed(clock, stopwatch, wait=1, copy=2, other=4)
    assert stopwatch.read() == {"wait": 1, "copy": 2, "other": 4}


def test_laps_of_one_name_add_up(clock: Clock) -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    passed(clock, stopwatch, wait=1, copy=2)
    passed(clock, stopwatch, wait=4, copy=8)
    assert stopwatch.read() == {"wait": 5, "copy": 10}


def test_a_start_discards_what_was_before(clock: Clock) -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    passed(clock, stopwatch, wait=1, copy=2)
    clock.now += 4
    stopwatch.start()
    passed(clock, stopwatch, copy=8)
    assert stopwatch.read() == {"copy": 8}


def test_reading_begins_anew_without_losing_time(clock: Clock) -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    passed(clock, stopwatch, wait=1)
    clock.now += 2  # after the last lap: it belongs to the next one
    assert stopwatch.read() == {"wait": 1}
    assert stopwatch.read() == {}
    passed(clock, stopwatch, copy=4)
    assert stopwatch.read() == {"copy": 6}


def test_on_a_processor_it_is_the_time_that_really_passed() -> None:
    started = time.perf_counter()
    stopwatch = Stopwatch(torch.device("cpu"))
    time.sleep(0.05)
    stopwatch.lap("slept")
    assert 0.05 <= stopwatch.read()["slept"] <= time.perf_counter() - started


def test_on_a_gpu_laps_are_marks_in_its_queue(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's clock goes on as the work before a mark takes, and is read only when it has come to the last one."""
    waited: list[Any] = []

    class Queue:
        now = 0.0

    class Mark:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            self.at = Queue.now

        def synchronize(self) -> None:
            waited.append(self)

        def elapsed_time(self, later: Mark) -> float:
            assert waited, "the device may not have come here"
            return 1000 * (later.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Mark)
    stopwatch = Stopwatch(torch.device("cuda"))
    for name, seconds in (("wait", 1.0), ("copy", 2.0), ("wait", 4.0)):
        Queue.now += seconds
        passed(clock, stopwatch, **{name: 64.0})
    assert not waited
    last = stopwatch.marks[-1][1]
    assert stopwatch.read() == {"wait": 5, "copy": 2}
    assert waited == [last]
    Queue.now += 8
    stopwatch.lap("copy")
    assert stopwatch.read() == {"copy": 8}
