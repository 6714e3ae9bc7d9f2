"""What a run was, at its end: `report.json`."""

from __future__ import annotations

import platform
import statistics
import time
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from genray import balance, faults, records
from genray.config import Config
from genray.plan import Plan
from genray.rundir import RunDirectory

PACKAGES = ("genray", "ray", "torch", "torchvision", "timm", "mlflow", "numpy")
MARKS = ("command", "Ray started", "learner started", "model built", "first block", "first step")
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


def report_of(
    config: Config, run: RunDirectory, marks: dict[str, float], probes: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """What a finished run's files and these results say.

    Args:
        marks: when the parts of the start-up were over, unix seconds, by their names in `MARKS`.
        probes: of each encoder that was judged, its accuracies.
    """
    found = records.read(run.metrics)

    def median(key: str) -> float | None:
        values = [record[key] for record in found if key in record]
        return round(statistics.median(values), 4) if values else None

    return {
        "name": config.name,
        "directory": str(run.path),
        "probes": probes,
        "steps": config.training.steps,
        "loss": found[-1]["loss"] if found else None,
        **{key: median(key) for key in MEDIANS},
        "advice": _advice(config, Plan.of(config), run, median("generators"), found),
        "faults": faults.counts(run.faults),
        "seconds_to_first_step": _durations(marks),
        "seconds_total": round(time.time() - marks["command"], 1),
        "seed": config.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def _advice(
    config: Config, plan: Plan, run: RunDirectory, generators: float | None, found: list[dict[str, Any]]
) -> str | None:
    """What the balance of generators and learners says about the configuration; None where it was not measured."""
    useful = balance.over_a_run(found, after=plan.window if plan.reuse > 1 else 0)  # all of the first window is fresh
    if not generators or not useful:
        return None
    learners = records.last(run.batches)["learners"]
    return balance.advice(config.generators.mode, generators, useful, learners, plan.reuse)


def _durations(marks: dict[str, float]) -> dict[str, float]:
    """Seconds from each mark of the start-up to the next, and their sum; empty for a run resumed at its end."""
    if "first step" not in marks:
        return {}
    named = [(name, marks[name]) for name in MARKS if name in marks]
    steps = {name: round(now - before, 1) for (_, before), (name, now) in pairwise(named)}
    return {**steps, "total": round(marks["first step"] - marks["command"], 1)}


SUMMED_UP = ("images_per_s", "data_wait", "generator_busy")
"""Medians of the report that MLflow has too: the last value of a curve says little about a run."""


def tags_of(report: dict[str, Any]) -> dict[str, str]:
    """What a run turned out to be: the machine it had, what it met, and what its balance advises."""
    found = {f"world.{what}": f"{count:g}" for what, count in report.get("hardware", {}).items()}
    if report["faults"]:
        found["faults"] = ", ".join(f"{fault}: {count}" for fault, count in report["faults"].items())
    return found | ({"advice": report["advice"]} if report["advice"] else {})


def metrics_of(report: dict[str, Any]) -> dict[str, float]:
    """Metrics named `final.<encoder>.<probe>`, `median.<metric>` and `seconds.<what>`, and the number of faults."""
    found = {
        f"final.{encoder}.{probe}": value
        for encoder, probes in report["probes"].items()
        for probe, value in probes.items()
    }
    found |= {f"median.{key}": report[key] for key in SUMMED_UP if report[key] is not None}
    found["faults"] = sum(report["faults"].values())
    found["seconds.total"] = report["seconds_total"]
    if first := report["seconds_to_first_step"].get("total"):
        found["seconds.to_first_step"] = first
    return found
