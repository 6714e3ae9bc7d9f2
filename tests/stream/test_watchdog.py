"""A process that takes too long over a piece of work is killed, however it hangs; one that does not is left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from genray.runs import faults, jsonl
from genray.runs.processes import Process
from genray.stream.attempts import Attempts
from genray.stream.tickets import Ticket

PATIENCE_S = 60
BEGIN = """
import os, signal, sys, time
from pathlib import Path
from genray.stream.watchdog import Watchdog
file = Path(sys.argv[1])
watchdog = Watchdog(float(sys.argv[2]), Path(sys.argv[3]))
"""


@contextmanager
def watched(code: str, file: Path, still_s: float = 600) -> Iterator[subprocess.Popen[str]]:
    """A process that runs this with a `watchdog` of its own and the `file` for its line."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + code, str(file), str(still_s), f"{file}.log"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(code: str, file: Path, still_s: float = 600) -> int:
    with watched(code, file, still_s) as process:
        return process.wait(PATIENCE_S)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_work_that_ends_in_time_is_left_alone(tmp_path: Path) -> None:
    code = """
for _ in range(3):
    with watchdog.limit(1, file):
        pass
try:
    with watchdog.limit(1, file):
        raise KeyError
except KeyError:
    pass
time.sleep(1.5)
"""
    assert ended(code, tmp_path / "attempts") == 0
    assert not (tmp_path / "attempts").exists()


def test_work_that_takes_too_long_is_killed_and_counts_as_a_failed_attempt(tmp_path: Path) -> None:
    found = Attempts(tmp_path, tmp_path / "faults.jsonl", 3, count_deaths=True)
    file = tmp_path / "24.jsonl"
    faults.note(file, "begun")
    assert ended("with watchdog.limit(.3, file): time.sleep(600)", file) == -signal.SIGKILL
    _, line = jsonl.read(file)
    assert line == {"time": line["time"], "fault": "failed", "error": "it hung: killed after 0.3 s"}
    with found.at(Ticket(3, np.arange(24, 32))):
        assert [fault["error"] for fault in jsonl.read(found.log)] == ["it hung: killed after 0.3 s"]


def test_the_limit_is_that_of_the_work_in_hand(tmp_path: Path) -> None:
    code = """
with watchdog.limit(600, file):
    pass
with watchdog.limit(.3):
    time.sleep(600)
"""
    assert ended(code, tmp_path / "attempts") == -signal.SIGKILL
    assert not (tmp_path / "attempts").exists()  # this work named no file


def test_a_process_that_is_frozen_is_killed(tmp_path: Path) -> None:
    code = "with watchdog.limit(.3, file): os.kill(os.getpid(), signal.SIGSTOP)"
    assert ended(code, tmp_path / "attempts") == -signal.SIGKILL
    assert len(jsonl.read(tmp_path / "attempts")) == 1


def test_a_process_that_is_frozen_between_two_pieces_of_work_is_killed_and_noted(tmp_path: Path) -> None:
    code = """
with watchdog.limit(600, file):
    pass
os.kill(os.getpid(), signal.SIGSTOP)
"""
    assert ended(code, tmp_path / "attempts", still_s=0.4) == -signal.SIGKILL
    assert not (tmp_path / "attempts").exists()
    (line,) = jsonl.read(tmp_path / "attempts.log")
    assert (line["fault"], line["error"]) == ("generator failed", "it hung between two tickets: killed after 0.4 s")
    assert {"time", "host"} <= line.keys()


def test_a_process_that_only_waits_for_work_is_left_alone(tmp_path: Path) -> None:
    assert ended("time.sleep(2)", tmp_path / "attempts", still_s=0.4) == 0


def test_work_that_keeps_its_process_from_any_sign_of_life_has_its_own_limit(tmp_path: Path) -> None:
    """Dividing a number this long holds the interpreter; afterwards there is time to show life again."""
    code = """
def hold(seconds):
    began = time.monotonic()
    size = 1 << 20
    while time.monotonic() - began < seconds:
        began_piece = time.monotonic()
        (1 << size) // 3
        size = size * 2 if time.monotonic() - began_piece < .5 else size
sys.setswitchinterval(60)
with watchdog.limit(600, file):
    hold(1.5)
"""
    assert ended(code, tmp_path / "attempts", still_s=0.4) == 0


def test_what_can_no_longer_be_watched_does_not_go_on(tmp_path: Path) -> None:
    code = """
watchdog.process.kill()
watchdog.process.wait()
with watchdog.limit(600, file):
    print("went on")
"""
    assert ended(code, tmp_path / "attempts") == -signal.SIGKILL


def test_it_is_killed_although_its_line_cannot_be_written(tmp_path: Path) -> None:
    code = "with watchdog.limit(.3, file): time.sleep(600)"
    assert ended(code, tmp_path / "no such directory" / "attempts") == -signal.SIGKILL


@pytest.mark.parametrize("during", ["work", "no work"])
def test_the_watchdog_ends_with_the_process_it_watches(tmp_path: Path, during: str) -> None:
    code = f"""
def rest():
    print(watchdog.process.pid, flush=True)
    time.sleep(600)
if {during!r} == "work":
    with watchdog.limit(600, file):
        rest()
rest()
"""
    with watched(code, tmp_path / "attempts") as process:
        assert process.stdout is not None
        watchdog = Process.of(int(process.stdout.readline()), "watchdog")
        assert watchdog is not None
        assert watchdog.is_alive()
        process.kill()
        wait_until(lambda: not watchdog.is_alive())
    assert not (tmp_path / "attempts").exists()


def test_the_watchdog_ends_with_a_process_that_ends_by_itself(tmp_path: Path) -> None:
    with watched("print(watchdog.process.pid)", tmp_path / "attempts") as process:
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    wait_until(lambda: Process.of(int(out), "watchdog") is None)


def test_signals_that_stop_a_run_do_not_end_its_watchdog_first(tmp_path: Path) -> None:
    code = """
def ignored():
    lines = Path(f"/proc/{watchdog.process.pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))
    return all(mask >> number - 1 & 1 for number in (signal.SIGTERM, signal.SIGINT))
while not ignored():
    time.sleep(.02)
for number in (signal.SIGTERM, signal.SIGINT):
    os.kill(watchdog.process.pid, number)
with watchdog.limit(.3, file):
    time.sleep(600)
"""
    assert ended(code, tmp_path / "attempts") == -signal.SIGKILL
