"""The processes of a run on this machine, recorded so that the next start can kill any that are left over.

A process is identified by its id, its start time and the boot, since the id may be reused by another program.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from genray.runs import jsonl

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
KILL_TIMEOUT_S = 10.0
"""Seconds to wait for killed processes to disappear."""


@dataclass(frozen=True)
class Process:
    """A process: its id, start time in clock ticks since the boot, id of the boot, and role in the run."""

    pid: int
    began: int
    boot: str
    role: str

    @classmethod
    def of(cls, pid: int, role: str) -> Process | None:
        """The current process with this id; None if there is none, or no /proc."""
        began = _began(pid)
        return None if began is None else cls(pid, began, BOOT_ID_FILE.read_text().strip(), role)

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return (
            BOOT_ID_FILE.exists() and BOOT_ID_FILE.read_text().strip() == self.boot and _began(self.pid) == self.began
        )


def note(file: Path, role: str, pid: int | None = None) -> None:
    """Record a process in the file; this process if no id is given."""
    if process := Process.of(pid or os.getpid(), role):
        jsonl.append(file, asdict(process))


def descendants(pid: int) -> list[int]:
    """Ids of the children of a process and of all their descendants; empty if there is no /proc."""
    children: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += [int(child) for child in file.read_text().split()]
        except OSError:  # the thread has ended
            continue
    return children + [pid for child in children for pid in descendants(child)]


def kill_left_over(file: Path) -> list[Process]:
    """Kill the recorded processes that are still alive, wait until they are gone, and delete the file.

    Returns:
        The processes that are gone, sorted by id.
    """
    recorded = {Process(**line) for line in jsonl.read(file)}
    left = sorted((each for each in recorded if each.pid != os.getpid() and each.is_alive()), key=lambda each: each.pid)
    for process in left:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while any(process.is_alive() for process in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    file.unlink(missing_ok=True)
    return [process for process in left if not process.is_alive()]


def _began(pid: int) -> int | None:
    """Start time of a process in clock ticks since the boot; None if it is gone or a zombie."""
    try:
        # The name, in brackets, may contain anything. After it come the state, a letter, and numbers.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
