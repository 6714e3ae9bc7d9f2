"""Where a learner's time goes, without waiting for its device."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch


class Stopwatch:
    """The seconds from one lap to the next belong to the name of the later one.

    On a GPU the laps are marks in its queue of work: what the processor does while the device is busy takes no time,
    and waiting for data takes as long as the device really stands still.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self.marks: list[tuple[str, Any]] = [("", self._now())]

    def lap(self, name: str) -> None:
        """What has happened since the last lap is called this."""
        self.marks.append((name, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds of each name since the start, which is now again; waits until the device has come here."""
        found: dict[str, float] = defaultdict(float)
        if self.device.type == "cuda":
            self.marks[-1][1].synchronize()
        for (_, before), (name, now) in zip(self.marks, self.marks[1:], strict=False):
            found[name] += before.elapsed_time(now) / 1000 if self.device.type == "cuda" else now - before
        self.marks = [("", self.marks[-1][1])]
        return dict(found)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
