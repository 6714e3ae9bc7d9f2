"""The grids of views that a run draws along its steps: their files, and MLflow's images with a step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "views"
"""Name of the images in MLflow, where a slider goes through their steps."""


def path_of(directory: Path, step: int) -> Path:
    """The file of the grid that is drawn after so many steps."""
    return directory / f"{KEY}-{step:07d}.png"


def drawn(directory: Path) -> dict[int, Path]:
    """The grids in a directory by their steps, in order."""
    return {int(path.stem.rpartition("-")[2]): path for path in sorted(directory.glob(f"{KEY}-*.png"))}


def record(client: MlflowClient, run_id: str, step: int, path: Path) -> None:
    """Add a grid to the images of an MLflow run."""
    from PIL import Image

    with Image.open(path) as image:
        client.log_image(run_id, image, key=KEY, step=step, synchronous=True)


def recorded(client: MlflowClient, run_id: str) -> set[int]:
    """The steps of which the MLflow run has a grid."""
    files = (artifact.path for artifact in client.list_artifacts(run_id, "images"))
    return {int(found[1]) for file in files if (found := re.search(rf"/{KEY}[%+]step[%+](\d+)[%+]", file))}
