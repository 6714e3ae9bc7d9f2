"""Writes the learners' reports to the run's files, and counts their failures.

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

from genray.config.errors import Hopeless, Remedy, UserError, reason_of
from genray.learner import balance
from genray.runs import checkpoint as checkpoints
from genray.runs import faults, jsonl, processes, store, telemetry
from genray.stream.run import Run

REMEMBERED_STEPS = 20_000
"""Latest steps whose checksums are kept, to compare them when learners repeat steps after a restart."""


class CrashLoop(Hopeless):
    """The learners failed again and again without a new checkpoint."""


class Recorder(UserCallback):
    """Ray Train's callback that appends to a run's metrics.jsonl and batches.jsonl, each step once.

    >>> recorder = Recorder(run)
    >>> recorder.after_report(None, metrics=[{"step": 20, "loss": 2.0}, {"step": 20, "loss": 4.0}], checkpoint=None)
    >>> jsonl.last(run.directory.metrics)
    {'time': 1767225600.0, 'step': 20, 'loss': 3.0}

    A record of metrics.jsonl is the mean over the learners; steps that learners repeat after a restart are skipped.
    More than `learners.max_failures` failures without a new checkpoint between them end the run.
    """

    def __init__(self, run: Run):
        self.run, self.config = run.directory, run.config
        self.reached: int | None = None
        """Last step in metrics.jsonl; None until the first report."""
        self.failures, self.preempted = 0, False
        self.steps: OrderedDict[int, dict[str, Any]] = OrderedDict()
        """The latest lines of batches.jsonl by their steps."""
        self.written = 0
        """Last step in batches.jsonl."""
        self.differed = False
        self.fault_exporter = telemetry.FaultExporter(self.run)

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if self.reached is None:
            self._begin()
        self.preempted = False
        if checkpoint is not None:
            self.failures = 0
            jsonl.flush(self.run.metrics, self.run.batches)
            if stored := store.of(self.run.path):
                with suppress(UserError):  # the store is out of reach; the mirror uploads them later
                    stored.upload(self.run.metrics, self.run.metrics.name)
                    stored.upload(self.run.batches, self.run.batches.name)
        if not metrics or "step" not in metrics[0]:
            return
        batches = [record.pop("batches", []) for record in metrics]
        self._record_batches(batches[0])  # all learners report the same
        if metrics[0]["step"] <= self.reached:
            return  # repeated by learners that restarted from a checkpoint
        self.reached = metrics[0]["step"]
        measured = [balance.Measurements(**record.pop("measured")) for record in metrics if "measured" in record]
        record = {"time": time.time(), **mean_record(metrics), **self._balance(measured)}
        jsonl.append(self.run.metrics, record)
        telemetry.export_record(self.config.name, record)
        self.fault_exporter.update()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Log a failure, and end the run if restarting the learners would not help."""
        lost = {"ranks": sorted(worker_exceptions), "steps_lost": self._steps_lost()}
        if any(map(_preempted, worker_exceptions.values())):
            if not self.preempted:  # raised at each poll until the last learner is gone
                faults.note(self.run.faults, faults.NODE_PREEMPTED, **lost)
            self.preempted = True
            return
        self.failures += 1
        errors = list(worker_exceptions.values())
        reasons = [reason for error in errors if (reason := reason_of(error))]
        message = reasons[0].message if reasons else _last_line("".join(traceback.format_exception_only(errors[0])))
        faults.note(self.run.faults, faults.LEARNERS_FAILED, **lost, error=message)
        self.fault_exporter.update()
        for reason in reasons:
            if reason.remedy is Remedy.USER:
                raise UserError(reason.message)
            if reason.remedy is Remedy.NONE:
                raise Hopeless(reason.message)
        if self.failures > self.config.learners.max_failures:
            raise CrashLoop(
                f"the learners failed {self.failures} times without a new checkpoint; the last error: {message}"
            )

    def _begin(self) -> None:
        """Continue the files of the run as they are."""
        processes.note(self.run.processes, "controller")
        for path in (self.run.metrics, self.run.batches):
            _drop_half_line(path)
        self.reached = jsonl.last(self.run.metrics).get("step", -1)
        self.steps = OrderedDict((line["step"], line) for line in jsonl.read(self.run.batches)[-REMEMBERED_STEPS:])
        self.written = max(self.steps, default=0)

    def _steps_lost(self) -> int:
        """Recorded steps that have to be made again."""
        return max(0, self.written - checkpoints.last_step(self.run.path))

    def _balance(self, measured: list[balance.Measurements]) -> dict[str, float]:
        if not measured:
            return {}
        stream = self.config.stream
        fewest = self.config.pool.bounds.least if self.config.render_on == "pool" else 1
        metrics = balance.metrics(measured, stream.batch_size * stream.num_views, fewest)
        return {"learners": len(measured), **metrics}

    def _record_batches(self, batches: list[dict[str, Any]]) -> None:
        """Append the lines of new steps. A repeated step must have seen the same data, by any number of learners."""
        new = [line for line in batches if line["step"] > self.written]
        for line in batches:
            before = self.steps.get(line["step"])
            if before and _checksums(before) != _checksums(line) and not self.differed:
                self.differed = True  # logged once: on other hardware every step may differ
                faults.note(self.run.faults, faults.REPLAYED_DIFFERENTLY, was=before, now=line)
        self.steps.update((line["step"], line) for line in new)
        self.written = max([self.written, *(line["step"] for line in new)])
        while len(self.steps) > REMEMBERED_STEPS:
            self.steps.popitem(last=False)
        jsonl.append(self.run.batches, *new)


def _checksums(line: dict[str, Any]) -> tuple[str, str]:
    return line["latents"], line["pixels"]


def mean_record(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """One record from those of all learners: the mean of each metric over the learners that have it."""
    keys = dict.fromkeys(key for one in metrics for key in one)
    record = {}
    for key in keys:
        values = [one[key] for one in metrics if key in one]
        record[key] = values[0] if key in ("step", "anchors") else sum(values) / len(values)
    return record


def _preempted(error: Exception) -> bool:
    """Whether a learner died with a node that had given notice of its preemption."""
    return bool(getattr(getattr(error, "health_check_failure", error), "preempted", False))


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _drop_half_line(path: Path) -> None:
    """Cut off a line that a killed writer left unfinished; followers of the file have not read it yet."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)
