"""Options of lessons besides the configuration; importing this module does not import numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from genray.config.errors import UserError

MAX_ZOOM, MAX_SHIFT = 16.0, 0.9
"""Zoom factor and shift (in image sides) beyond which hardly any pixel of an edited image comes from the original."""


@dataclass(frozen=True)
class SteerOptions:
    """How walks are learned."""

    walks: Annotated[tuple[str, ...], arg(help_behavior_hint="")] = ()
    """Walks to learn, out of zoom, shift_x, shift_y, rotation, brightness, red, green and blue. All by default."""
    steps: int = 500
    """Optimiser steps."""
    batch: int = 8
    """Images per walk in a step."""
    lr: float = 1e-2
    """Learning rate of Adam."""
    zoom: float = 4.0
    """Largest factor by which an image is enlarged or reduced."""
    shift: float = 0.39
    """Largest shift, as a share of the image's side."""
    rotation: float = 30.0
    """Largest rotation, in degrees."""
    colour: float = 0.5
    """Largest change of brightness and of each colour, for pixels from -1 to 1."""

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        for name in ("steps", "batch", "lr", "shift", "rotation", "colour"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} must be more than 0, got {getattr(self, name):g}")
        if self.zoom <= 1:
            raise UserError(f"--zoom must be more than 1, got {self.zoom:g}")
        for name, limit in (("zoom", MAX_ZOOM), ("shift", MAX_SHIFT), ("rotation", 180.0)):
            if getattr(self, name) > limit:
                raise UserError(
                    f"--{name} must be at most {limit:g}, beyond which too little of an edited image is known, got "
                    f"{getattr(self, name):g}"
                )


@dataclass(frozen=True)
class NavigateOptions:
    """How a navigator is learned."""

    distance: float = 0.5
    """Distance that latents move at which learning stops: root mean square of a coordinate, in units of the prior."""
    steps: int = 2000
    """Largest number of optimiser steps."""
    batch: int = 64
    """Anchors in a step, each contrasted with all others."""
    hidden: int = 128
    """Width of the navigator's hidden layer."""
    lr: float = 1e-4
    """Learning rate of the navigator's Adam."""
    critic_lr: float = 1e-3
    """Learning rate of the critic's Adam."""
    temperature: float = 0.1
    """Temperature of the InfoNCE loss."""

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        for name in ("distance", "steps", "hidden", "lr", "critic_lr", "temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be more than 0, got {getattr(self, name):g}")
        if self.batch < 2:
            raise UserError(f"--batch must be at least 2, so that anchors can be contrasted, got {self.batch}")
