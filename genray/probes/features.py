"""Features of images that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genray.augment import MEAN, STD, normalise

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
    """Features of images that are not augmented, only resized and normalised as the `none` policy does.

    Args:
        encode: what maps normalised images to features. A module is put into evaluation mode for the time being and
            fed on its own device; any other callable sees to both itself.
        images: uint8 `[n, 3, H, W]`.
        batch_size: images encoded at once.
        size: pixels of a side that the encoder was trained at; the images' own where it is not given.
        mean: of each channel, subtracted from pixels in [0, 1].
        std: of each channel.

    Returns:
        float32 `[n, F]`, where the encoder leaves them.
    """
    device = next(encode.parameters(), images).device if isinstance(encode, nn.Module) else images.device
    with _evaluation(encode), torch.no_grad():
        batches = [
            encode(_prepare(batch.to(device), size, mean, std)).float() for batch in torch.split(images, batch_size)
        ]
    return torch.cat(batches)


def flatten(images: Tensor) -> Tensor:
    """Raw pixels as features."""
    return images.flatten(1)


def _prepare(images: Tensor, size: int | None, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    pixels = images.float()
    if size is not None and size != pixels.shape[-1]:
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return normalise(pixels.transpose(0, 1) / 255, mean, std)


@contextmanager
def _evaluation(encode: Encode) -> Iterator[None]:
    """Evaluation mode for a module, and afterwards for each of its parts the mode it had."""
    before = [(part, part.training) for part in encode.modules()] if isinstance(encode, nn.Module) else []
    try:
        for part, _ in before:
            part.training = False
        yield
    finally:
        for part, training in before:
            part.training = training
