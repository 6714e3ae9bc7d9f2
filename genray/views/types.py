"""The types that views are made with: `Block`, and the protocols of generators and sources. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from genray.config.errors import GenrayError

if TYPE_CHECKING:
    from torch import Tensor


class BadImages(GenrayError):
    """A generator returned something that is not an image; it must not be trained on."""


class Generator(Protocol):
    """A frozen generator of square colour images on one device."""

    image_size: int
    """Side length of an image in pixels."""
    latent_dim: int
    """Length of a latent; 0 if class and seed alone determine an image."""
    num_classes: int
    """Classes that it is conditioned on; 0 for none."""

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """Render one image for each latent.

        A generator may also have a method `differentiable` with the same arguments, which returns floats in [-1, 1]
        with a gradient with respect to z; `genray steer` and `genray navigate` need it.

        Args:
            z: latents, float32 `[n, latent_dim]`.
            labels: classes, int64 `[n]`; None if the generator has none.
            seeds: seeds of any noise besides the latent, int64 `[n]`; a GAN ignores them.

        Returns:
            uint8 `[n, 3, image_size, image_size]` on the generator's device.

        Raises:
            BadImages: a pixel is not finite (checked before rounding to uint8).
        """
        ...

    def unchecked(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same images, and which of them are finite, bool `[n]`, without waiting for the device.

        Custom generators need not define it: `genray.views.generators.load` adds it.
        """
        ...


@dataclass(frozen=True)
class GeneratorSpec:
    """The sizes of a generator, known before it is loaded.

    >>> genray.views.generators.describe(BigGANGenerator(model="digit-scenes"))
    GeneratorSpec(name='digit-scenes', image_size=32, latent_dim=32, num_classes=10)
    """

    name: str
    image_size: int
    """Side length of an image in pixels."""
    latent_dim: int
    num_classes: int
    """0 for an unconditional generator."""


Block = dict[str, np.ndarray]
"""The views of n anchors: named columns with n rows each.

>>> block = Renderer(config).block(course.ticket(0))  # 512 anchors, each with one latent view
>>> {name: (column.dtype.name, column.shape) for name, column in block.items()}
{'views': ('uint8', (512, 2, 3, 32, 32)), 'label': ('int64', (512,)), 'latent': ('float32', (512, 2, 32)), ...}

`genray.stream.renderer.Renderer.block` lists all columns.
"""


@dataclass(frozen=True)
class SourceSpec(GeneratorSpec):
    """The sizes of a source, known before it is built.

    `latent_dim` and `num_classes` are 0 unless every image has a latent, or a class.
    """

    views: int
    """Images of each anchor before augmentation."""
    population: int | None = None
    """Number of anchors, shown in a new order each epoch; None if they never repeat or are not one population."""
    end: int | None = None
    """Length of the stream in anchors; None if it is endless."""


class Source(Protocol):
    """Maps positions in the stream to images: the same position always shows the same."""

    def block_at(self, position: np.ndarray) -> Block:
        """The views at these positions, int64 `[n]`, in any order.

        Returns:
            `views` uint8 `[n, V, 3, H, W]`, `latent` float32 `[n, V, d]`, `label`, `anchor` and `epoch` int64 `[n]`.

        Raises:
            BadImages: something was rendered that is not an image.
            UserError: a file cannot be read.
        """
        ...
