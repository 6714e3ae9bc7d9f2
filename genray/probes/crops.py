"""Decodes and crops single images for a backbone: the whole image, or a random part of it.

The geometry is that of the evaluation transforms of timm and torchvision, pixel for pixel; it is reimplemented so that
a process that only decodes need not import torch.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from genray.config.errors import UserError
from genray.views.sources.images import DECODE_ERRORS

CROP_TRIES = 10
"""Crops drawn for an image, of which the first that lies within it is taken."""
CROP_UNIFORMS = 2 * CROP_TRIES + 3
"""Uniform numbers drawn for each random crop."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square: resized, then cropped about its centre."""

    size: int
    """Side length of the result in pixels."""
    resized: int
    """Length of the shorter side in pixels before the crop."""
    interpolation: str = "bilinear"
    squash: bool = False
    """Resize both sides to `resized`, whatever the aspect ratio."""


def decode_rgb(file: Path | bytes, where: str) -> Image.Image:
    """Decode an image to RGB; raises UserError, naming `where` it comes from, if that fails."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.convert("RGB")
    except DECODE_ERRORS as error:
        reason = "no image of a known format" if "cannot identify" in str(error) else str(error)
        raise UserError(f"labelled images must be files that can be decoded, got {where} ({reason})") from None


def whole(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """The whole image, resized and cropped about its centre: uint8 `[3, size, size]`."""
    width, height = image.size
    if geometry.squash:
        sides = geometry.resized, geometry.resized
    elif width <= height:
        sides = geometry.resized, geometry.resized * height // width
    else:
        sides = geometry.resized * width // height, geometry.resized
    if sides != (width, height):
        image = image.resize(sides, INTERPOLATIONS[geometry.interpolation])
    left, top = (round((side - geometry.size) / 2) for side in sides)
    return _planes(image.crop((left, top, left + geometry.size, top + geometry.size)))


def cropped(image: Image.Image, geometry: Geometry, uniforms: np.ndarray, may_mirror: bool) -> np.ndarray:
    """A random crop of an RGB image, resized: uint8 `[3, size, size]`.

    Crops have the distribution of torchvision's RandomResizedCrop, with .2 to 1 of the area and an aspect ratio of 3:4
    to 4:3, as in the linear evaluation of arXiv 2106.05258; half of them are mirrored.

    Args:
        image: the image.
        geometry: the size and the interpolation.
        uniforms: uniform numbers in (0, 1), `[CROP_UNIFORMS]`.
        may_mirror: whether crops may be mirrored at all.
    """
    box = random_box(*image.size, uniforms)
    part = image.crop(box).resize((geometry.size, geometry.size), INTERPOLATIONS[geometry.interpolation])
    pixels = _planes(part)
    return pixels[:, :, ::-1] if may_mirror and uniforms[-1] < 0.5 else pixels


def random_box(
    width: int,
    height: int,
    uniforms: np.ndarray,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop, given the ranges of its share of the area and its aspect ratio.

    The first of `CROP_TRIES` tries that lies within the image; if none does, the largest such crop about the centre.
    """
    areas, ratios, (across, down) = np.split(uniforms[: 2 * CROP_TRIES + 2], [CROP_TRIES, 2 * CROP_TRIES])
    area = width * height * (scale[0] + (scale[1] - scale[0]) * areas)
    shape = np.exp(np.log(ratio[0]) + np.log(ratio[1] / ratio[0]) * ratios)
    widths, heights = np.rint(np.sqrt(area * shape)), np.rint(np.sqrt(area / shape))
    valid = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    if valid.any():
        first = int(valid.argmax())
        w, h = int(widths[first]), int(heights[first])
        left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
    else:
        w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _planes(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)
