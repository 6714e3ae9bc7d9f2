"""The digit scenes as labelled images, generated in memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from genray.config.probe import DIGIT_SCENES
from genray.probes import scenes
from genray.probes.labelled_images import LabelledImages, Split

_SIZES: dict[scenes.SplitName, int] = {"val": 1000, "test": 2388}  # five scenes per scan for val, four for test


@dataclass(frozen=True, eq=False)
class ImagesInMemory:
    """An `ImageReader` of images in memory."""

    pixels: Tensor
    """uint8 `[n, 3, H, W]`."""

    def image(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels[row].permute(1, 2, 0).contiguous().numpy())


@functools.cache
def split(name: scenes.SplitName, images: int) -> Split:
    """The scenes of one split; `images` of them for the training split.

    The result is cached: do not modify it in place.
    """
    pixels, labels = scenes.scenes(name, _SIZES.get(name, images))
    return Split(labels.numpy(), ImagesInMemory(pixels), pixels)


def digit_scenes(images: int) -> LabelledImages:
    """Scenes of handwritten digits with `images` training images."""
    return LabelledImages(
        name=DIGIT_SCENES,
        classes=tuple(map(str, range(scenes.NUM_CLASSES))),
        train=split("train", images),
        test=split("test", images),
        val=split("val", images),
        may_mirror=False,
    )
