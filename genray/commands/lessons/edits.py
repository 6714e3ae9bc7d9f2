"""Edits of images that a generator learns to imitate by a step in its latent space.

They are those of Jahanian, Chai, Isola, "On the 'steerability' of generative adversarial networks" (ICLR 2020): zoom,
shift, rotation in the plane, brightness and colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Edited = tuple[Tensor, Tensor]
"""Edited images `[n, 3, h, w]`, and a mask `[n, 1, h, w]` of 0 and 1: pixels that come from outside the image are 0."""


@dataclass(frozen=True)
class Edit:
    """A change of an image by an amount; strengths from -1 to 1 cover its range, and 0 leaves an image as it is."""

    change: Callable[[Tensor, Tensor], Edited]
    """Takes images `[n, 3, h, w]` in [-1, 1] and amounts `[n]`."""
    max_amount: float
    """Amount at strength 1."""
    factor: bool = False
    """Whether the amount is a factor: at strength t `max_amount ** t`, else `max_amount * t`."""

    def __call__(self, images: Tensor, strength: Tensor) -> Edited:
        """The images edited by these strengths `[n]`."""
        if self.factor:
            return self.change(images, torch.exp(math.log(self.max_amount) * strength))
        return self.change(images, self.max_amount * strength)

    @property
    def range(self) -> list[float]:
        """Amounts at strengths -1 and 1."""
        return [1 / self.max_amount, self.max_amount] if self.factor else [-self.max_amount, self.max_amount]


def edits(zoom: float, shift: float, rotation: float, colour: float) -> dict[str, Edit]:
    """Every edit by name.

    Args:
        zoom: largest factor of enlargement; the smallest is its inverse.
        shift: largest shift, as a share of the image's side; positive strengths shift to the right and down.
        rotation: largest angle in degrees; positive strengths turn counter-clockwise.
        colour: largest change of brightness, or of one channel, for pixels in [-1, 1].
    """
    channels = {"brightness": (1, 1, 1), "red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    return {
        "zoom": Edit(_zoom, zoom, factor=True),
        "shift_x": Edit(partial(_shift, axis=0), shift),
        "shift_y": Edit(partial(_shift, axis=1), shift),
        "rotation": Edit(_rotate, rotation),
        **{name: Edit(partial(_brighten, channels=weights), colour) for name, weights in channels.items()},
    }


def _zoom(images: Tensor, factor: Tensor) -> Edited:
    return _moved(images, torch.eye(2, device=images.device) / factor[:, None, None])


def _shift(images: Tensor, sides: Tensor, axis: int) -> Edited:
    direction = torch.eye(2, device=images.device)[axis]
    return _moved(images, torch.eye(2, device=images.device).repeat(len(images), 1, 1), -2 * sides[:, None] * direction)


def _rotate(images: Tensor, degrees: Tensor) -> Edited:
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    return _moved(images, torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1))


def _brighten(images: Tensor, amount: Tensor, channels: tuple[int, int, int]) -> Edited:
    change = torch.tensor(channels, device=images.device)[:, None, None] * amount[:, None, None, None]
    return (images + change).clamp(-1, 1), torch.ones_like(images[:, :1])


def _moved(images: Tensor, matrix: Tensor, offset: Tensor | None = None) -> Edited:
    """Read each pixel from where an affine map, `[n, 2, 2]` and `[n, 2]`, of the frame [-1, 1] sends it, x before y."""
    offset = torch.zeros_like(matrix[:, 0]) if offset is None else offset
    places = F.affine_grid(torch.cat([matrix, offset[:, :, None]], 2), list(images.shape), align_corners=False)
    known = (places.abs() <= 1).all(-1)[:, None].to(images.dtype)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False), known
