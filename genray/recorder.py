"""The controller's side of a run: reports of the learners become lines of its files, and failures are counted.

Ray Train runs it in its controller, on the driver's node; the driver follows the files.
"""

from __future__ import annotations

import time
import traceback
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from genray import balance, faults, processes, records, storage, telemetry
from genray import checkpoint as checkpoints
from genray.config import Config
from genray.rundir import RunDirectory
from genray.settings import UserError, reason_in

REMEMBERED = 20_000
"""Steps that a repetition is compared with."""

HOPELESS = ("NotFinite", "OutOfOrder", "StartFailed", "TicketFailed")


class Hopeless(Exception):
    """Trying again would end the same way."""


class CrashLoop(Exception):
    """The learners failed again and again without getting on."""


class Recorder(UserCallback):
    """Appends a record for each report, the learners' mean, and a line for each step; none for what is there already.

    Args:
        config: the run; more failures of its learners in a row than `learners.max_failures`, without a new checkpoint,
            are not survived.
    """

    def __init__(self, config: Config):
        self.run, self.config = RunDirectory.of(config), config
        self.reached: int | None = None
        self.failures, self.preempted = 0, False
        self.steps: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self.written = 0
        self.differed = False
        self.exported = telemetry.Faults(self.run)

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if self.reached is None:
            self._take_up()
        self.preempted = False
        if checkpoint is not None:
            self.failures = 0
            records.settle(self.run.metrics, self.run.batches)
            if stored := storage.of(self.run.path):
                with suppress(UserError):  # the store is away; the mirror carries them when it is back
                    stored.put(self.run.metrics, self.run.metrics.name)
                    stored.put(self.run.batches, self.run.batches.name)
        if not metrics or "step" not in metrics[0]:
            return
        batches = [record.pop("batches", []) for record in metrics]
        self._record_batches(batches[0])  # all learners report the same
        if metrics[0]["step"] <= self.reached:
            return  # learners that restarted from a checkpoint repeat it
        self.reached = metrics[0]["step"]
        measured = [balance.Window(**record.pop("measured")) for record in metrics if "measured" in record]
        record = {"time": time.time(), **merged(metrics), **self._balance(measured)}
        records.append(self.run.metrics, record)
        telemetry.recorded(self.config.name, record)
        self.exported.look()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Note a failure, and end the run where another start of the learners would only meet it again."""
        lost = {"ranks": sorted(worker_exceptions), "steps_lost": self._lost()}
        if any(map(_preempted, worker_exceptions.values())):
            if not self.preempted:  # told at each poll until the last learner is gone
                faults.note(self.run.faults, "node taken away after its notice", **lost)
            self.preempted = True
            return
        self.failures += 1
        # An error that was raised in a learner comes without its traceback, and its text alone does not name it.
        errors = ["".join(traceback.format_exception_only(error)) for error in worker_exceptions.values()]
        reasons = [reason for error in errors if (reason := reason_in(error))]
        told = reasons[0].message if reasons else _last_line(errors[0])
        faults.note(self.run.faults, "learners failed", **lost, error=told)
        self.exported.look()
        for reason in reasons:
            if reason.mendable:
                raise UserError(reason.message)
            if reason.name in HOPELESS:
                raise Hopeless(reason.message)
        if self.failures > self.config.learners.max_failures:
            raise CrashLoop(
                f"the learners failed {self.failures} times without a new checkpoint; the last error: {told}"
            )

    def _take_up(self) -> None:
        processes.note(self.run.processes, "controller")
        for path in (self.run.metrics, self.run.batches):
            _drop_half_line(path)
        self.reached = records.last(self.run.metrics).get("step", -1)
        self.steps = OrderedDict((line["step"], line) for line in records.read(self.run.batches)[-REMEMBERED:])
        self.written = max(self.steps, default=0)

    def _lost(self) -> int:
        """Steps that are in the files and have to be made again."""
        return max(0, self.written - checkpoints.last_step(self.run.path))

    def _balance(self, measured: list[balance.Window]) -> dict[str, float]:
        if not measured:
            return {}
        stream, generators = self.config.stream, self.config.generators
        fewest = generators.bounds[0] if generators.mode == "pool" else 1
        found = balance.metrics(measured, stream.batch_size * stream.num_views, fewest)
        return {"learners": len(measured), **found}

    def _record_batches(self, batches: list[dict[str, Any]]) -> None:
        """Write the lines that are new. A step that is made again must have seen the same, whoever makes it."""
        new = [line for line in batches if line["step"] > self.written]
        for line in batches:
            before = self.steps.get(line["step"])
            if before and _seen(before) != _seen(line) and not self.differed:
                self.differed = True  # other hardware would say so at each step
                faults.note(self.run.faults, "replayed differently", was=before, now=line)
        self.steps.update((line["step"], line) for line in new)
        self.written = max([self.written, *(line["step"] for line in new)])
        while len(self.steps) > REMEMBERED:
            self.steps.popitem(last=False)
        records.append(self.run.batches, *new)


def _seen(line: dict[str, Any]) -> tuple[str, str]:
    return line["latents"], line["pixels"]


def merged(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """One record of several learners': the mean of each metric over those that have it."""
    keys = dict.fromkeys(key for record in metrics for key in record)
    found = {}
    for key in keys:
        values = [record[key] for record in metrics if key in record]
        found[key] = values[0] if key in ("step", "anchors") else sum(values) / len(values)
    return found


def _preempted(error: Exception) -> bool:
    """Whether a learner died with a node that had given notice."""
    return bool(getattr(getattr(error, "health_check_failure", error), "preempted", False))


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _drop_half_line(path: Path) -> None:
    """Cut off a line that a killed writer left unfinished; who follows the file has not taken it."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)
