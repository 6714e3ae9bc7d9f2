"""Plots: the curves of a run, and the comparison of groups of runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from genray.runs import jsonl
from genray.runs.directory import RunDirectory
from genray.tracking import compare
from genray.tracking.compare import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#1f6fb2", "#d9731a", "#3a8f4f", "#8a8a8a"
COLORS = (BLUE, ORANGE, GREEN, "#8c5fa8", "#b8433c", "#5a5a5a")


class Panel(NamedTuple):
    """One panel of a run's curves."""

    title: str
    metrics: tuple[str, ...]
    """Metrics of the run; none for the panel of the nodes."""
    unit: str = ""
    """`%` for shares, which are stored as 0 to 1."""
    limits: tuple[float | None, float | None] = (None, None)


PANELS = (
    Panel("loss", ("loss",)),
    Panel("accuracy on labelled images", ("knn", "class_accuracy"), "%", (0, None)),
    Panel("embeddings", ("alignment", "uniformity", "spread", "latent_error")),
    Panel("speed", ("images_per_s", "rendered_per_s"), "images/s", (0, None)),
    Panel("data wait, generators busy", ("data_wait", "generator_busy"), "%", (-2, 102)),
    Panel("nodes busy", (), "%", (-2, 102)),
)
NODE_METRICS = ("cpu_utilization_percentage", "utilization_percentage")
"""Metrics of the nodes that are plotted: use of their CPUs and GPUs."""
MAX_PANEL_WIDTH = 24.0
"""Inches of a panel at most, however many groups it shows."""
STACKED_FROM_WIDTH = 6.0
"""Inches of a panel above which panels are stacked, so that a page can show them without shrinking their text."""
LOG_AXIS_RATIO = 20
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
MAX_LEGEND_LINES = 8
"""Lines of a panel above which it has no legend."""


def figure(columns: int, rows: int, width: float = 4.2, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """An empty figure with this many panels, of the given size in inches each; outside pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(drawing)
    panels = [drawing.add_subplot(rows, columns, place + 1) for place in range(columns * rows)]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, lw=0.6)
    return drawing, panels


def draw_run(run: RunDirectory) -> Path | None:
    """Write the curves of a run as `report.png`; returns None if it has no records."""
    records = jsonl.read(run.metrics)
    if not records:
        return None
    shown = [(panel, lines) for panel in PANELS if (lines := _lines(run, records, panel.metrics))]
    drawing, panels = figure(min(3, len(shown)), -(-len(shown) // 3))
    for axes, (panel, lines) in zip(panels, shown, strict=False):
        scale = 100 if panel.unit == "%" else 1
        for (label, (steps, values)), color in zip(lines.items(), COLORS * len(lines), strict=False):
            marker = "o" if len(steps) < 30 else None
            axes.plot(steps, [scale * v for v in values], color=color, lw=1.4, ms=3, marker=marker, label=label)
        axes.set(title=panel.title, ylabel=panel.unit, xlabel="step", xlim=(0, records[-1]["step"]), ylim=panel.limits)
        if len(lines) <= MAX_LEGEND_LINES:
            axes.legend(fontsize=7, frameon=False)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    drawing.suptitle(run.path.name, fontsize=11)
    draft = run.curves.with_name(f".{run.curves.name}")
    drawing.savefig(draft, format="png")
    return draft.replace(run.curves)


def _lines(
    run: RunDirectory, records: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> dict[str, tuple[list[int], list[float]]]:
    """The steps and values of those metrics that the run has; of its nodes if no metrics are named."""
    if not keys:
        return _node_lines(jsonl.read(run.system))
    points = {key: [(r["step"], r[key]) for r in records if r.get(key) is not None] for key in keys}
    return {key: (steps, values) for key, pairs in points.items() if pairs for steps, values in [_columns(pairs)]}


def _node_lines(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    keys = dict.fromkeys(key for r in records for key in r if key.startswith("system/") and key.endswith(NODE_METRICS))
    lines = {}
    for key in keys:
        metric, node = key.rpartition("/")[2], key.removeprefix("system/").rpartition("/")[0]
        at: dict[int, list[float]] = {}
        for record in records:
            if key in record:
                at.setdefault(record["step"], []).append(record[key] / 100)
        label = f"{node} {metric.removesuffix('_utilization_percentage')}".strip()
        lines[label] = list(at), [statistics.mean(values) for values in at.values()]
    return lines


def _columns(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in pairs], [value for _, value in pairs]


def draw_groups(
    groups: Sequence[Group],
    by: Sequence[str],
    keys: Sequence[str],
    path: Path,
    lines: Mapping[str, Group] = MappingProxyType({}),
) -> None:
    """Write a comparison of groups as a PNG: for each metric a panel with the groups' means and spreads, runs as dots.

    The first setting in `by` with numbers as values is the x-axis, and the other settings become lines; without one the
    groups stand side by side. Baselines are dashed lines.

    Args:
        groups: from `compare.grouped`.
        by: the settings that the groups differ in.
        keys: metrics to draw.
        path: of the PNG.
        lines: further groups by their names, whose means are dotted lines.
    """
    axis = next((place for place in range(len(by)) if _is_axis(groups, place)), None)
    longest = max((len(compare.label(value)) for group in groups for value in group.values), default=0)
    labels_width = (0.2 + 0.075 * longest) * len(groups) if axis is None else 0
    width = min(max(4.6, labels_width), MAX_PANEL_WIDTH)
    columns, rows = (1, len(keys)) if width > STACKED_FROM_WIDTH else (len(keys), 1)
    drawing, panels = figure(columns, rows, width=width, height=3.6)
    for axes, key in zip(panels, keys, strict=True):
        scale = 100 if compare.is_share(key) else 1
        if axis is None:
            _side_by_side(axes, groups, key, scale)
            axes.set_xlabel(", ".join(by))
        else:
            _along_axis(axes, groups, key, scale, axis)
            axes.set_xlabel(by[axis])
        runs = [run for group in groups for run in group.runs]
        for (name, prefix), color in zip(compare.BASELINES.items(), (GREY, "#b5b5b5"), strict=True):
            baseline = compare.baseline(runs, name, key)
            if baseline and (mean := baseline.mean(prefix + key.removeprefix(compare.FINAL))) is not None:
                axes.axhline(scale * mean, color=color, ls="--", lw=1.1, label=name)
        for (name, group), color in zip(lines.items(), COLORS[1:] * len(lines), strict=False):
            if (mean := group.mean(key)) is not None:
                axes.axhline(scale * mean, color=color, ls=":", lw=1.3, label=name)
        axes.set(title=key, ylabel="%" if scale == 100 else "")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7, frameon=False)
    drawing.savefig(path, format="png")


def _is_axis(groups: Sequence[Group], place: int) -> bool:
    values = {compare.label(group.values[place]): group.values[place] for group in groups}
    return len(values) > 1 and all(map(compare.is_number, values.values()))


def _along_axis(axes: Axes, groups: Sequence[Group], key: str, scale: float, axis: int) -> None:
    lines: dict[str, list[Group]] = {}
    for group in groups:
        others = [compare.label(value) for place, value in enumerate(group.values) if place != axis]
        lines.setdefault(", ".join(others), []).append(group)
    for (name, members), color in zip(lines.items(), COLORS * len(lines), strict=False):
        _bars(axes, [(group.values[axis], group) for group in members], key, scale, color, name, joined=True)
    values = sorted({group.values[axis] for group in groups})
    if values[0] > 0 and values[-1] >= LOG_AXIS_RATIO * values[0]:
        axes.set_xscale("log")
    axes.set_xticks(values, [compare.label(value) for value in values], fontsize=8)
    axes.minorticks_off()


def _side_by_side(axes: Axes, groups: Sequence[Group], key: str, scale: float) -> None:
    _bars(axes, list(enumerate(groups)), key, scale, BLUE, "", joined=False)
    names = ["\n".join(map(compare.label, group.values)) for group in groups]
    axes.set_xticks(range(len(groups)), names, fontsize=8)
    axes.set_xlim(-0.5, len(groups) - 0.5)


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
