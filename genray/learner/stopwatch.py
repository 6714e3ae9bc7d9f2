"""Where a learner's time goes, without waiting for its device."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch


class Stopwatch:
    """Seconds by phase: each lap books the time since the one before under its name.

    >>> stopwatch = Stopwatch(torch.device("cpu"))
    >>> batch = next(batches)
    >>> stopwatch.lap("wait")
    >>> step(batch)
    >>> stopwatch.lap("optimizer")
    >>> stopwatch.read()
    {'wait': 0.02, 'optimizer': 0.11}

    On a GPU laps are events in its queue: work of the CPU while the GPU is busy takes no time, and waiting for data
    takes as long as the GPU is really idle.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.start()

    def start(self) -> None:
        """Discard all laps and start from now."""
        self.marks: list[tuple[str, Any]] = [("", self._now())]

    def lap(self, name: str) -> None:
        """Book the time since the last lap, or the start, under this name."""
        self.marks.append((name, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds of each name since the start, and start again; waits for the device to reach the last lap."""
        seconds: dict[str, float] = defaultdict(float)
        if self.device.type == "cuda":
            self.marks[-1][1].synchronize()
        for (_, before), (name, now) in zip(self.marks, self.marks[1:], strict=False):
            seconds[name] += before.elapsed_time(now) / 1000 if self.device.type == "cuda" else now - before
        self.marks = [("", self.marks[-1][1])]
        return dict(seconds)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
