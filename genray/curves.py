"""Pictures of what was measured: the curves of a run, and groups of runs side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from genray import compare, records
from genray.compare import Group
from genray.rundir import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#1f6fb2", "#d9731a", "#3a8f4f", "#8a8a8a"
COLORS = (BLUE, ORANGE, GREEN, "#8c5fa8", "#b8433c", "#5a5a5a")


class Panel(NamedTuple):
    """One of the pictures."""

    title: str
    metrics: tuple[str, ...]
    unit: str = ""
    """`%` for shares."""
    limits: tuple[float | None, float | None] = (None, None)


PANELS = (
    Panel("loss", ("loss",)),
    Panel("accuracy on labelled images", ("knn", "class_accuracy"), "%", (0, None)),
    Panel("embeddings", ("alignment", "uniformity", "spread", "latent_error")),
    Panel("speed", ("images_per_s", "rendered_per_s"), "images/s", (0, None)),
    Panel("data wait, generators busy", ("data_wait", "generator_busy"), "%", (-2, 102)),
    Panel("nodes busy", (), "%", (-2, 102)),
)
BUSY = ("cpu_utilization_percentage", "utilization_percentage")
"""What is shown of the nodes: their CPUs and GPUs."""
WIDEST = 24.0
"""Inches of a panel, however many groups stand beside each other."""
WIDE_PANEL = 6.0
"""Inches from which panels stand below each other, so that a page can show them without shrinking their text."""
WIDE = 20
"""A largest value that is so many times the smallest asks for a logarithmic axis."""
LABELLED = 8
"""Lines in a panel that are told apart by a legend."""


def figure(columns: int, rows: int, width: float = 4.2, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """An empty picture of so many panels; belongs to no window and to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(made)
    panels = [made.add_subplot(rows, columns, place + 1) for place in range(columns * rows)]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, lw=0.6)
    return made, panels


def draw(run: RunDirectory) -> Path | None:
    """Write the curves of a run as `report.png`; None where it has no records."""
    found = records.read(run.metrics)
    if not found:
        return None
    shown = [(panel, lines) for panel in PANELS if (lines := _lines(run, found, panel.metrics))]
    made, panels = figure(min(3, len(shown)), -(-len(shown) // 3))
    for axes, (panel, lines) in zip(panels, shown, strict=False):
        scale = 100 if panel.unit == "%" else 1
        for (label, (steps, values)), color in zip(lines.items(), COLORS * len(lines), strict=False):
            marker = "o" if len(steps) < 30 else None
            axes.plot(steps, [scale * v for v in values], color=color, lw=1.4, ms=3, marker=marker, label=label)
        axes.set(title=panel.title, ylabel=panel.unit, xlabel="step", xlim=(0, found[-1]["step"]), ylim=panel.limits)
        if len(lines) <= LABELLED:
            axes.legend(fontsize=7, frameon=False)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    made.suptitle(run.path.name, fontsize=11)
    draft = run.curves.with_name(f".{run.curves.name}")
    made.savefig(draft, format="png")
    return draft.replace(run.curves)


def _lines(
    run: RunDirectory, found: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> dict[str, tuple[list[int], list[float]]]:
    """The steps and values of each of the metrics that the run has."""
    if not keys:
        return _of_nodes(records.read(run.system))
    having = {key: [(r["step"], r[key]) for r in found if r.get(key) is not None] for key in keys}
    return {key: (steps, values) for key, pairs in having.items() if pairs for steps, values in [_columns(pairs)]}


def _of_nodes(found: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    keys = dict.fromkeys(key for r in found for key in r if key.startswith("system/") and key.endswith(BUSY))
    lines = {}
    for key in keys:
        metric, node = key.rpartition("/")[2], key.removeprefix("system/").rpartition("/")[0]
        at: dict[int, list[float]] = {}
        for record in found:
            if key in record:
                at.setdefault(record["step"], []).append(record[key] / 100)
        label = f"{node} {metric.removesuffix('_utilization_percentage')}".strip()
        lines[label] = list(at), [statistics.mean(values) for values in at.values()]
    return lines


def _columns(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in pairs], [value for _, value in pairs]


def contrast(
    found: Sequence[Group],
    by: Sequence[str],
    keys: Sequence[str],
    path: Path,
    lines: Mapping[str, Group] = MappingProxyType({}),
) -> None:
    """Write groups of runs as a PNG: a panel for each metric, mean and spread of each group, and its runs as dots.

    The first setting in `by` whose values are numbers is the axis, the others tell lines apart; where there is none,
    the groups stand beside each other. What the untrained encoder and raw pixels reach is a dashed line, the mean of
    each of `lines` a dotted one.
    """
    axis = next((place for place in range(len(by)) if _is_axis(found, place)), None)
    longest = max((len(compare.label(value)) for group in found for value in group.values), default=0)
    beside = (0.2 + 0.075 * longest) * len(found) if axis is None else 0
    width = min(max(4.6, beside), WIDEST)
    columns, rows = (1, len(keys)) if width > WIDE_PANEL else (len(keys), 1)
    made, panels = figure(columns, rows, width=width, height=3.6)
    for axes, key in zip(panels, keys, strict=True):
        scale = 100 if compare.is_share(key) else 1
        if axis is None:
            _beside(axes, found, key, scale)
            axes.set_xlabel(", ".join(by))
        else:
            _along(axes, found, key, scale, axis)
            axes.set_xlabel(by[axis])
        runs = [run for group in found for run in group.runs]
        for (name, prefix), color in zip(compare.FLOORS.items(), (GREY, "#b5b5b5"), strict=True):
            floor = compare.floor(runs, name, key)
            if floor and (mean := floor.mean(prefix + key.removeprefix(compare.FINAL))) is not None:
                axes.axhline(scale * mean, color=color, ls="--", lw=1.1, label=name)
        for (name, group), color in zip(lines.items(), COLORS[1:] * len(lines), strict=False):
            if (mean := group.mean(key)) is not None:
                axes.axhline(scale * mean, color=color, ls=":", lw=1.3, label=name)
        axes.set(title=key, ylabel="%" if scale == 100 else "")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7, frameon=False)
    made.savefig(path, format="png")


def _is_axis(found: Sequence[Group], place: int) -> bool:
    values = {compare.label(group.values[place]): group.values[place] for group in found}
    return len(values) > 1 and all(map(compare.is_number, values.values()))


def _along(axes: Axes, found: Sequence[Group], key: str, scale: float, axis: int) -> None:
    lines: dict[str, list[Group]] = {}
    for group in found:
        others = [compare.label(value) for place, value in enumerate(group.values) if place != axis]
        lines.setdefault(", ".join(others), []).append(group)
    for (name, groups), color in zip(lines.items(), COLORS * len(lines), strict=False):
        _bars(axes, [(group.values[axis], group) for group in groups], key, scale, color, name, joined=True)
    values = sorted({group.values[axis] for group in found})
    if values[0] > 0 and values[-1] >= WIDE * values[0]:
        axes.set_xscale("log")
    axes.set_xticks(values, [compare.label(value) for value in values], fontsize=8)
    axes.minorticks_off()


def _beside(axes: Axes, found: Sequence[Group], key: str, scale: float) -> None:
    _bars(axes, list(enumerate(found)), key, scale, BLUE, "", joined=False)
    names = ["\n".join(map(compare.label, group.values)) for group in found]
    axes.set_xticks(range(len(found)), names, fontsize=8)
    axes.set_xlim(-0.5, len(found) - 0.5)


def _bars(
    axes: Axes, placed: Sequence[tuple[float, Group]], key: str, scale: float, color: str, name: str, *, joined: bool
) -> None:
    drawn = [(place, group, mean) for place, group in placed if (mean := group.mean(key)) is not None]
    spreads = [scale * (group.spread(key) or 0) for _, group, _ in drawn]
    axes.errorbar(
        [place for place, _, _ in drawn],
        [scale * mean for _, _, mean in drawn],
        spreads,
        color=color,
        ls="-" if joined else "",
        marker="o",
        ms=5,
        lw=1.4,
        capsize=4,
        label=name or None,
    )
    dots = [(place, scale * value) for place, group, _ in drawn for value in group.numbers(key)]
    axes.plot(*zip(*dots, strict=True) if dots else ((), ()), ".", color=color, ms=5, alpha=0.4)
