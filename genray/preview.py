"""Pictures of what a learner sees: each anchor, its latent views and the augmented views that enter the loss."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genray.augment import MEAN, STD

SMALLEST, LARGEST = 64, 128
"""Pixels of a side between which images are shown."""

GAP, GROUP_GAP, MARGIN, CAPTION = 2, 12, 8, 18
_PAPER, _INK, _LINE = (255, 255, 255), (70, 70, 70), (200, 200, 200)


def grid(views: Tensor | np.ndarray, augmented: Tensor) -> np.ndarray:
    """One row per anchor: the anchor | its latent views | all of its augmented views.

    Args:
        views: rendered views, uint8 `[n, V, 3, H, W]`, the first being the anchor. Where V is 1 nothing else was
            rendered, and the middle group is left out.
        augmented: normalised pixels, float `[num_views * n, 3, h, w]`, view-major, as `augment_views` gives them.

    Returns:
        The picture, uint8 `[height, width, 3]`.
    """
    rendered = np.moveaxis(np.asarray(views.cpu() if isinstance(views, Tensor) else views), 2, -1)
    shown = augmented.detach().float().cpu().numpy().transpose(0, 2, 3, 1) * np.array(STD) + np.array(MEAN)
    pixels = (shown.clip(0, 1) * 255).round().astype(np.uint8)
    entering = pixels.reshape(-1, len(rendered), *pixels.shape[1:]).swapaxes(0, 1)
    groups = [("anchor", rendered[:, :1])]
    if rendered.shape[1] > 1:
        groups.append(("latent view" if rendered.shape[1] == 2 else "latent views", rendered[:, 1:]))
    groups.append(("augmented view" if entering.shape[1] == 1 else "augmented views", entering))

    cell = cell_size(rendered.shape[2])
    lefts = [column_left(cell, [images.shape[1] for _, images in groups[:g]]) for g in range(len(groups) + 1)]
    height = MARGIN + CAPTION + len(rendered) * (cell + GAP) - GAP + MARGIN
    canvas = np.full((height, lefts[-1] - GROUP_GAP + MARGIN, 3), _PAPER, dtype=np.uint8)
    for left, (_, images) in zip(lefts, groups, strict=False):
        scaled = _nearest(images, cell)
        for row in range(scaled.shape[0]):
            for column in range(scaled.shape[1]):
                y, x = MARGIN + CAPTION + row * (cell + GAP), left + column * (cell + GAP)
                canvas[y : y + cell, x : x + cell] = scaled[row, column]

    picture = Image.fromarray(canvas)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    for left, following, (caption, _) in zip(lefts, lefts[1:], groups, strict=False):
        right = following - GROUP_GAP
        pen.text(((left + right) / 2, MARGIN + CAPTION / 2 - 2), caption, fill=_INK, font=font, anchor="mm")
        if following != lefts[-1]:
            pen.line([(right + GROUP_GAP // 2, MARGIN), (right + GROUP_GAP // 2, height - MARGIN)], fill=_LINE)
    return np.asarray(picture)


def save(path: Path, views: Tensor | np.ndarray, augmented: Tensor) -> None:
    """Write the `grid` as a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(grid(views, augmented)).save(partial, format="PNG")
    partial.replace(path)


def cell_size(size: int) -> int:
    """Pixels of a side at which images of `size` are shown: a whole multiple where they are small."""
    return min(LARGEST, size * -(-SMALLEST // size))


def column_left(cell: int, columns: list[int]) -> int:
    """Where a group starts that follows groups of so many columns."""
    return MARGIN + sum(count * (cell + GAP) - GAP + GROUP_GAP for count in columns)


def _nearest(images: np.ndarray, cell: int) -> np.ndarray:
    """Images `[n, columns, h, w, 3]` to `[n, columns, cell, cell, 3]`, each pixel the nearest one."""
    rows, columns = (((np.arange(cell) + 0.5) * side / cell).astype(np.int64) for side in images.shape[2:4])
    return images[:, :, rows[:, None], columns]
