"""The controller's side of a run: reports of the learners become lines of metrics.jsonl."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from genray.rundir import last_record
from genray.settings import reason_in

HOPELESS = ("NotFinite", "OutOfOrder")


class Hopeless(Exception):
    """Trying again would end the same way."""


class Recorder(UserCallback):
    """Appends one record for each step reported, the learners' mean, and none for a step that is already there.

    Ray Train runs it in its controller, on the driver's node; the driver follows the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.reached: int | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if not metrics or "step" not in metrics[0]:
            return
        if self.reached is None:
            _drop_half_line(self.path)
            self.reached = last_record(self.path).get("step", -1)
        if metrics[0]["step"] <= self.reached:
            return  # learners that restarted from a checkpoint repeat it
        self.reached = metrics[0]["step"]
        record = {"time": time.time(), **merged(metrics)}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """End a run at once for a reason that another start of the learners would only meet again."""
        for error in worker_exceptions.values():
            if (reason := reason_in(str(error))) and reason.name in HOPELESS:
                raise Hopeless(reason.message)


def merged(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """One record of several learners': the mean of each metric over those that have it."""
    keys = dict.fromkeys(key for record in metrics for key in record)
    found = {}
    for key in keys:
        values = [record[key] for record in metrics if key in record]
        found[key] = values[0] if key in ("step", "anchors") else sum(values) / len(values)
    return found


def _drop_half_line(path: Path) -> None:
    """Cut off a line that a killed writer left unfinished; who follows the file has not taken it."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)
