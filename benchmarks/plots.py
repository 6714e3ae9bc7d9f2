"""Draws the results of benchmarks/scaling.py: docs/scaling.png and docs/pool.png."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
BLUE, ORANGE, GREY = "#1f6fb2", "#d9731a", "#8a8a8a"

Record = dict[str, Any]
SCALING_PARTS = {"overlap", "ceiling", "long"}
"""Parts of the benchmark that docs/scaling.png needs."""


def spread(axes: Axes, records: Iterable[Record], x: str, y: str, color: str, label: str, dashed: bool = False) -> None:
    """Draw medians over the repetitions as a line, with minima and maxima as bars."""
    values: dict[float, list[float]] = {}
    for record in records:
        values.setdefault(record[x], []).append(record[y])
    places = sorted(values)
    middle = [statistics.median(values[place]) for place in places]
    below = [at - min(values[place]) for place, at in zip(places, middle, strict=True)]
    above = [max(values[place]) - at for place, at in zip(places, middle, strict=True)]
    style = "--" if dashed else "-"
    axes.errorbar(places, middle, [below, above], color=color, ls=style, marker="o", ms=4, capsize=3, label=label)


def scaling(report: Record, path: Path) -> None:
    """Draw efficiency by the number of generators, the limit of a stream, and the cost of a block in a long stream."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for learners, color in ((1, BLUE), (2, ORANGE)):
        for slower in ("generators", "learners"):
            chosen = [r for r in report["overlap"] if r["learners"] == learners and r["slower"] == slower]
            label = f"{learners} learner{'s' * (learners > 1)}, {slower} slower"
            spread(left, chosen, "generators", "efficiency", color, label, dashed=slower == "learners")
    if many := report.get("many"):
        axis = [r["generators"] for r in many]
        left.plot(axis, [r["efficiency"] for r in many], "s", color=GREY, ms=5, label="4 learners, once each")
    left.set(title="of the slower side's speed", xlabel="generators (simulated)", ylim=(None, 1.01))
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter("{x:g}")
    left.legend(fontsize=8, loc="lower left")

    spread(middle, report["ceiling"], "mib", "blocks_per_s", BLUE, "blocks/s")
    middle.set(title="what one stream can move", xlabel="MiB in a block", ylabel="blocks/s", ylim=(0, None))
    middle.set_xscale("log")
    middle.xaxis.set_major_formatter("{x:g}")

    long = report["long"]
    blocks = [r["blocks"] for r in long]
    right.plot(blocks, [1000 * r["s_per_block"] for r in long], color=BLUE, label="ms for a block")
    right.plot(blocks, [1000 * r["cpu_s_per_block"] for r in long], color=ORANGE, label="ms of CPU for a block")
    right.set(title="a long stream of small blocks", xlabel="blocks so far", ylabel="ms", ylim=(0, None))
    memory = right.twinx()
    memory.plot(blocks, [r["memory_mib"] / 1024 for r in long], color=GREY, ls="--", label="GiB of memory")
    memory.set(ylabel="GiB", ylim=(0, None))
    lines = [*right.lines, *memory.lines]
    right.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="lower right")
    finish(figure, path)


def pool(report: Record, path: Path) -> None:
    """Draw the generators of a pool of 1 to 6 over time."""
    figure, axes = plt.subplots(figsize=(9, 2.8), layout="constrained")
    for record, color in zip(report["pool"], (GREY, BLUE), strict=True):
        times, sizes = zip(*record["trace"], strict=True)
        axes.step(times, sizes, where="post", color=color, label=record["settings"])
    phases = report["pool"][-1]["phases"]
    for phase, text in zip(phases, ("fast learner", "slow: 1.5 generators would do", "fast learner"), strict=True):
        axes.axvline(phase["at"], color="#cccccc", lw=1, zorder=0)
        axes.text(phase["at"] + 1, 6.6, text, fontsize=8, color="#555555")
    axes.set(ylim=(0, 7.3), ylabel="generators", yticks=range(0, 7, 2), xlabel="seconds")
    axes.legend(fontsize=8, loc="lower right")
    finish(figure, path)


def finish(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw(report: Record) -> None:
    """Draw the pictures for which the report has all parts."""
    if set(report) >= SCALING_PARTS:
        scaling(report, DOCS / "scaling.png")
    if "pool" in report:
        pool(report, DOCS / "pool.png")


if __name__ == "__main__":
    draw(json.loads((HERE / "scaling.json").read_text()))
