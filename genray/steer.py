"""Linear walks in a generator's latent space that do what an edit of the image does: what `genray steer` learns.

Jahanian, Chai, Isola, "On the 'steerability' of generative adversarial networks" (ICLR 2020): a step t w from z is to
render what an edit of strength t makes of the image at z, by squared error over the pixels that the edit knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genray.config import Config
from genray.learned import WALKS
from genray.random import uniforms
from genray.settings import UserError

if TYPE_CHECKING:
    from genray.lesson import Source, Stateful

COLUMNS = 7
"""Images along a walk in its picture."""


MOST_ZOOM, MOST_SHIFT = 16.0, 0.9
"""Of an edited image at least a few pixels must come from within the one before."""


@dataclass(frozen=True)
class Steering:
    """How walks are learned."""

    walks: tuple[str, ...] = ()
    """Walks to learn, of zoom, shift_x, shift_y, rotation, brightness, red, green and blue; all where none is given."""
    steps: int = 500
    """Optimiser steps."""
    batch: int = 8
    """Images of each walk in a step."""
    lr: float = 1e-2
    """Learning rate of Adam."""
    zoom: float = 4.0
    """Factor by which an image is enlarged, and reduced, at the most."""
    shift: float = 0.39
    """Sides of the image by which it is shifted at the most."""
    rotation: float = 30.0
    """Degrees by which it is turned at the most."""
    colour: float = 0.5
    """Change of brightness and of each colour at the most, of pixels that reach from -1 to 1."""

    def check(self) -> None:
        """Raise UserError for what makes no sense."""
        for name in ("steps", "batch", "lr", "shift", "rotation", "colour"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} must be more than 0, got {getattr(self, name):g}")
        if self.zoom <= 1:
            raise UserError(f"--zoom must be more than 1, got {self.zoom:g}")
        for name, most in (("zoom", MOST_ZOOM), ("shift", MOST_SHIFT), ("rotation", 180.0)):
            if getattr(self, name) > most:
                raise UserError(
                    f"--{name} must be at most {most:g}, beyond which too little of an edited image is known, got "
                    f"{getattr(self, name):g}"
                )


def steer(config: Config, out: Path, options: Steering = Steering(), say: Callable[[str], None] = print) -> str:
    """Learn walks for the generator of a configuration; see `genray.lesson.Lesson.learn`."""
    from genray.edits import edits
    from genray.lesson import Lesson

    options.check()
    known = edits(options.zoom, options.shift, options.rotation, options.colour)
    if unknown := [name for name in options.walks if name not in known]:
        raise UserError(f"--walks must be of {', '.join(known)}, got {unknown[0]!r}")
    return Lesson(WALKS, config, options, out, lambda source: Walks(source, options)).learn(say)


class Walks:
    """The student: one vector for each walk, learned by itself."""

    def __init__(self, source: Source, options: Steering):
        import torch

        from genray.edits import edits

        known = edits(options.zoom, options.shift, options.rotation, options.colour)
        self.source, self.options = source, options
        self.edits = {name: known[name] for name in options.walks or known}
        shape = len(self.edits), source.spec.latent_dim
        self.walks = torch.nn.ParameterList([torch.zeros(shape, device=source.device)])
        self.adam = torch.optim.Adam(self.walks.parameters(), options.lr)

    @property
    def state(self) -> Mapping[str, Stateful]:
        return {"walks": self.walks, "adam": self.adam}

    def step(self, number: int) -> dict[str, float]:
        """The loss, and for each walk the share of the edit's squared error that it leaves; at the start all of it."""
        import torch

        source, each = self.source, self.options.batch
        count = each * len(self.edits)
        z, labels, seeds = source.draw(number, count)
        drawn = uniforms(source.seed, "steer", number * count + np.arange(count), 1)[:, 0]
        strength = torch.from_numpy((2 * drawn - 1).astype(np.float32)).to(source.device)
        with torch.no_grad():
            images = torch.cat([source.render(z[part], labels[part], seeds[part]) for part in source.parts(count)])
            parts = zip(self.edits.values(), images.split(each), strength.split(each), strict=True)
            pairs = [edit(image, amount) for edit, image, amount in parts]
            edited, known = (torch.cat(of) for of in zip(*pairs, strict=True))
            unmoved = _error(images, edited, known)
        self.adam.zero_grad()
        errors = []
        for part in source.parts(count):
            moved = z + strength[:, None] * self.walks[0].repeat_interleave(each, 0)
            error = _error(source.render(moved[part], labels[part], seeds[part]), edited[part], known[part])
            (error.sum() / each).backward()
            errors.append(error.detach())
        self.adam.step()
        left = torch.cat(errors).view(-1, each).mean(1)
        share = left / unmoved.view(-1, each).mean(1).clamp(min=1e-12)  # an edit may change nothing of black or white
        return {"loss": float(left.mean()), **dict(zip(self.edits, share.tolist(), strict=True))}

    def learned(self) -> dict[str, np.ndarray]:
        return dict(zip(self.edits, self.walks[0].detach().cpu().numpy(), strict=True))

    def told(self) -> dict[str, Any]:
        return {"ranges": {name: edit.range for name, edit in self.edits.items()}}

    def picture(self) -> np.ndarray:
        import torch

        from genray.preview import sheet

        source = self.source
        z, labels, seeds = (column[:2].repeat_interleave(COLUMNS, 0) for column in source.draw(0, 2))
        strength = torch.linspace(-1, 1, COLUMNS, device=source.device).repeat(2)[:, None]
        blocks = []
        for (name, edit), walk in zip(self.edits.items(), self.walks[0].detach(), strict=True):
            images = source.images(z + strength * walk, labels, seeds)
            low, high = edit.range
            caption = f"{name}: {low:.3g} to {high:.3g}"
            blocks.append((caption, images.reshape(2, COLUMNS, *images.shape[1:])))
        return sheet(blocks, across=2)


def _error(images: Any, edited: Any, known: Any) -> Any:
    """Mean squared error over the pixels that are known, of each image: `[n]`."""
    squared = ((images - edited) ** 2 * known).sum((1, 2, 3))
    return squared / (3 * known.sum((1, 2, 3)))
