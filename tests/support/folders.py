"""Folders of small images for tests, each image its own noise, so that any mistaken one shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fakes import small
from PIL import Image

from genray.config.run import Config

MODEL = {
    "backbone": "resnet18",
    "model_args": {"layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8], "stem_type": "deep", "stem_width": 8},
    "projection": [8, 4],
}


def noise(number: int, width: int = 8, height: int = 8) -> np.ndarray:
    """An image of noise, uint8 `[height, width, 3]`."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def folder(directory: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8)) -> Path:
    """Images of a number for each class, or loose ones for the class "", numbered through in alphabetic order."""
    number = 0
    for name in sorted(counts):
        (directory / name).mkdir(parents=True, exist_ok=True)
        for image in range(counts[name]):
            Image.fromarray(noise(number, *size)).save(directory / name / f"{image:03}.png")
            number += 1
    return directory


def of_images(directory: Path, **sections: Any) -> Config:
    """A run on 8-pixel images of a folder, 4 anchors a step and 8 a ticket."""
    source = {"kind": "images", "directory": str(directory), "image_size": 8, **sections.pop("source", {})}
    pool = {"num_gpus": 0, **sections.pop("pool", {})}
    return small(**{"source": source, "view": {"kind": "none"}, "pool": pool, **sections})
