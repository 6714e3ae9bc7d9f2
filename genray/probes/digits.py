"""The digit scenes as labelled images: made in memory, once."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from genray import scenes
from genray.probes.images import LabelledImages, Split
from genray.probes.settings import DIGITS

_SIZES: dict[scenes.Split, int] = {"val": 1000, "test": 2388}  # five scenes of each digit, and four


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images that are there already."""

    pixels: Tensor
    """uint8 `[n, 3, H, W]`."""

    def image(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels[row].permute(1, 2, 0).contiguous().numpy())


@functools.cache
def split(name: scenes.Split, images: int) -> Split:
    """The scenes of one split, `images` of them where it is the one to learn from.

    They are made once and kept: do not change them in place.
    """
    pixels, labels = scenes.scenes(name, _SIZES.get(name, images))
    return Split(labels.numpy(), Scenes(pixels), pixels)


def digit_scenes(images: int) -> LabelledImages:
    """Scenes of handwritten digits, `images` of them to learn from."""
    return LabelledImages(
        name=DIGITS,
        classes=tuple(map(str, range(scenes.NUM_CLASSES))),
        train=split("train", images),
        test=split("test", images),
        val=split("val", images),
        mirrored=False,
    )
