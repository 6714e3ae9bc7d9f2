"""From a generator's floats to the bytes that travel: checked for being finite, clamped, rounded, on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genray.generators import BadImages
from genray.settings import ConfigError


def to_bytes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] as uint8, -1 to 0 and 1 to 255, clamped and rounded in float32; waits for no device.

    Returns:
        The bytes, contiguous, and which images are finite, bool `[n]`: see `refuse`.
    """
    finite = images.isfinite().flatten(1).all(1)
    return images.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8).contiguous(), finite


def refuse(finite: Tensor) -> None:
    """Raise BadImages where one of these images, bool `[n]`, is not finite.

    Rounding has turned its pixels into ordinary black or white ones.
    """
    if not finite.all():
        bad = ~finite
        first = int(bad.nonzero()[0, 0])
        raise BadImages(
            f"{int(bad.sum())} of {len(finite)} images have pixels that are not finite, image {first} first"
        )


def quantise(images: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8, -1 to 0 and 1 to 255, clamped and rounded in float32.

    Raises:
        BadImages: a pixel is not finite.
    """
    pixels, finite = to_bytes(images)
    refuse(finite)
    return pixels


class Quantised:
    """A generator of one's own, held to the contract: its inputs are brought to the device, its output is checked.

    `made` may return uint8, or floats in [-1, 1], which are quantised here.
    """

    def __init__(self, made: Any, device: torch.device):
        self.made, self.device = made, device
        self.image_size: int = made.image_size
        self.latent_dim: int = made.latent_dim
        self.num_classes: int = made.num_classes

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """See `genray.generators.Generator`; also raises BadImages for a wrong shape or dtype."""
        images, finite = self.unchecked(z, labels, seeds)
        refuse(finite)
        return images

    @torch.inference_mode()
    def unchecked(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same images, and which of them are finite, bool `[n]`, without waiting for the device."""
        images = self._images(z, labels, seeds)
        if images.dtype == torch.uint8:
            return images, torch.ones(len(images), dtype=torch.bool, device=images.device)
        return to_bytes(images)

    def differentiable(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """float32 images in [-1, 1] with their gradient in z.

        Raises:
            BadImages: they are of a wrong shape or dtype.
            ConfigError: they are uint8, or come without a gradient.
        """
        images = self._images(z, labels, seeds)
        if images.dtype == torch.uint8 or (z.requires_grad and torch.is_grad_enabled() and not images.requires_grad):
            what = "uint8" if images.dtype == torch.uint8 else "floats without one"
            raise ConfigError(
                "generator.target must render floats that have a gradient in z, for something to be learned through "
                f"it, got {what} from a {type(self.made).__name__}; leave out its rounding, no_grad and inference_mode"
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
