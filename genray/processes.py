"""The processes of a run on this machine, noted by id and start time, so that a next start can end what was left.

An id alone may belong to another program by then; with the start time and the boot it was read in, it is one process.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from genray import records

BOOT = Path("/proc/sys/kernel/random/boot_id")
GONE_WITHIN_S = 10.0


@dataclass(frozen=True)
class Process:
    """One process: its id, when it began in ticks since the boot, the boot, and what it does in the run."""

    pid: int
    began: int
    boot: str
    role: str

    @classmethod
    def of(cls, pid: int, role: str) -> Process | None:
        """The process of this id as it is now; None where there is none, or no /proc."""
        began = _began(pid)
        return None if began is None else cls(pid, began, BOOT.read_text().strip(), role)

    def runs(self) -> bool:
        """Whether it is alive."""
        return BOOT.exists() and BOOT.read_text().strip() == self.boot and _began(self.pid) == self.began


def note(file: Path, role: str, pid: int | None = None) -> None:
    """Add a process to the file; this one where no id is given."""
    if found := Process.of(pid or os.getpid(), role):
        records.append(file, asdict(found))


def below(pid: int) -> list[int]:
    """Ids of the children of a process, and of theirs; empty where there is no /proc."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in file.read_text().split()]
        except OSError:  # the thread has ended
            continue
    return found + [further for child in found for further in below(child)]


def end_left_over(file: Path) -> list[Process]:
    """Kill those in the file that are still alive, wait until they are gone, and forget all; returns the killed."""
    left = {Process(**line) for line in records.read(file)}
    killed = sorted((found for found in left if found.pid != os.getpid() and found.runs()), key=lambda p: p.pid)
    for found in killed:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(found.pid, signal.SIGKILL)
    deadline = time.monotonic() + GONE_WITHIN_S
    while any(found.runs() for found in killed) and time.monotonic() < deadline:
        time.sleep(0.05)
    file.unlink(missing_ok=True)
    return [found for found in killed if not found.runs()]


def _began(pid: int) -> int | None:
    """Start time of a process in clock ticks since the boot; None for one that is gone, or only waits to be reaped."""
    try:
        # The name, in brackets, may hold anything; the fields after it are numbers and a letter for the state.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
