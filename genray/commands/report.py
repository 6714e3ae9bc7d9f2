"""The report of a finished run, `report.json`, and what of it goes to MLflow."""

from __future__ import annotations

import platform
import statistics
import time
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from genray.learner import balance
from genray.runs import faults, jsonl
from genray.stream.run import Run

REPORT_PACKAGES = ("genray", "ray", "torch", "torchvision", "timm", "mlflow", "numpy")
"""Packages whose versions are reported."""
MARKS = ("command", "Ray started", "learner started", "model built", "first block", "first step")
"""Milestones of the start-up, in their order."""
MEDIANS = (
    "images_per_s",
    "rendered_per_s",
    "data_wait",
    "generators",
    "generator_busy",
    "generators_useful",
    "view_age_s",
    "mib_ahead",
    *(f"step_ms.{phase}" for phase in balance.PHASES),
)
"""Metrics whose medians over the run are in its report."""


def report_of(run: Run, marks: dict[str, float], probes: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The report of a finished run.

    Args:
        run: whose files are read.
        marks: when each of `MARKS` was reached, in seconds since 1970.
        probes: accuracies of each encoder that was judged.
    """
    config, directory = run.config, run.directory
    records = jsonl.read(directory.metrics)

    def median(key: str) -> float | None:
        values = [record[key] for record in records if key in record]
        return round(statistics.median(values), 4) if values else None

    return {
        "name": config.name,
        "directory": str(directory.path),
        "probes": probes,
        "steps": config.training.steps,
        "loss": records[-1]["loss"] if records else None,
        **{key: median(key) for key in MEDIANS},
        "advice": _advice(run, median("generators"), records),
        "faults": faults.counts(directory.faults),
        "seconds_to_first_step": _durations(marks),
        "seconds_total": round(time.time() - marks["command"], 1),
        "seed": config.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in REPORT_PACKAGES}},
    }


def _advice(run: Run, generators: float | None, records: list[dict[str, Any]]) -> str | None:
    """What the balance of generators and learners suggests for the configuration; None if it was not measured."""
    start = run.plan.window if run.plan.reuse > 1 else 0  # with reuse, all of the first window is fresh
    useful = balance.mean_generators_useful(records, after=start)
    if not generators or not useful:
        return None
    learners = jsonl.last(run.directory.batches)["learners"]
    return balance.advice(run.config.render_on, generators, useful, learners, run.plan.reuse)


def _durations(marks: dict[str, float]) -> dict[str, float]:
    """Seconds from each milestone to the next, and their sum; empty for a run that was resumed after its last step."""
    if "first step" not in marks:
        return {}
    named = [(name, marks[name]) for name in MARKS if name in marks]
    durations = {name: round(now - before, 1) for (_, before), (name, now) in pairwise(named)}
    return {**durations, "total": round(marks["first step"] - marks["command"], 1)}


MLFLOW_MEDIANS = ("images_per_s", "data_wait", "generator_busy")
"""Medians that MLflow gets too, because the last value of these curves says little about a run."""


def tags_of(report: dict[str, Any]) -> dict[str, str]:
    """MLflow tags of a finished run: its hardware, its faults, and the advice."""
    tags = {f"world.{what}": f"{count:g}" for what, count in report.get("hardware", {}).items()}
    if report["faults"]:
        tags["faults"] = ", ".join(f"{fault}: {count}" for fault, count in report["faults"].items())
    return tags | ({"advice": report["advice"]} if report["advice"] else {})


def metrics_of(report: dict[str, Any]) -> dict[str, float]:
    """MLflow metrics of a finished run: `final.<encoder>.<probe>`, `median.<metric>`, `seconds.<what>` and `faults`."""
    metrics = {
        f"final.{encoder}.{probe}": value
        for encoder, probes in report["probes"].items()
        for probe, value in probes.items()
    }
    metrics |= {f"median.{key}": report[key] for key in MLFLOW_MEDIANS if report[key] is not None}
    metrics["faults"] = sum(report["faults"].values())
    metrics["seconds.total"] = report["seconds_total"]
    if first := report["seconds_to_first_step"].get("total"):
        metrics["seconds.to_first_step"] = first
    return metrics
