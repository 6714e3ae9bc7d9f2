"""A configured generator with its anchors, differentiable in their latents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from genray.config.errors import ConfigError
from genray.config.generator import DEFAULT_MICRO_BATCH, BigGANGenerator
from genray.config.run import Config
from genray.config.view import NoLatentView
from genray.views.anchors import Anchors
from genray.views.generators import describe, load


class DifferentiableGenerator:
    """A configured generator with its anchors, differentiable in their latents.

    >>> source = DifferentiableGenerator(config)
    >>> z, labels, seeds = source.draw(step=0, count=8)
    >>> source.render(z.requires_grad_(), labels, seeds).mean().backward()
    >>> z.grad.shape
    torch.Size([8, 32])

    Raises:
        ConfigError: the generator cannot be loaded, has no latents, or has no gradient in them.
    """

    def __init__(self, config: Config):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.seed, self.spec = config.seed, describe(config.generator)
        generator = config.generator
        if isinstance(generator, BigGANGenerator):
            generator = replace(generator, compile=False, cuda_graphs=False)  # a graph holds no gradient
        if not self.spec.latent_dim:
            raise ConfigError(f"generator.kind must be one that has latents, got {config.generator.kind!r}")
        self.generator = load(generator, self.device)
        self.micro_batch = DEFAULT_MICRO_BATCH if generator.micro_batch == "auto" else generator.micro_batch
        self.anchors = Anchors(
            seed=config.seed,
            latent_dim=self.spec.latent_dim,
            num_classes=self.spec.num_classes,
            truncation=generator.truncation,
            classes=config.stream.classes,
            class_weights=config.stream.class_weights,
        )
        z, labels, seeds = self.draw(0, 1)
        try:
            self.render(z.requires_grad_(), labels, seeds)
        except RuntimeError as error:  # raised by autograd for an operation without a gradient
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"generator.kind must be one whose images have a gradient in z, got {generator.kind!r} ({reason})"
            ) from None

    def draw(self, step: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The anchors of a step: latents float32 `[n, d]`, classes and noise seeds int64 `[n]`."""
        position = step * count + np.arange(count)
        z = self.anchors.latents(position).astype(np.float32)
        columns = z, self.anchors.labels(position), self.anchors.seeds(position, NoLatentView(), 1)[:, 0]
        drawn = [torch.from_numpy(column).to(self.device) for column in columns]
        return drawn[0], drawn[1], drawn[2]

    def render(self, z: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
        """Images in [-1, 1], `[n, 3, H, W]`, with their gradient in z."""
        return self.generator.differentiable(z, labels if self.spec.num_classes else None, seeds)  # type: ignore

    @torch.no_grad()
    def images(self, z: Tensor, labels: Tensor, seeds: Tensor) -> np.ndarray:
        """Images without a gradient, uint8 `[n, 3, H, W]`, rendered as for learners."""
        parts = [
            self.generator(z[part], labels[part] if self.spec.num_classes else None, seeds[part])
            for part in self.parts(len(z))
        ]
        return torch.cat(parts).cpu().numpy()

    def parts(self, count: int) -> list[slice]:
        """The slices that cut this many images into micro-batches."""
        return [slice(first, first + self.micro_batch) for first in range(0, count, self.micro_batch)]
