"""Learners, and the actors of Ray that serve them, killed and frozen while a run goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from harness import COMPARABLE, COMPARABLE_RTOL, Run

pytestmark = pytest.mark.ray


def test_a_run_survives_the_loss_of_each_part(tmp_path: Path) -> None:
    # A reservation that outlived its controller would leave no room for the next learner.
    room = (os.cpu_count() or 2) - 1.25
    run = Run(tmp_path, "learners", learners={"num_cpus": round(0.8 * room, 2)})
    run.start()
    run.wait_for(lambda: run.step() >= 14)
    lost = []
    for role, number in (
        ("learner", signal.SIGKILL),
        ("learner", signal.SIGSTOP),
        ("coordinator", signal.SIGKILL),
        ("controller", signal.SIGKILL),
    ):
        failures = len(run.faults())
        run.hurt(role, number)
        run.wait_for(lambda failures=failures: len(run.faults()) > failures)
        run.progress(24)
        lost.append(run.faults()[failures]["fault"])
    assert lost == ["learners failed"] * 3 + ["controller failed"]
    assert run.stop() == 75
    run.assert_exact()


@pytest.mark.slow
def test_the_loss_of_one_of_two_learners_restarts_both(tmp_path: Path) -> None:
    run = Run(tmp_path, "two", learners={"num_workers": 2}, **COMPARABLE)
    run.start()
    run.wait_for(lambda: run.step() >= 14)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        failures = len(run.faults())
        run.hurt("learner", number)
        run.wait_for(lambda failures=failures: len(run.faults()) > failures)
        run.progress(24)
    assert {fault["fault"] for fault in run.faults()} == {"learners failed"}
    assert run.stop() == 75
    run.assert_exact(COMPARABLE_RTOL)
