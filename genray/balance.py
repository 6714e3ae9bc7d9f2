"""Which side of a run is the bottleneck, from what travels with the blocks and from where the learners' time goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from genray.plan import MIB
from genray.views import Block

PHASES = ("wait", "copy", "augment", "forward_backward", "optimizer", "other")
"""Of a learner's time: waiting for blocks (or rendering them itself), and the parts of a step."""
EVEN = 1.1
"""Ratio of the two sides' speeds up to which they count as balanced."""


@dataclass
class Window:
    """What one learner measures between two records."""

    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each phase."""
    blocks: int = 0
    images: int = 0
    """Rendered images that arrived."""
    mib: float = 0.0
    render_s: float = 0.0
    """Seconds that generators took for what arrived."""
    age_s: float = 0.0
    """Sum over the blocks of the seconds from the end of their rendering to their arrival."""
    generators: list[str] = field(default_factory=list)

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


def metrics(windows: Sequence[Window], views_per_step: int, fewest_generators: int) -> dict[str, float]:
    """A window of all learners as metrics.

    `generators_useful` is how many generators would keep the learners from ever waiting: the seconds of rendering that
    went into what they used, for each second in which they did not wait.

    Args:
        windows: one of each learner, over the same steps.
        views_per_step: augmented views of one step, over all learners.
        fewest_generators: how many there are at the least.
    """
    learners = len(windows)
    elapsed = sum(sum(window.seconds.values()) for window in windows) / learners
    seconds = {name: sum(window.seconds.get(name, 0.0) for window in windows) / learners for name in PHASES}
    steps = windows[0].steps
    found = {"images_per_s": steps * views_per_step / elapsed, "data_wait": seconds["wait"] / elapsed}
    found |= {f"step_ms.{name}": 1000 * value / steps for name, value in seconds.items()}
    blocks = sum(window.blocks for window in windows)
    if not blocks:
        return found
    generators = max(fewest_generators, len({name for window in windows for name in window.generators}))
    render_s, age_s = (sum(getattr(window, name) for window in windows) for name in ("render_s", "age_s"))
    return found | {
        "rendered_per_s": sum(window.images for window in windows) / elapsed,
        "generators": generators,
        "generator_busy": min(1.0, render_s / (elapsed * generators)),
        "generators_useful": render_s / max(1e-9, elapsed - seconds["wait"]),
        "view_age_s": age_s / blocks,
        # What lies ready is what arrives in the time that it lies there (Little's law).
        "mib_ahead": sum(window.mib for window in windows) / elapsed * age_s / blocks,
    }


def over_a_run(records: Sequence[dict[str, Any]], after: int = 0) -> float:
    """`generators_useful` of a run after a step: of its records, each by the time in which the learners did not wait.

    A record that has none, because no block arrived in its window, counts as 0.
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
    """`generators`, `learners`, or `neither` where the two sides are even."""
    if useful > EVEN * generators:
        return "generators"
    return "learners" if generators > EVEN * useful else "neither"


def advice(mode: str, generators: float, useful: float, learners: float, reuse: int) -> str:
    """What a run's balance says about its configuration, in one sentence."""
    if mode == "inline":
        return (
            f"each learner renders for {useful / (useful + learners):.0%} of its time; "
            f"with devices of their own, {useful:.1f} generators would keep up with {_count(learners, 'learner')}"
        )
    there = f"there {'is' if round(generators) == 1 else 'are'} {generators:g}"
    side = bottleneck(generators, useful)
    if side == "generators":
        again = -(-reuse * useful // generators)
        return (
            f"generators are the bottleneck: the learners could use {useful:.1f} generators, {there} "
            f"(or use each view {again:.0f} times instead of {reuse}: stream.reuse, in a new run)"
        )
    if side == "learners":
        return (
            f"learners are the bottleneck: {useful:.1f} generators would do, {there}, "
            f"which could feed {learners * generators / useful:.1f} learners instead of {learners:g}"
        )
    return f"generators and learners are in balance: {useful:.1f} generators are of use, {there}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
