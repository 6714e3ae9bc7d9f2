"""The grids of views that a run draws, as MLflow images with a step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from genray.runs.previews import GRID_NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient


def log(client: MlflowClient, run_id: str, step: int, path: Path) -> None:
    """Log a grid as an image of an MLflow run."""
    from PIL import Image

    with Image.open(path) as image:
        client.log_image(run_id, image, key=GRID_NAME, step=step, synchronous=True)


def logged_steps(client: MlflowClient, run_id: str) -> set[int]:
    """The steps for which an MLflow run has a grid."""
    files = (artifact.path for artifact in client.list_artifacts(run_id, "images"))
    return {int(match[1]) for file in files if (match := re.search(rf"/{GRID_NAME}[%+]step[%+](\d+)[%+]", file))}
