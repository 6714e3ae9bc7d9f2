"""From a generator's floats to bytes, on the device: checked to be finite, clamped and rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genray.config.errors import ConfigError
from genray.views.types import BadImages


def to_bytes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise images in [-1, 1] to [0, 255], clamped and rounded in float32, without waiting for the device.

    Returns:
        The images, uint8, contiguous; and which of them are finite, bool `[n]`, for `check_finite`.
    """
    finite = images.isfinite().flatten(1).all(1)
    return images.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8).contiguous(), finite


def check_finite(finite: Tensor) -> None:
    """Raise BadImages if any of these images, bool `[n]`, is not finite.

    Rounding would have turned the bad pixels into ordinary black or white ones.
    """
    if not finite.all():
        bad = ~finite
        first = int(bad.nonzero()[0, 0])
        raise BadImages(
            f"{int(bad.sum())} of {len(finite)} images have pixels that are not finite, image {first} first"
        )


def quantise(images: Tensor) -> Tensor:
    """Quantise images in [-1, 1] to uint8, clamped and rounded in float32.

    Raises:
        BadImages: a pixel is not finite.
    """
    pixels, finite = to_bytes(images)
    check_finite(finite)
    return pixels


class Quantised:
    """A custom generator as a `genray.views.types.Generator`: moves inputs to the device and checks the output.

    `made` may return uint8, or floats in [-1, 1], which are quantised here.
    """

    def __init__(self, made: Any, device: torch.device):
        self.made, self.device = made, device
        self.image_size: int = made.image_size
        self.latent_dim: int = made.latent_dim
        self.num_classes: int = made.num_classes

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """See `genray.views.types.Generator`; also raises BadImages for a wrong shape or dtype."""
        images, finite = self.unchecked(z, labels, seeds)
        check_finite(finite)
        return images

    @torch.inference_mode()
    def unchecked(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same images, and which of them are finite, bool `[n]`, without waiting for the device."""
        images = self._images(z, labels, seeds)
        if images.dtype == torch.uint8:
            return images, torch.ones(len(images), dtype=torch.bool, device=images.device)
        return to_bytes(images)

    def differentiable(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """float32 images in [-1, 1] with a gradient with respect to z.

        Raises:
            BadImages: they have a wrong shape or dtype.
            ConfigError: they are uint8, or have no gradient.
        """
        images = self._images(z, labels, seeds)
        if images.dtype == torch.uint8 or (z.requires_grad and torch.is_grad_enabled() and not images.requires_grad):
            actual = "uint8" if images.dtype == torch.uint8 else "floats without one"
            raise ConfigError(
                "generator.target must render floats with a gradient in z, which learning needs, got "
                f"{actual} from a {type(self.made).__name__}; remove its rounding, no_grad and inference_mode"
            )
        return images.float().clamp(-1, 1)

    def _images(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None) -> Tensor:
        images = self.made(*(None if t is None else t.to(self.device) for t in (z, labels, seeds)))
        shape = (len(z), 3, self.image_size, self.image_size)
        if images.shape != shape or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise BadImages(
                f"images must be uint8, or floats in [-1, 1], of shape {list(shape)}, "
                f"got {images.dtype} of shape {list(images.shape)}"
            )
        return images
