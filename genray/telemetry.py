"""What a run measures as metrics of Ray, whose nodes offer them to Prometheus; cluster/grafana shows them.

Prometheus has them with `ray_` before their names and, where they are counters, `_total` behind. Each has the label
`run`. They are the figures of metrics.jsonl, explained in docs/metrics.md, and two counters of each generator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from genray.records import Follower
from genray.rundir import RunDirectory

if TYPE_CHECKING:
    from genray.views import Block

PREFIX = "genray_"


class Exported(NamedTuple):
    """A metric, and the labels that it has beside the run."""

    description: str
    labels: tuple[str, ...] = ()
    counter: bool = False


METRICS = {
    "step": Exported("Optimiser steps made"),
    "loss": Exported("Loss, mean of the last window"),
    "knn": Exported("kNN accuracy on the validation images, 0 to 1"),
    "images_per_s": Exported("Views used by finished steps, images a second over all learners"),
    "rendered_per_s": Exported("Rendered images that arrived, a second over all learners"),
    "data_wait": Exported("Share of the learners' time spent waiting for a block, 0 to 1"),
    "generators": Exported("Generators, as seen in what arrived"),
    "generator_busy": Exported("Share of the generators' time spent rendering, 0 to 1"),
    "generators_useful": Exported("Generators with which the learners would never wait"),
    "view_age_s": Exported("Seconds from a block's rendering to its arrival"),
    "mib_ahead": Exported("MiB of rendered blocks that lie ready"),
    "step_ms": Exported("Milliseconds of a step by phase", ("phase",)),
    "faults": Exported("Faults that the run has met so far, by kind", ("fault",)),
    "steps_lost": Exported("Recorded steps that had to be made again so far"),
    "rendered_images": Exported("Images rendered by a generator", ("generator",), counter=True),
    "render_seconds": Exported("Seconds that a generator has spent rendering", ("generator",), counter=True),
}
"""By name, without the prefix."""


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind = metrics.Counter if METRICS[name].counter else metrics.Gauge
    return kind(PREFIX + name, description=METRICS[name].description, tag_keys=("run", *METRICS[name].labels))


def recorded(run: str, record: Mapping[str, Any]) -> None:
    """Export a record of metrics.jsonl."""
    for key, value in record.items():
        name, _, phase = key.partition(".")
        if name in METRICS and isinstance(value, int | float):
            _metric(name).set(value, {"run": run, **({"phase": phase} if phase else {})})


def rendered(run: str, block: Block) -> None:
    """Export what a generator has just rendered."""
    labels = {"run": run, "generator": str(block["generator"][0])}
    anchors, views = block["views"].shape[:2]
    _metric("rendered_images").inc(anchors * views, labels)
    _metric("render_seconds").inc(float(block["render_s"][0]), labels)


class Faults:
    """Exports how many faults of each kind a run has met, from its faults.jsonl, which many processes write."""

    def __init__(self, run: RunDirectory):
        self.run, self.lines = run.path.name, Follower(run.faults)
        self.kinds: Counter[str] = Counter()
        self.steps_lost = 0

    def look(self) -> None:
        """Read what is new and export it."""
        for line in self.lines.new():
            kind = str(line.get("fault"))
            self.kinds[kind] += 1
            self.steps_lost += line.get("steps_lost", 0)
            _metric("faults").set(self.kinds[kind], {"run": self.run, "fault": kind})
        _metric("steps_lost").set(self.steps_lost, {"run": self.run})
