"""Shows the progress of a run: a bar on a terminal, otherwise a line for each record of metrics.jsonl."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from genray.runs.jsonl import Follower, Record, tail


class Eta:
    """Estimates the seconds to the end of a run from its last 30 records."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._seen: deque[tuple[int, float]] = deque(maxlen=30)

    def __call__(self, record: Record) -> float | None:
        """The estimate after one more record; None until two records give a pace. A restart of the run starts over."""
        if self._seen and record["step"] <= self._seen[-1][0]:
            self._seen.clear()
        self._seen.append((record["step"], record["time"]))
        (first, began), (last, now) = self._seen[0], self._seen[-1]
        return (now - began) / (last - first) * (self._steps - last) if last > first else None


def record_line(record: Record, steps: int, eta_s: float | None, unit: str = "step") -> str:
    """A record of metrics.jsonl as text. Metrics that it lacks are left out; shares are in percent.

    >>> record_line({"step": 120, "loss": 3.2141, "images_per_s": 1812, "data_wait": 0.12}, steps=400, eta_s=83)
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


def fault_line(fault: dict[str, Any]) -> str:
    """A record of faults.jsonl as text.

    >>> fault_line({"fault": "generator failed", "ticket": 7, "error": "it hung: killed after 120 s"})
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
    """Shows a run from a background thread, until it is closed.

    On a terminal it is a bar that is redrawn in place, elsewhere a line for each record. Records that are already in
    the file, because the run is resumed, are not shown again.

    Args:
        path: of the run's metrics.jsonl, which need not exist yet.
        steps: of the whole run.
        out: where to write; standard error by default.
        log: path of the run's faults.jsonl, whose new records are shown too.
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
        """Show what happens until the next record, such as "starting Ray"."""
        with self._lock:
            self._phase, self._since = text, time.monotonic()
            if not self._terminal:
                self._print(text)

    def say(self, text: str) -> None:
        """Print a line that stays, such as a warning, above the bar. May be called from any thread."""
        with self._lock:
            drawn = self._drawn
            self._print(text)
            self._draw(drawn)

    def close(self) -> None:
        """Show the remaining records, and leave the last state of the bar on the screen."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            if self._terminal and self._drawn:
                self._print(self._last)

    def _follow(self) -> None:
        eta = Eta(self._steps)
        for records in tail(self._path, self._stop, self._start):
            self._show_faults()
            with self._lock:
                for record in records:
                    self._phase = ""
                    text = record_line(record, self._steps, eta(record), self._unit)
                    self._last = self._filled(record["step"]) + text
                    if not self._terminal:
                        self._print(text)
                waiting = f"{self._phase} ({time.monotonic() - self._since:.0f} s)" if self._phase else ""
                self._draw(waiting or self._last)

    def _show_faults(self) -> None:
        for fault in self._log.new() if self._log else ():
            self.say(fault_line(fault))

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
            # Carriage return, erase to the end of the line, and no more text than fits in one line.
            self._out.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
            self._out.flush()
