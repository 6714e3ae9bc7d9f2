"""Digit scenes: real handwritten digits composed into 32x32 colour images, the labelled images of the demo.

scikit-learn's `load_digits` has 1 797 scans of 8x8 pixels. A fixed split reserves 1 000 for training the embedded
generator and 200 for validation; the other 597 are for the final report alone. A scene places one digit at a random
position, scale (.45-.95 of the frame), rotation (+-25 degrees) and colour over a smooth background.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from genray.views.random import uniforms

SplitName = Literal["train", "val", "test"]

IMAGE_SIZE = 32
NUM_CLASSES = 10
NUM_FACTORS = 19  # x, y, scale, angle, 3 for ink, 12 for background
_SIZES: dict[SplitName, slice] = {"train": slice(0, 1000), "val": slice(1000, 1200), "test": slice(1200, 1797)}


@functools.cache
def digits(split: SplitName) -> tuple[torch.Tensor, torch.Tensor]:
    """The scans of one split: ink in [0, 1], float32 `[n, 8, 8]`, and their classes, int64 `[n]`."""
    from sklearn.datasets import load_digits  # slow to import, rarely needed

    scans = load_digits()
    order = np.argsort(uniforms(0, "scenes.split", np.arange(len(scans.target)), 1)[:, 0], kind="stable")[_SIZES[split]]
    return (
        torch.from_numpy(scans.images[order].astype(np.float32) / 16),
        torch.from_numpy(scans.target[order].astype(np.int64)),
    )


def compose(scans: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Draw one scene for each scan.

    Args:
        scans: ink in [0, 1], `[n, 8, 8]`.
        factors: uniform in [0, 1], `[n, 19]`: horizontal and vertical position, scale, angle, ink colour (3),
            background colour at the four corners (12).

    Returns:
        Pixels in [0, 1], float32 `[n, 3, 32, 32]`.
    """
    n = len(scans)
    scale = 0.45 + 0.5 * factors[:, 2]
    centre = (2 * factors[:, :2] - 1) * (1 - scale)[:, None]  # the digit's box stays inside the frame [-1, 1]
    angle = torch.deg2rad(50 * factors[:, 3] - 25)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rotation = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    to_scan = torch.cat([rotation, -rotation @ centre[:, :, None]], 2)  # frame coordinates -> coordinates in the scan
    grid = F.affine_grid(to_scan, [n, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    ink = F.grid_sample(scans[:, None], grid, align_corners=False)  # zero outside the scan
    paper = F.interpolate(
        0.55 * factors[:, 7:].reshape(n, 3, 2, 2), size=IMAGE_SIZE, mode="bilinear", align_corners=True
    )
    colour = 0.4 + 0.6 * factors[:, 4:7, None, None]
    return paper + ink * (colour - paper)


def scenes(split: SplitName, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` labelled scenes of one split's digits, each digit equally often: uint8 `[n, 3, 32, 32]`, int64 `[n]`."""
    scans, labels = digits(split)
    rows = torch.arange(count) % len(scans)
    factors = uniforms(seed, f"scenes.{split}", np.arange(count), NUM_FACTORS).astype(np.float32)
    pixels = compose(scans[rows], torch.from_numpy(factors))
    return pixels.mul(255).round().to(torch.uint8), labels[rows]
