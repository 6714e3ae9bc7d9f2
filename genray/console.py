"""What a user sees of a run: one line per record of metrics.jsonl, or a bar on a terminal."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from genray.records import Follower, Record, tail


class Eta:
    """Seconds to the end, from the times and steps of the last records (30 at most)."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._seen: deque[tuple[int, float]] = deque(maxlen=30)

    def __call__(self, record: Record) -> float | None:
        """Takes the next record; None until two tell a pace. Learners that restart from a checkpoint start it anew."""
        if self._seen and record["step"] <= self._seen[-1][0]:
            self._seen.clear()
        self._seen.append((record["step"], record["time"]))
        (first, began), (last, now) = self._seen[0], self._seen[-1]
        return (now - began) / (last - first) * (self._steps - last) if last > first else None


def line(record: Record, steps: int, eta_s: float | None, unit: str = "step") -> str:
    """One record in words; what it does not hold is left out, shares are shown in percent.

    >>> line({"step": 120, "loss": 3.2141, "images_per_s": 1812, "data_wait": 0.12}, steps=400, eta_s=83)
    'step 120/400  loss 3.214  1 812 images/s  wait 12 %  eta 1:23'
    """
    parts = [f"{unit} {record['step']:>{len(str(steps))}}/{steps}"]
    for key, text in (
        ("loss", "loss {:.3f}"),
        ("latent_error", "latents {:.2f}"),
        ("class_accuracy", "classes {:.1%}"),
        ("spread", "spread {:.2f}"),
        ("images_per_s", "{:,.0f} images/s"),
        ("data_wait", "wait {:.0%}"),
        ("generator_busy", "generators {:.0%}"),
        ("knn", "kNN {:.1%}"),
    ):
        if record.get(key) is not None:
            parts.append(text.format(record[key]).replace(",", " ").replace("%", " %"))
    if eta_s is not None:
        parts.append(f"eta {clock(eta_s)}")
    return "  ".join(parts)


def told(fault: dict[str, Any]) -> str:
    """One line of faults.jsonl in words.

    >>> told({"fault": "generator failed", "ticket": 7, "error": "it hung: killed after 120 s"})
    'generator failed in ticket 7: it hung: killed after 120 s'
    """
    ticket = f" in ticket {fault['ticket']}" if "ticket" in fault else ""
    error = f": {fault['error']}" if "error" in fault else ""
    return f"{fault['fault']}{ticket}{error}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


class Progress:
    """Shows a run from a thread of its own, until it is closed.

    On a terminal a bar that is redrawn in place, elsewhere one line per record. Records that are in the file already
    (of the part of a run that is resumed) are not shown again.

    Args:
        path: the run's metrics.jsonl, which need not exist yet.
        steps: the run's last step.
        out: where to; standard error where it is not given.
        log: the run's faults.jsonl; each new line of it is told.
        unit: what a step is called.
    """

    def __init__(
        self, path: Path, steps: int, out: TextIO | None = None, log: Path | None = None, unit: str = "step"
    ) -> None:
        self._path, self._steps, self._out, self._unit = path, steps, out or sys.stderr, unit
        self._start = path.stat().st_size if path.exists() else 0
        self._log = Follower(log, log.stat().st_size if log.exists() else 0) if log else None
        self._terminal = self._out.isatty()
        self._bar = "━" if "utf" in (self._out.encoding or "").lower() else "="
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._phase, self._since = "", time.monotonic()
        self._drawn, self._last = "", ""
        self._thread = threading.Thread(target=self._follow, name="genray-progress", daemon=True)
        self._thread.start()

    def phase(self, text: str) -> None:
        """Says what is going on until the next record: "starting Ray", "starting learners"."""
        with self._lock:
            self._phase, self._since = text, time.monotonic()
            if not self._terminal:
                self._print(text)

    def say(self, text: str) -> None:
        """A line that stays, such as a warning; never in the middle of the bar. May be called from any thread."""
        with self._lock:
            drawn = self._drawn
            self._print(text)
            self._draw(drawn)

    def close(self) -> None:
        """Shows the records that are left and leaves the last state of the bar on the screen."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            if self._terminal and self._drawn:
                self._print(self._last)

    def _follow(self) -> None:
        eta = Eta(self._steps)
        for records in tail(self._path, self._stop, self._start):
            self._tell_faults()
            with self._lock:
                for record in records:
                    self._phase = ""
                    text = line(record, self._steps, eta(record), self._unit)
                    self._last = self._filled(record["step"]) + text
                    if not self._terminal:
                        self._print(text)
                waiting = f"{self._phase} ({time.monotonic() - self._since:.0f} s)" if self._phase else ""
                self._draw(waiting or self._last)

    def _tell_faults(self) -> None:
        for fault in self._log.new() if self._log else ():
            self.say(told(fault))

    def _filled(self, step: int, width: int = 20) -> str:
        done = min(width, width * step // self._steps)
        return self._bar * done + " " * (width - done) + "  "

    def _print(self, text: str) -> None:
        self._draw("")
        self._out.write(text + "\n" if text else "")
        self._out.flush()

    def _draw(self, text: str) -> None:
        if self._terminal and text != self._drawn:
            self._drawn = text
            # Carriage return, erase to the end of the line, and never more than fits in one.
            self._out.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
            self._out.flush()
