"""The files of the grids of views that a run draws as it trains."""

from __future__ import annotations

from pathlib import Path

GRID_NAME = "views"
"""Start of the files' names, and key of the images in MLflow."""


def path_of(directory: Path, step: int) -> Path:
    """The file of the grid drawn at this step."""
    return directory / f"{GRID_NAME}-{step:07d}.png"


def existing(directory: Path) -> dict[int, Path]:
    """The grids in a directory by step, in ascending order."""
    return {int(path.stem.rpartition("-")[2]): path for path in sorted(directory.glob(f"{GRID_NAME}-*.png"))}
