"""The lines that commands print."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genray.runs import filenames


def show(lines: Sequence[str]) -> None:
    """Print lines; a reader that closes the pipe early, such as `head`, is no error."""
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(report: Mapping[str, Any]) -> list[str]:
    """The summary of a finished run, from its report."""
    seconds, first = report["seconds_total"], report["seconds_to_first_step"].get("total")
    start_up = f", {first:.0f} s of them before the first step" if first else ""
    lines = [
        *probes(report["probes"]),
        f"{report['steps']} steps in {seconds:.0f} s{start_up}; {report['images_per_s']:,.0f} images/s while training",
        report["advice"],
        f"report  {report['directory']}/{filenames.REPORT}",
        f"encoder {report['directory']}/{filenames.EXPORT}",
        report["mlflow"] and f"MLflow  {report['mlflow']}",
    ]
    return [line for line in lines if line]


def lesson(out: Path, page: str) -> list[str]:
    """The result of a lesson: its file, its picture, and its page in MLflow if there is one."""
    return [f"file    {out}", f"picture {out.with_suffix('.png')}", *([f"MLflow  {page}"] if page else [])]


def probes(results: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table of accuracies, with a row for each encoder and a column for each probe; empty without results."""
    if not results:
        return []
    widths = {probe: max(8, len(probe) + 3) for probe in next(iter(results.values()))}
    titles = "".join(f"{probe.replace('knn', 'kNN'):>{width}}" for probe, width in widths.items())
    rows = (
        f"{name.replace('_', ' '):16}" + "".join(f"{value:{widths[probe]}.1%}" for probe, value in values.items())
        for name, values in results.items()
    )
    return [f"{'unseen images':16}{titles}", *rows]


def runs(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of runs, from what `RunDirectory.state` returns for each."""
    width = max((len(state["name"]) for state in states), default=4)
    lines = [f"{'run':{width}}  {'state':9}  {'step':>13}  {'loss':>7}  {'kNN':>6}"]
    for state in states:
        step = f"{state['step']}/{state['steps']}"
        loss = "" if state["loss"] is None else f"{state['loss']:.3f}"
        knn = "" if state["knn"] is None else f"{state['knn']:.1%}"
        lines.append(f"{state['name']:{width}}  {state['state']:9}  {step:>13}  {loss:>7}  {knn:>6}")
    return lines
