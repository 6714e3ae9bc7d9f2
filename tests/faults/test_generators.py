"""Generators that die, raise, hang and render nonsense, while a run goes on."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from harness import SETTINGS, Run

pytestmark = pytest.mark.ray

SURVIVED = ["exit", "leave", "raise", "nan", "constant", "hang"]


def test_a_run_survives_whatever_a_generator_does_once(tmp_path: Path) -> None:
    run = Run(tmp_path, "generators")
    run.start()
    run.wait_for(lambda: run.step() >= 8)
    told = []
    for fault in SURVIVED:
        before, (pid,) = len(run.faults()), run.pids("generator")
        run.order(fault)
        run.wait_for(lambda before=before: len(run.faults()) > before)
        run.wait_for(lambda pid=pid: (now := run.pids("generator")) and pid not in now)
        run.progress()
        told.append(run.faults()[-1])
        assert len(run.faults()) == before + 1
    run.hurt("generator", signal.SIGKILL)
    run.progress(20)
    run.hurt("generator", signal.SIGSTOP)
    run.progress(20)
    assert run.stop() == 75
    assert "generators was stopped and is resumable from step" in run.said
    for fault, error in {
        "exit": "died without an error",
        "leave": "SystemExit: 0",
        "raise": "RuntimeError: CUDA error",
        "nan": "not finite",
        "constant": "one constant colour",
        "hang": "it hung: killed after",
    }.items():
        assert error in told[SURVIVED.index(fault)]["error"]
    assert {fault["fault"] for fault in run.faults()} == {"generator failed"}  # no learner noticed
    run.assert_exact()


@pytest.mark.parametrize(
    ("fault", "attempts", "error"),
    [
        ("raise", 3, "RuntimeError: CUDA error"),
        pytest.param("nan", 2, "BadImages", marks=pytest.mark.slow),
        pytest.param("exit", 3, "it died without an error", marks=pytest.mark.slow),
        pytest.param("hang", 3, "it hung: killed after", marks=pytest.mark.slow),
    ],
)
def test_a_ticket_that_fails_in_every_process_ends_the_run_by_name(
    fault: str, attempts: int, error: str, tmp_path: Path
) -> None:
    run = Run(tmp_path, "doomed", pool={**SETTINGS["pool"], "start_timeout_s": 20})
    run.order(fault, times=1000)
    said = run.failed(patience_s=280)  # two tickets are in flight, and take turns to fail
    told = re.search(r"^genray: ticket ([01]) failed in (\d) fresh processes; the last error: (.*)", said, re.M)
    assert told, said
    assert int(told[2]) == attempts
    assert told[3].startswith(error)
    assert "Traceback" not in said
    assert len([found for found in run.faults() if found.get("ticket") == int(told[1])]) == attempts
