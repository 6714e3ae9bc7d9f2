"""Preview pictures: each anchor, its latent views, and the augmented views that enter the loss."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genray.views.augment import MEAN, STD

MIN_CELL, MAX_CELL = 64, 128
"""Bounds of a cell's side length in pixels."""

GAP, GROUP_GAP, MARGIN, CAPTION = 2, 12, 8, 18
_PAPER, _INK, _LINE = (255, 255, 255), (70, 70, 70), (200, 200, 200)


def grid(views: Tensor | np.ndarray, augmented: Tensor) -> np.ndarray:
    """One row per anchor: the anchor | its latent views | all of its augmented views.

    Args:
        views: rendered views, uint8 `[n, V, 3, H, W]`, the first of which is the anchor. If V is 1, the middle group
            is left out.
        augmented: normalised pixels, float `[num_views * n, 3, h, w]`, view-major, as `augment_views` returns them.

    Returns:
        The picture, uint8 `[height, width, 3]`.
    """
    rendered = np.moveaxis(np.asarray(views.cpu() if isinstance(views, Tensor) else views), 2, -1)
    colours = augmented.detach().float().cpu().numpy().transpose(0, 2, 3, 1) * np.array(STD) + np.array(MEAN)
    pixels = (colours.clip(0, 1) * 255).round().astype(np.uint8)
    by_anchor = pixels.reshape(-1, len(rendered), *pixels.shape[1:]).swapaxes(0, 1)
    groups = [("anchor", rendered[:, :1])]
    if rendered.shape[1] > 1:
        groups.append(("latent view" if rendered.shape[1] == 2 else "latent views", rendered[:, 1:]))
    groups.append(("augmented view" if by_anchor.shape[1] == 1 else "augmented views", by_anchor))

    cell = cell_size(rendered.shape[2])
    lefts = [column_left(cell, [images.shape[1] for _, images in groups[:g]]) for g in range(len(groups) + 1)]
    height = MARGIN + CAPTION + len(rendered) * (cell + GAP) - GAP + MARGIN
    canvas = np.full((height, lefts[-1] - GROUP_GAP + MARGIN, 3), _PAPER, dtype=np.uint8)
    for left, (_, images) in zip(lefts, groups, strict=False):
        _place(canvas, _nearest(images, cell), MARGIN + CAPTION, left)

    picture = Image.fromarray(canvas)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    for left, following, (caption, _) in zip(lefts, lefts[1:], groups, strict=False):
        right = following - GROUP_GAP
        pen.text(((left + right) / 2, MARGIN + CAPTION / 2 - 2), caption, fill=_INK, font=font, anchor="mm")
        if following != lefts[-1]:
            pen.line([(right + GROUP_GAP // 2, MARGIN), (right + GROUP_GAP // 2, height - MARGIN)], fill=_LINE)
    return np.asarray(picture)


def sheet(blocks: Sequence[tuple[str, np.ndarray]], across: int = 1) -> np.ndarray:
    """Captioned blocks of images, `across` of them side by side.

    Args:
        blocks: captions and images, uint8 `[rows, columns, 3, H, W]`, all images of one size.
        across: blocks in a row of the sheet.

    Returns:
        The picture, uint8 `[height, width, 3]`.
    """
    cell = cell_size(blocks[0][1].shape[-1])
    shelves = [blocks[first : first + across] for first in range(0, len(blocks), across)]
    tops = [MARGIN]
    for shelf in shelves:
        tops.append(tops[-1] + CAPTION + max(len(images) for _, images in shelf) * (cell + GAP) - GAP + MARGIN)
    columns = [max(shelf[b][1].shape[1] for shelf in shelves if b < len(shelf)) for b in range(len(shelves[0]))]
    lefts = [column_left(cell, columns[:b]) for b in range(len(columns) + 1)]
    canvas = np.full((tops[-1], lefts[-1] - GROUP_GAP + MARGIN, 3), _PAPER, dtype=np.uint8)
    for top, shelf in zip(tops, shelves, strict=False):
        for left, (_, images) in zip(lefts, shelf, strict=False):
            _place(canvas, _nearest(np.moveaxis(images, 2, -1), cell), top + CAPTION, left)

    picture = Image.fromarray(canvas)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    for top, shelf in zip(tops, shelves, strict=False):
        for left, (caption, _) in zip(lefts, shelf, strict=False):
            pen.text((left, top + CAPTION / 2 - 2), caption, fill=_INK, font=font, anchor="lm")
    return np.asarray(picture)


def save(path: Path, views: Tensor | np.ndarray, augmented: Tensor) -> None:
    """Write the `grid` as a PNG, atomically."""
    write(path, grid(views, augmented))


def write(path: Path, picture: np.ndarray) -> None:
    """Write a picture, uint8 `[height, width, 3]`, as a PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(picture).save(partial, format="PNG")
    partial.replace(path)


def cell_size(size: int) -> int:
    """Side length in pixels of a cell for images of this size: a whole multiple for small ones, at most `MAX_CELL`."""
    return min(MAX_CELL, size * -(-MIN_CELL // size))


def column_left(cell: int, columns: list[int]) -> int:
    """The left edge of a group, given the numbers of columns of the groups before it."""
    return MARGIN + sum(count * (cell + GAP) - GAP + GROUP_GAP for count in columns)


def _place(canvas: np.ndarray, cells: np.ndarray, top: int, left: int) -> None:
    """Draw cells `[rows, columns, cell, cell, 3]` into the canvas, with gaps."""
    rows, columns, cell = cells.shape[:3]
    for row in range(rows):
        for column in range(columns):
            y, x = top + row * (cell + GAP), left + column * (cell + GAP)
            canvas[y : y + cell, x : x + cell] = cells[row, column]


def _nearest(images: np.ndarray, cell: int) -> np.ndarray:
    """Resize images `[n, columns, h, w, 3]` to `[n, columns, cell, cell, 3]` by nearest neighbour."""
    rows, columns = (((np.arange(cell) + 0.5) * side / cell).astype(np.int64) for side in images.shape[2:4])
    return images[:, :, rows[:, None], columns]
