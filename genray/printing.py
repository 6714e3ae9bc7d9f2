"""What commands print, as lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def show(lines: Sequence[str]) -> None:
    """Print lines; a reader that has seen enough, `head` for example, is no error."""
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(found: Mapping[str, Any]) -> list[str]:
    """The end of a run, from its report."""
    seconds, first = found["seconds_total"], found["seconds_to_first_step"].get("total")
    until = f", {first:.0f} s of them before the first step" if first else ""
    lines = [
        *probes(found["probes"]),
        f"{found['steps']} steps in {seconds:.0f} s{until}; {found['images_per_s']:,.0f} images/s while training",
        found["advice"],
        f"report  {found['directory']}/report.json",
        f"encoder {found['directory']}/export",
        found["mlflow"] and f"MLflow  {found['mlflow']}",
    ]
    return [line for line in lines if line]


def lesson(out: Path, page: str) -> list[str]:
    """The end of a lesson: its file, its picture and where MLflow shows it."""
    return [f"file    {out}", f"picture {out.with_suffix('.png')}", *([f"MLflow  {page}"] if page else [])]


def probes(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A row for each encoder, a column for each probe; nothing where there are none."""
    if not found:
        return []
    widths = {probe: max(8, len(probe) + 3) for probe in next(iter(found.values()))}
    titles = "".join(f"{probe.replace('knn', 'kNN'):>{width}}" for probe, width in widths.items())
    rows = (
        f"{name.replace('_', ' '):16}" + "".join(f"{value:{widths[probe]}.1%}" for probe, value in values.items())
        for name, values in found.items()
    )
    return [f"{'unseen images':16}{titles}", *rows]


def runs(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each run, from their states."""
    width = max((len(state["name"]) for state in states), default=4)
    lines = [f"{'run':{width}}  {'state':9}  {'step':>13}  {'loss':>7}  {'kNN':>6}"]
    for state in states:
        step = f"{state['step']}/{state['steps']}"
        loss = "" if state["loss"] is None else f"{state['loss']:.3f}"
        knn = "" if state["knn"] is None else f"{state['knn']:.1%}"
        lines.append(f"{state['name']:{width}}  {state['state']:9}  {step:>13}  {loss:>7}  {knn:>6}")
    return lines
