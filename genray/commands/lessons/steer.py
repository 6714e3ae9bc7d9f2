"""`genray steer`: learns linear walks in a generator's latent space that imitate edits of its images.

Jahanian, Chai, Isola, "On the 'steerability' of generative adversarial networks" (ICLR 2020): the image at z + t w
shall equal the image at z after an edit of strength t, by squared error over the pixels that the edit knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genray.commands.lessons.options import SteerOptions
from genray.config.errors import UserError
from genray.config.run import Config
from genray.views.random import uniforms
from genray.views.walk_files import WALKS

if TYPE_CHECKING:
    from genray.commands.lessons.differentiable import DifferentiableGenerator
    from genray.commands.lessons.lesson import Stateful

PICTURE_COLUMNS = 7
"""Images along each walk in the picture."""


def steer(config: Config, out: Path, options: SteerOptions = SteerOptions(), say: Callable[[str], None] = print) -> str:
    """Learn walks for the generator of a configuration; see `genray.commands.lessons.lesson.Lesson.learn`."""
    from genray.commands.lessons.edits import edits
    from genray.commands.lessons.lesson import Lesson

    options.check()
    known = edits(options.zoom, options.shift, options.rotation, options.colour)
    if unknown := [name for name in options.walks if name not in known]:
        raise UserError(f"--walks must be of {', '.join(known)}, got {unknown[0]!r}")
    return Lesson(WALKS, config, options, out, lambda source: Walks(source, options)).learn(say)


class Walks:
    """The student: a vector for each walk, each learned on its own."""

    def __init__(self, source: DifferentiableGenerator, options: SteerOptions):
        import torch

        from genray.commands.lessons.edits import edits

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
        """The loss, and for each walk the share of the squared error that remains: 1 for a walk that does nothing."""
        import torch

        source, batch = self.source, self.options.batch
        count = batch * len(self.edits)
        z, labels, seeds = source.draw(number, count)
        uniform = uniforms(source.seed, "steer", number * count + np.arange(count), 1)[:, 0]
        strength = torch.from_numpy((2 * uniform - 1).astype(np.float32)).to(source.device)
        with torch.no_grad():
            images = torch.cat([source.render(z[part], labels[part], seeds[part]) for part in source.parts(count)])
            parts = zip(self.edits.values(), images.split(batch), strength.split(batch), strict=True)
            pairs = [edit(image, amount) for edit, image, amount in parts]
            edited, known = (torch.cat(of) for of in zip(*pairs, strict=True))
            initial = _error(images, edited, known)
        self.adam.zero_grad()
        errors = []
        for part in source.parts(count):
            moved = z + strength[:, None] * self.walks[0].repeat_interleave(batch, 0)
            error = _error(source.render(moved[part], labels[part], seeds[part]), edited[part], known[part])
            (error.sum() / batch).backward()
            errors.append(error.detach())
        self.adam.step()
        remaining = torch.cat(errors).view(-1, batch).mean(1)
        share = remaining / initial.view(-1, batch).mean(1).clamp(min=1e-12)  # some edits leave a black image as it is
        return {"loss": float(remaining.mean()), **dict(zip(self.edits, share.tolist(), strict=True))}

    def learned(self) -> dict[str, np.ndarray]:
        return dict(zip(self.edits, self.walks[0].detach().cpu().numpy(), strict=True))

    def metadata(self) -> dict[str, Any]:
        return {"ranges": {name: edit.range for name, edit in self.edits.items()}}

    def picture(self) -> np.ndarray:
        import torch

        from genray.views.preview import sheet

        source = self.source
        z, labels, seeds = (column[:2].repeat_interleave(PICTURE_COLUMNS, 0) for column in source.draw(0, 2))
        strength = torch.linspace(-1, 1, PICTURE_COLUMNS, device=source.device).repeat(2)[:, None]
        blocks = []
        for (name, edit), walk in zip(self.edits.items(), self.walks[0].detach(), strict=True):
            images = source.images(z + strength * walk, labels, seeds)
            low, high = edit.range
            caption = f"{name}: {low:.3g} to {high:.3g}"
            blocks.append((caption, images.reshape(2, PICTURE_COLUMNS, *images.shape[1:])))
        return sheet(blocks, across=2)


def _error(images: Any, edited: Any, known: Any) -> Any:
    """Mean squared error of each image over its known pixels, `[n]`."""
    squared = ((images - edited) ** 2 * known).sum((1, 2, 3))
    return squared / (3 * known.sum((1, 2, 3)))
