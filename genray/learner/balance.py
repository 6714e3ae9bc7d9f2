"""Which side of a run is the bottleneck, from measurements in the blocks and from where the learners' time goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from genray.stream.plan import MIB
from genray.views.types import Block

PHASES = ("wait", "copy", "augment", "forward_backward", "optimizer", "other")
"""Phases of a learner's time: waiting for blocks (or rendering them itself), and the parts of a step."""
BALANCED_RATIO = 1.1
"""Largest ratio of the two sides' speeds that counts as balanced."""


@dataclass
class Measurements:
    """What one learner measures in a window, between two records."""

    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase."""
    blocks: int = 0
    """Blocks that arrived."""
    images: int = 0
    """Rendered images in them."""
    mib: float = 0.0
    """MiB of pixels in them."""
    render_s: float = 0.0
    """Seconds that generators took to render them."""
    age_s: float = 0.0
    """Sum over the blocks of the seconds from rendered to arrived."""
    generators: list[str] = field(default_factory=list)
    """Names of the generators that rendered them."""

    def arrived(self, block: Block) -> None:
        """Count a block."""
        anchors, views = block["views"].shape[:2]
        self.blocks += 1
        self.images += anchors * views
        self.mib += block["views"].nbytes / MIB
        self.render_s += float(block["render_s"][0])
        self.age_s += time.time() - float(block["created_at"][0])
        if (generator := str(block["generator"][0])) not in self.generators:
            self.generators.append(generator)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def metrics(measured: Sequence[Measurements], views_per_step: int, fewest_generators: int) -> dict[str, float]:
    """The metrics of a window, from the measurements of all learners; docs/metrics.md explains each.

    `generators_useful` is how many generators would keep the learners from ever waiting: seconds of rendering in what
    they used, per second in which they did not wait.

    Args:
        measured: of each learner, over the same steps.
        views_per_step: augmented views of one step, over all learners.
        fewest_generators: lower bound on the number of generators; some may not have delivered in this window.
    """
    learners = len(measured)
    elapsed = sum(sum(one.seconds.values()) for one in measured) / learners
    seconds = {name: sum(one.seconds.get(name, 0.0) for one in measured) / learners for name in PHASES}
    steps = measured[0].steps
    of_learners = {"images_per_s": steps * views_per_step / elapsed, "data_wait": seconds["wait"] / elapsed}
    of_learners |= {f"step_ms.{name}": 1000 * value / steps for name, value in seconds.items()}
    blocks = sum(one.blocks for one in measured)
    if not blocks:
        return of_learners
    generators = max(fewest_generators, len({name for one in measured for name in one.generators}))
    render_s, age_s = (sum(getattr(one, name) for one in measured) for name in ("render_s", "age_s"))
    return of_learners | {
        "rendered_per_s": sum(one.images for one in measured) / elapsed,
        "generators": generators,
        "generator_busy": min(1.0, render_s / (elapsed * generators)),
        "generators_useful": render_s / max(1e-9, elapsed - seconds["wait"]),
        "view_age_s": age_s / blocks,
        # Little's law: what lies ready is what arrives within the time that a block lies there.
        "mib_ahead": sum(one.mib for one in measured) / elapsed * age_s / blocks,
    }


def mean_generators_useful(records: Sequence[dict[str, Any]], after: int = 0) -> float:
    """Mean of `generators_useful` over a run's records after a step, weighted by the time the learners did not wait.

    A record without it, because no block arrived in its window, counts as 0.
    """
    total = useful = 0.0
    step = 0
    for record in records:
        if record["step"] <= after:
            step = record["step"]
            continue
        busy = (record["step"] - step) * sum(record.get(f"step_ms.{phase}", 0.0) for phase in PHASES if phase != "wait")
        step = record["step"]
        total += busy
        useful += busy * record.get("generators_useful", 0.0)
    return useful / total if total else 0.0


def bottleneck(generators: float, useful: float) -> str:
    """`generators`, `learners`, or `neither` if the two sides are balanced."""
    if useful > BALANCED_RATIO * generators:
        return "generators"
    return "learners" if generators > BALANCED_RATIO * useful else "neither"


def advice(render_on: str, generators: float, useful: float, learners: float, reuse: int) -> str:
    """What a run's balance suggests for its configuration, in one sentence.

    Args:
        render_on: as configured, `pool` or `learners`.
        generators: how many there are.
        useful: how many would keep the learners from ever waiting.
        learners: how many there are.
        reuse: how often each view is used.
    """
    if render_on == "learners":
        return (
            f"each learner renders for {useful / (useful + learners):.0%} of its time; "
            f"on separate devices, {useful:.1f} generators would keep up with {_count(learners, 'learner')}"
        )
    there = f"there {'is' if round(generators) == 1 else 'are'} {generators:g}"
    side = bottleneck(generators, useful)
    if side == "generators":
        uses = -(-reuse * useful // generators)
        return (
            f"generators are the bottleneck: the learners could use {useful:.1f} generators, {there} "
            f"(or use each view {uses:.0f} times instead of {reuse}: stream.reuse, in a new run)"
        )
    if side == "learners":
        return (
            f"learners are the bottleneck: {useful:.1f} generators would do, {there}, "
            f"which could feed {learners * generators / useful:.1f} learners instead of {learners:g}"
        )
    return f"generators and learners are balanced: {useful:.1f} generators would do, {there}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
