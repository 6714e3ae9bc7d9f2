"""What a killed run has left is found and ended, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from genray.runs import jsonl, processes
from genray.runs.processes import Process

PATIENCE_S = 60


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "processes.jsonl"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def known(process: subprocess.Popen[bytes], role: str = "learner 0") -> Process:
    found = Process.of(process.pid, role)
    assert found is not None
    return found


def test_a_process_runs_until_it_is_killed(sleeper: subprocess.Popen[bytes]) -> None:
    found = known(sleeper)
    assert (found.pid, found.role) == (sleeper.pid, "learner 0")
    assert found.is_alive()
    assert known(sleeper) == found
    sleeper.kill()
    wait_until(lambda: not found.is_alive())  # nobody has waited for it yet: it is a zombie
    assert Path(f"/proc/{sleeper.pid}").exists()
    assert Process.of(sleeper.pid, "learner 0") is None
    sleeper.wait()
    assert not found.is_alive()
    assert Process.of(sleeper.pid, "learner 0") is None


def test_an_id_alone_does_not_make_a_process(sleeper: subprocess.Popen[bytes]) -> None:
    found = known(sleeper)
    assert not replace(found, began=found.began - 1).is_alive()
    assert not replace(found, boot="another").is_alive()
    assert not replace(found, pid=os.getpid()).is_alive()


@pytest.mark.parametrize("name", [rb") Z 1 2 (", b"a\nb c", b"\xff\xfe"])
def test_a_process_may_be_called_anything(name: bytes) -> None:
    code = f"open('/proc/self/comm', 'wb').write({name!r}); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        before = known(process)
        process.stdout.readline()
        assert name in Path(f"/proc/{process.pid}/stat").read_bytes()
        assert known(process) == before
        process.kill()


def test_a_process_is_noted_with_its_role(file: Path, sleeper: subprocess.Popen[bytes]) -> None:
    processes.note(file, "driver")
    processes.note(file, "ray", sleeper.pid)
    assert [Process(**line) for line in jsonl.read(file)] == [
        Process.of(os.getpid(), "driver"),
        Process.of(sleeper.pid, "ray"),
    ]


def test_one_that_is_gone_is_not_noted(file: Path, sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    processes.note(file, "ray", sleeper.pid)
    assert not file.exists()


def test_all_that_is_below_a_process_is_found() -> None:
    with subprocess.Popen(["sh", "-c", "sh -c 'sleep 600; :' & sleep 600; :"]) as process:
        wait_until(lambda: len(processes.descendants(process.pid)) == 3)
        found = processes.descendants(process.pid)
        names = sorted(Path(f"/proc/{pid}/comm").read_text().strip() for pid in found)
        assert names == ["sh", "sleep", "sleep"]
        assert {process.pid, *found} <= set(processes.descendants(os.getpid()))
        for pid in (process.pid, *found):
            os.kill(pid, 9)
    assert processes.descendants(process.pid) == []


def test_what_is_left_over_is_killed_and_forgotten(file: Path, sleeper: subprocess.Popen[bytes]) -> None:
    processes.note(file, "driver", sleeper.pid)
    processes.note(file, "driver", sleeper.pid)
    expected = known(sleeper, "driver")
    assert processes.kill_left_over(file) == [expected]
    assert not expected.is_alive()
    assert sleeper.wait(PATIENCE_S) == -9
    assert not file.exists()
    assert processes.kill_left_over(file) == []


def test_what_only_has_the_id_of_a_noted_process_is_spared(file: Path, sleeper: subprocess.Popen[bytes]) -> None:
    found = known(sleeper)
    file.write_text(
        "".join(
            f'{{"pid": {other.pid}, "began": {other.began}, "boot": "{other.boot}", "role": "driver"}}\n'
            for other in (replace(found, began=found.began - 1), replace(found, boot="another"))
        )
    )
    assert processes.kill_left_over(file) == []
    assert found.is_alive()
    assert not file.exists()


def test_nobody_ends_itself(file: Path) -> None:
    processes.note(file, "driver")
    assert processes.kill_left_over(file) == []


def test_a_line_that_was_cut_off_is_passed_over(file: Path, sleeper: subprocess.Popen[bytes]) -> None:
    processes.note(file, "driver", sleeper.pid)
    with file.open("a") as out:
        out.write('{"pid": 1, "beg')
    assert [found.pid for found in processes.kill_left_over(file)] == [sleeper.pid]


def test_a_start_without_a_file_has_nothing_to_end(file: Path) -> None:
    assert processes.kill_left_over(file) == []
