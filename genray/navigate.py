"""A navigator: a small network that moves a latent to where its view is hard to recognise; `genray navigate` learns it.

Li, Chang, Ma, Shan, Chen, "Optimal Positive Generation via Latent Transformation for Contrastive Learning" (NeurIPS
2022): z' = z + MLP(z) is learned to maximise the InfoNCE loss of a critic that minimises it on augmented images, and is
stopped early, while the views still show what their anchors do. Two things are done otherwise here. The distance that
latents travel decides when to stop; in the paper a person does. And what all latents would travel alike is taken off
(in the end from the last bias), because a direction common to all is found first and says nothing of an instance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genray.config import Config
from genray.learned import NAVIGATOR
from genray.settings import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genray.augment import Parameters, Policy
    from genray.lesson import Source, Stateful

SIDE, WIDTHS, EMBEDDING = 64, (32, 64, 128), 64
"""Of the critic: pixels of a side at the most, channels of its convolutions, and numbers that it makes of an image."""
ROWS, COLUMNS = 8, 5
"""Anchors in the picture, and images on the way of each."""
MANY = 4096
"""Anchors over which it is told what latents travel alike, and how far."""


@dataclass(frozen=True)
class Navigating:
    """How a navigator is learned."""

    distance: float = 0.5
    """How far latents travel, in the root mean square of a coordinate and units of the latent prior; there it ends."""
    steps: int = 2000
    """Optimiser steps at the most."""
    batch: int = 64
    """Anchors in a step, each told from all others."""
    hidden: int = 128
    """Width of the navigator's hidden layer."""
    lr: float = 1e-4
    """Learning rate of the navigator's Adam."""
    critic_lr: float = 1e-3
    """Learning rate of the critic's Adam."""
    temperature: float = 0.1
    """Temperature of the InfoNCE loss."""

    def check(self) -> None:
        """Raise UserError for what makes no sense."""
        for name in ("distance", "steps", "hidden", "lr", "critic_lr", "temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be more than 0, got {getattr(self, name):g}")
        if self.batch < 2:
            raise UserError(f"--batch must be at least 2, or there is nothing to tell an anchor from, got {self.batch}")


def navigate(config: Config, out: Path, options: Navigating = Navigating(), say: Callable[[str], None] = print) -> str:
    """Learn a navigator for the generator of a configuration; see `genray.lesson.Lesson.learn`."""
    from genray.augment import policy
    from genray.lesson import Lesson

    options.check()
    enrol = lambda source: Navigation(source, options, policy(config.augment, source.spec.image_size))  # noqa: E731
    return Lesson(NAVIGATOR, config, options, out, enrol, sections=("augment",)).learn(say)


class Navigation:
    """The student: navigator and critic, each making the other's task harder."""

    def __init__(self, source: Source, options: Navigating, policy: Policy):
        import torch

        self.source, self.options, self.policy = source, options, policy
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.seed)
            self.navigator = _navigator(source.spec.latent_dim, options.hidden).to(source.device)
            self.critic = _critic(policy.size).to(source.device)
        self.many, _, _ = source.draw(0, MANY)
        self.moves = torch.optim.Adam(self.navigator.parameters(), options.lr, maximize=True)
        self.tells = torch.optim.Adam(self.critic.parameters(), options.critic_lr)

    @property
    def state(self) -> Mapping[str, Stateful]:
        return {"navigator": self.navigator, "critic": self.critic, "moves": self.moves, "tells": self.tells}

    def step(self, number: int) -> dict[str, float] | None:
        """The critic's loss in nats, ln(2 batch - 1) where it can tell nothing, and the distance before the step."""
        import torch

        from genray.augment import augmentation
        from genray.losses import contrastive_loss

        source, batch = self.source, self.options.batch
        z, labels, seeds = source.draw(number, batch)
        parts = source.parts(batch)
        way = self.navigator(z)
        way = way - way.mean(0)
        _, travelled = self._finished()
        if travelled >= self.options.distance:
            return None
        there = (z + way).detach().requires_grad_()
        with torch.no_grad():
            shown = [torch.cat([source.render(at[p], labels[p], seeds[p]) for p in parts]) for at in (z, there)]
        # The critic compares all views, the generator renders some at a time: the gradient is handed on at the pixels.
        pixels = torch.cat(shown).requires_grad_()
        happens = augmentation(self.policy, source.seed, number * batch + np.arange(batch), 2)
        anchors = torch.arange(batch, device=source.device).repeat(2)
        embeddings = self.critic(augmented(pixels, self.policy, happens))
        loss = contrastive_loss(embeddings, anchors, self.options.temperature, self.options.temperature)
        for optimizer in (self.tells, self.moves):
            optimizer.zero_grad()
        loss.backward()
        assert pixels.grad is not None
        for part, slope in zip(parts, pixels.grad[batch:].split(source.micro_batch), strict=True):
            source.render(there[part], labels[part], seeds[part]).backward(slope)
        way.backward(there.grad)
        for optimizer in (self.tells, self.moves):
            optimizer.step()
        return {"loss": loss.item(), "distance": travelled}

    def learned(self) -> dict[str, np.ndarray]:
        network, _ = self._finished()
        layers = {"first": network[0], "second": network[2]}
        return {
            f"{name}.{key}": tensor.cpu().numpy()
            for name, layer in layers.items()
            for key, tensor in layer.state_dict().items()
        }

    def told(self) -> dict[str, Any]:
        return {"distance": self._finished()[1]}

    def picture(self) -> np.ndarray:
        import torch

        from genray.preview import sheet

        network, travelled = self._finished()
        z, labels, seeds = (column.repeat_interleave(COLUMNS, 0) for column in self.source.draw(0, ROWS))
        share = torch.linspace(0, 1, COLUMNS, device=self.source.device).repeat(ROWS)[:, None]
        with torch.no_grad():
            images = self.source.images(z + share * network(z), labels, seeds)
        return sheet(
            [(f"from anchors to views {travelled:.2f} away", images.reshape(ROWS, COLUMNS, *images.shape[1:]))]
        )

    def _finished(self) -> tuple[nn.Sequential, float]:
        """The navigator without what latents travel alike, and how far they travel."""
        import torch

        network, z = copy.deepcopy(self.navigator), self.many
        with torch.no_grad():
            network[2].bias -= network(z).mean(0)
            travelled = float(network(z).square().mean().sqrt())
        return network, travelled / self.source.anchors.truncation


def augmented(pixels: Tensor, policy: Policy, happens: Parameters) -> Tensor:
    """What `genray.augment.augment` makes of images, but from floats in [-1, 1] and with a gradient; image by image.

    Args:
        pixels: `[n, 3, H, W]`.
        policy: what may happen.
        happens: to each of them.

    Returns:
        Normalised, `[n, 3, size, size]`.
    """
    import torch
    import torch.nn.functional as F
    from torchvision.transforms import functional as T

    from genray.augment import MEAN, STD

    colour = (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue)
    images = (pixels + 1) / 2
    if images.shape[-1] > policy.resolution:
        images = F.interpolate(images, size=(policy.resolution, policy.resolution), mode="area")
    found = []
    for i, image in enumerate(images):
        box = [int(edge[i]) for edge in (happens.top, happens.left, happens.height, happens.width)]
        image = T.resized_crop(image, *box, [policy.size, policy.size], antialias=True)
        image = T.hflip(image) if happens.flip[i] else image
        for operation in happens.order[i]:
            if operation >= 0:
                image = colour[operation](image, float(happens.factors[i, operation]))
        image = T.rgb_to_grayscale(image, 3) if happens.grey[i] else image
        if happens.sigma[i]:
            image = T.gaussian_blur(image, 2 * max(1, policy.size // 20) + 1, float(happens.sigma[i]))
        found.append(image)
    return T.normalize(torch.stack(found), MEAN, STD)


def _navigator(latent_dim: int, hidden: int) -> nn.Sequential:
    """Begins as no movement at all."""
    from torch import nn

    last = nn.Linear(hidden, latent_dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), last)


def _critic(image_size: int) -> nn.Sequential:
    from torch import nn

    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(min(image_size, SIDE))]
    for inputs, outputs in zip((3, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], EMBEDDING))
