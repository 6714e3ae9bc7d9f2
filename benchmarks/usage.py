"""CPU time and memory of this process and its descendants, except those that simulate generators and learners."""

from __future__ import annotations

import os
from pathlib import Path

from genray.runs import processes

TICKS = os.sysconf("SC_CLK_TCK")
STAGES = ("MapWorker", "Consumer", "RayTrainWorker")
"""Parts of the titles of processes that simulate generators and learners."""


def titles() -> dict[int, str]:
    """Command lines of this process and its descendants, by process id."""
    by_pid = {}
    for pid in (os.getpid(), *processes.descendants(os.getpid())):
        try:
            by_pid[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
    return by_pid


def is_stage(title: str) -> bool:
    """Whether a process simulates a generator or a learner."""
    return any(name in title for name in STAGES)


def generators() -> int:
    """Number of processes that simulate generators."""
    return sum(STAGES[0] in title for title in titles().values())


def others() -> list[int]:
    """Ids of the other processes."""
    return [pid for pid, title in titles().items() if not is_stage(title)]


def cpu_s() -> dict[int, float]:
    """CPU seconds of each of the other processes since its start, by process id."""
    seconds = {}
    for pid in others():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        seconds[pid] = (int(fields[11]) + int(fields[12])) / TICKS
    return seconds


def between(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds between two results of `cpu_s`."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def memory_mib() -> float:
    """Memory of the other processes in MiB; shared memory counts once."""
    kib = 0
    for pid in others():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024
