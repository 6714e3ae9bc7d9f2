"""A run's measurements as Ray metrics, which Ray's nodes export to Prometheus; cluster/grafana displays them.

In Prometheus their names start with `ray_genray_`, and those of counters end with `_total`. All have the label `run`.
They are the values of metrics.jsonl, explained in docs/metrics.md, and two counters per generator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from genray.runs.directory import RunDirectory
from genray.runs.jsonl import Follower

METRIC_PREFIX = "genray_"


class MetricSpec(NamedTuple):
    """An exported metric, and its labels in addition to `run`."""

    description: str
    labels: tuple[str, ...] = ()
    counter: bool = False


METRICS = {
    "step": MetricSpec("Optimiser steps made"),
    "loss": MetricSpec("Loss, mean over the last window"),
    "knn": MetricSpec("kNN accuracy on the validation images, 0 to 1"),
    "images_per_s": MetricSpec("Views used by finished steps, per second over all learners"),
    "rendered_per_s": MetricSpec("Rendered images that arrived, per second over all learners"),
    "data_wait": MetricSpec("Fraction of the learners' time spent waiting for a block"),
    "generators": MetricSpec("Generators whose blocks arrived"),
    "generator_busy": MetricSpec("Fraction of the generators' time spent rendering"),
    "generators_useful": MetricSpec("Generators needed so that the learners never wait"),
    "view_age_s": MetricSpec("Seconds from a block's rendering to its arrival"),
    "mib_ahead": MetricSpec("MiB of rendered blocks that are ready"),
    "step_ms": MetricSpec("Milliseconds of a step, by phase", ("phase",)),
    "faults": MetricSpec("Faults in the run so far, by kind", ("fault",)),
    "steps_lost": MetricSpec("Recorded steps that had to be repeated so far"),
    "rendered_images": MetricSpec("Images that a generator has rendered", ("generator",), counter=True),
    "render_seconds": MetricSpec("Seconds that a generator has spent rendering", ("generator",), counter=True),
}
"""By name, without `METRIC_PREFIX`."""


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind = metrics.Counter if METRICS[name].counter else metrics.Gauge
    return kind(METRIC_PREFIX + name, description=METRICS[name].description, tag_keys=("run", *METRICS[name].labels))


def export_record(run: str, record: Mapping[str, Any]) -> None:
    """Export a record of metrics.jsonl of the run with this name."""
    for key, value in record.items():
        name, _, phase = key.partition(".")
        if name in METRICS and isinstance(value, int | float):
            _metric(name).set(value, {"run": run, **({"phase": phase} if phase else {})})


def export_rendered(run: str, generator: str, images: int, seconds: float) -> None:
    """Count images that a generator has just rendered, and the seconds that they took."""
    labels = {"run": run, "generator": generator}
    _metric("rendered_images").inc(images, labels)
    _metric("render_seconds").inc(seconds, labels)


class FaultExporter:
    """Exports how many faults of each kind a run has had, read from its faults.jsonl, which many processes write."""

    def __init__(self, run: RunDirectory):
        self.run, self.lines = run.path.name, Follower(run.faults)
        self.kinds: Counter[str] = Counter()
        self.steps_lost = 0

    def update(self) -> None:
        """Read the new faults and export the counts."""
        for line in self.lines.new():
            kind = str(line.get("fault"))
            self.kinds[kind] += 1
            self.steps_lost += line.get("steps_lost", 0)
            _metric("faults").set(self.kinds[kind], {"run": self.run, "fault": kind})
        _metric("steps_lost").set(self.steps_lost, {"run": self.run})
