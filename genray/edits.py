"""Edits of images whose result a generator is to reach by a step in its latent space.

Those of Jahanian, Chai, Isola, "On the 'steerability' of generative adversarial networks" (ICLR 2020): zoom, shift,
rotation in the plane, brightness and colour, each by an amount from a range of its own.
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


@dataclass(frozen=True)
class Edit:
    """What is done to an image, and how much of it at the most.

    A strength t of 0 leaves an image as it is; -1 and 1 are the two ends of the range.
    """

    change: Callable[[Tensor, Tensor], Edited]
    """Images `[n, 3, h, w]` in [-1, 1] and amounts `[n]` to the edited images and what of them is known, `[n, 1, h, w]`
    of 0 and 1: pixels that come in from outside are not.
    """
    most: float
    """Amount at strength 1."""
    factor: bool = False
    """Whether the amount is a factor: `most ** t`, evenly drawn on a logarithmic scale. Else it is `most * t`."""

    def __call__(self, images: Tensor, strength: Tensor) -> Edited:
        """The images edited by these strengths `[n]`, and what of them is known."""
        return self.change(images, torch.exp(math.log(self.most) * strength) if self.factor else self.most * strength)

    @property
    def range(self) -> list[float]:
        """Amounts at strengths -1 and 1."""
        return [1 / self.most, self.most] if self.factor else [-self.most, self.most]


def edits(zoom: float, shift: float, rotation: float, colour: float) -> dict[str, Edit]:
    """Every edit by name.

    Args:
        zoom: largest factor of enlargement, the smallest being its inverse.
        shift: largest shift, in sides of the image; to the right and downwards for positive strengths.
        rotation: largest turn, in degrees; counter-clockwise for positive strengths.
        colour: largest change of brightness, or of one channel, of pixels that reach from -1 to 1.
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
    """Read each pixel from where an affine map `[n, 2, 2]`, `[n, 2]` of the frame [-1, 1] takes it, x before y."""
    offset = torch.zeros_like(matrix[:, 0]) if offset is None else offset
    places = F.affine_grid(torch.cat([matrix, offset[:, :, None]], 2), list(images.shape), align_corners=False)
    known = (places.abs() <= 1).all(-1)[:, None].to(images.dtype)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False), known
