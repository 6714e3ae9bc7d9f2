"""What the processes below this one cost, apart from those that stand for generators and learners."""

from __future__ import annotations

import os
from pathlib import Path

from genray import processes

TICKS = os.sysconf("SC_CLK_TCK")
STAGES = ("MapWorker", "Consumer", "RayTrainWorker")
"""Titles of the processes that stand for generators and learners."""


def titles() -> dict[int, str]:
    """This process and all below it."""
    found = {}
    for pid in (os.getpid(), *processes.below(os.getpid())):
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
    return found


def staged(title: str) -> bool:
    """Whether a process stands for a generator or a learner."""
    return any(name in title for name in STAGES)


def generators() -> int:
    """How many processes stand for generators."""
    return sum(STAGES[0] in title for title in titles().values())


def others() -> list[int]:
    """The processes that stand for neither."""
    return [pid for pid, title in titles().items() if not staged(title)]


def cpu_s() -> dict[int, float]:
    """Seconds of CPU of each of the others since it began."""
    found = {}
    for pid in others():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[pid] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def between(before: dict[int, float], after: dict[int, float]) -> float:
    """Seconds of CPU from one look to the next."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def memory_mib() -> float:
    """Memory of the others; what several share counts once."""
    found = 0
    for pid in others():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found / 1024
