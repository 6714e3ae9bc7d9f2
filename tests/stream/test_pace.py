"""Ray Data's scheduling loop rests between its steps, and no longer than it has to."""

import time

import pytest

from genray.stream.pace import Pace


@pytest.fixture
def rests(monkeypatch):
    """The seconds that were slept, on a clock that only sleeping and `work` move on."""
    found, now = [], [100.0]

    def sleep(seconds):
        found.append(round(seconds, 6))
        now[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return found, now


def test_a_loop_that_has_nothing_to_do_rests_between_its_steps(rests):
    found, now = rests
    pace = Pace()
    for _ in range(3):
        now[0] += 0.005
        pace.on_execution_step(None)
    assert found == [0.0, Pace.STEP_S - 0.005, Pace.STEP_S - 0.005]


def test_a_step_that_takes_longer_is_not_held_up(rests):
    found, now = rests
    pace = Pace()
    for _ in range(2):
        now[0] += 2 * Pace.STEP_S
        pace.on_execution_step(None)
    assert found == [0.0, 0.0]
