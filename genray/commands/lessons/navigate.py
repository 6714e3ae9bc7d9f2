"""`genray navigate`: learns a navigator, a small network that moves a latent to where its view is hard to recognise.

Li, Chang, Ma, Shan, Chen, "Optimal Positive Generation via Latent Transformation for Contrastive Learning" (NeurIPS
2022): z' = z + MLP(z) learns to maximise the InfoNCE loss of a critic, which learns to minimise it on augmented images.
Learning stops early, while the views still show what their anchors do. Two things differ from the paper. The distance
that latents move decides when to stop, instead of a person. And the mean movement is subtracted (in the end from the
last bias): a movement common to all latents is learned first, but says nothing about an instance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genray.commands.lessons.options import NavigateOptions
from genray.config.run import Config
from genray.views.walk_files import NAVIGATOR

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genray.commands.lessons.differentiable import DifferentiableGenerator
    from genray.commands.lessons.lesson import Stateful
    from genray.views.augment import Parameters, Policy

CRITIC_SIDE, CRITIC_WIDTHS, CRITIC_EMBEDDING = 64, (32, 64, 128), 64
"""The critic's largest input in pixels of a side, the channels of its convolutions, and the length of its embedding."""
PICTURE_ROWS, PICTURE_COLUMNS = 8, 5
"""Anchors in the picture, and images on the way from each to its view."""
SAMPLE_ANCHORS = 4096
"""Anchors over which the mean movement and the distance are measured."""


def navigate(
    config: Config, out: Path, options: NavigateOptions = NavigateOptions(), say: Callable[[str], None] = print
) -> str:
    """Learn a navigator for the generator of a configuration; see `genray.commands.lessons.lesson.Lesson.learn`."""
    from genray.commands.lessons.lesson import Lesson
    from genray.views.augment import policy

    options.check()

    def make_student(source: DifferentiableGenerator) -> Navigation:
        return Navigation(source, options, policy(config.augment, source.spec.image_size))

    return Lesson(NAVIGATOR, config, options, out, make_student, sections=("augment",)).learn(say)


class Navigation:
    """The student: a navigator and a critic, each of which makes the other's task harder."""

    def __init__(self, source: DifferentiableGenerator, options: NavigateOptions, policy: Policy):
        import torch

        self.source, self.options, self.policy = source, options, policy
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.seed)
            self.navigator = _navigator(source.spec.latent_dim, options.hidden).to(source.device)
            self.critic = _critic(policy.size).to(source.device)
        self.sample, _, _ = source.draw(0, SAMPLE_ANCHORS)
        self.navigator_adam = torch.optim.Adam(self.navigator.parameters(), options.lr, maximize=True)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), options.critic_lr)

    @property
    def state(self) -> Mapping[str, Stateful]:
        return {
            "navigator": self.navigator,
            "critic": self.critic,
            "moves": self.navigator_adam,  # the last two names are those in checkpoints of earlier versions
            "tells": self.critic_adam,
        }

    def step(self, number: int) -> dict[str, float] | None:
        """The critic's loss in nats, ln(2 batch - 1) at chance level, and the distance before the step."""
        import torch

        from genray.learner.losses import contrastive_loss
        from genray.views.augment import view_parameters

        source, batch = self.source, self.options.batch
        z, labels, seeds = source.draw(number, batch)
        parts = source.parts(batch)
        movement = self.navigator(z)
        movement = movement - movement.mean(0)
        _, distance = self._centred()
        if distance >= self.options.distance:
            return None
        moved = (z + movement).detach().requires_grad_()
        with torch.no_grad():
            views = [torch.cat([source.render(at[p], labels[p], seeds[p]) for p in parts]) for at in (z, moved)]
        # The critic compares all views, but the generator renders a part at a time: its backward pass begins at the
        # gradient of the pixels.
        pixels = torch.cat(views).requires_grad_()
        parameters = view_parameters(self.policy, source.seed, number * batch + np.arange(batch), 2)
        anchors = torch.arange(batch, device=source.device).repeat(2)
        embeddings = self.critic(augmented(pixels, self.policy, parameters))
        loss = contrastive_loss(embeddings, anchors, self.options.temperature, self.options.temperature)
        for optimizer in (self.critic_adam, self.navigator_adam):
            optimizer.zero_grad()
        loss.backward()
        assert pixels.grad is not None
        for part, gradient in zip(parts, pixels.grad[batch:].split(source.micro_batch), strict=True):
            source.render(moved[part], labels[part], seeds[part]).backward(gradient)
        movement.backward(moved.grad)
        for optimizer in (self.critic_adam, self.navigator_adam):
            optimizer.step()
        return {"loss": loss.item(), "distance": distance}

    def learned(self) -> dict[str, np.ndarray]:
        network, _ = self._centred()
        layers = {"first": network[0], "second": network[2]}
        return {
            f"{name}.{key}": tensor.cpu().numpy()
            for name, layer in layers.items()
            for key, tensor in layer.state_dict().items()
        }

    def metadata(self) -> dict[str, Any]:
        return {"distance": self._centred()[1]}

    def picture(self) -> np.ndarray:
        import torch

        from genray.views.preview import sheet

        network, distance = self._centred()
        rows, columns = PICTURE_ROWS, PICTURE_COLUMNS
        z, labels, seeds = (column.repeat_interleave(columns, 0) for column in self.source.draw(0, rows))
        share = torch.linspace(0, 1, columns, device=self.source.device).repeat(rows)[:, None]
        with torch.no_grad():
            images = self.source.images(z + share * network(z), labels, seeds)
        return sheet([(f"from anchors to views {distance:.2f} away", images.reshape(rows, columns, *images.shape[1:]))])

    def _centred(self) -> tuple[nn.Sequential, float]:
        """The navigator without its mean movement, and the distance that latents then move."""
        import torch

        network, z = copy.deepcopy(self.navigator), self.sample
        with torch.no_grad():
            network[2].bias -= network(z).mean(0)
            distance = float(network(z).square().mean().sqrt())
        return network, distance / self.source.anchors.truncation


def augmented(pixels: Tensor, policy: Policy, parameters: Parameters) -> Tensor:
    """`genray.views.augment.augment` with a gradient, image by image.

    Args:
        pixels: `[n, 3, H, W]` in [-1, 1].
        policy: of the augmentation.
        parameters: drawn for each image.

    Returns:
        Normalised images `[n, 3, size, size]`.
    """
    import torch
    import torch.nn.functional as F
    from torchvision.transforms import functional as T

    from genray.views.augment import MEAN, STD

    colour = (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue)
    images = (pixels + 1) / 2
    if images.shape[-1] > policy.resolution:
        images = F.interpolate(images, size=(policy.resolution, policy.resolution), mode="area")
    views = []
    for i, image in enumerate(images):
        box = [int(edge[i]) for edge in (parameters.top, parameters.left, parameters.height, parameters.width)]
        image = T.resized_crop(image, *box, [policy.size, policy.size], antialias=True)
        image = T.hflip(image) if parameters.flip[i] else image
        for operation in parameters.order[i]:
            if operation >= 0:
                image = colour[operation](image, float(parameters.factors[i, operation]))
        image = T.rgb_to_grayscale(image, 3) if parameters.grey[i] else image
        if parameters.sigma[i]:
            image = T.gaussian_blur(image, 2 * max(1, policy.size // 20) + 1, float(parameters.sigma[i]))
        views.append(image)
    return T.normalize(torch.stack(views), MEAN, STD)


def _navigator(latent_dim: int, hidden: int) -> nn.Sequential:
    """The network z -> movement; it starts as no movement at all."""
    from torch import nn

    last = nn.Linear(hidden, latent_dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), last)


def _critic(image_size: int) -> nn.Sequential:
    from torch import nn

    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(min(image_size, CRITIC_SIDE))]
    for inputs, outputs in zip((3, *CRITIC_WIDTHS), CRITIC_WIDTHS, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CRITIC_WIDTHS[-1], CRITIC_EMBEDDING))
