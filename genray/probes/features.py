"""Features of images in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genray.views.augment import MEAN, STD, normalise

Encode = Callable[[Tensor], Tensor]
"""Normalised images, float32 `[n, 3, h, w]`, to features `[n, F]`."""


def features(
    encode: Encode,
    images: Tensor,
    batch_size: int = 250,
    size: int | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """Features of images that are only resized and normalised, as by the augmentation policy `none`.

    Args:
        encode: maps normalised images to features. A module is temporarily put into evaluation mode and called on its
            own device; any other callable must take care of both.
        images: uint8 `[n, 3, H, W]`.
        batch_size: images encoded at once.
        size: side length in pixels that the encoder was trained at; by default the images' own.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.

    Returns:
        float32 `[n, F]`, on the encoder's device.
    """
    device = next(encode.parameters(), images).device if isinstance(encode, nn.Module) else images.device
    with _evaluation(encode), torch.no_grad():
        batches = [
            encode(_prepare(batch.to(device), size, mean, std)).float() for batch in torch.split(images, batch_size)
        ]
    return torch.cat(batches)


def flatten(images: Tensor) -> Tensor:
    """Raw pixels as features, `[n, 3 * h * w]`."""
    return images.flatten(1)


def _prepare(images: Tensor, size: int | None, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    pixels = images.float()
    if size is not None and size != pixels.shape[-1]:
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return normalise(pixels.transpose(0, 1) / 255, mean, std)


@contextmanager
def _evaluation(encode: Encode) -> Iterator[None]:
    """Put a module into evaluation mode; afterwards, restore the mode of each of its submodules."""
    before = [(module, module.training) for module in encode.modules()] if isinstance(encode, nn.Module) else []
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training
