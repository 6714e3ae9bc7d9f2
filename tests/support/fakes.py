"""Generators for tests, by `generator.target = "fakes:Fake"`, and a small configuration that uses one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genray.config.load import build
from genray.config.run import Config


class Fake:
    """Each pixel is its number plus what decides the image, so that any change of latent, class or seed shows.

    `bad` spoils the last image of each call: "constant", "nan", "shape" or "dtype".
    """

    def __init__(self, bad: str = "", num_classes: int = 3):
        self.image_size, self.latent_dim, self.num_classes, self.bad = 8, 4, num_classes, bad

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor) -> Tensor:
        decided = (1000 * z).round().to(torch.int64) @ torch.tensor([1, 3, 5, 7]) + seeds
        if labels is not None:
            decided = decided + 11 * labels
        images = ((torch.arange(3 * 8 * 8) + decided[:, None]) % 251).to(torch.uint8).view(-1, 3, 8, 8)
        if self.bad == "constant":
            images[-1] = 7
        elif self.bad == "nan":
            images = images / 255
            images[-1, 1, 2, 3] = torch.nan
        elif self.bad == "shape":
            images = images[:, :, :4]
        elif self.bad == "dtype":
            images = images.to(torch.int32)
        return images


def small(options: dict[str, Any] | None = None, **sections: Any) -> Config:
    """A run on 8-pixel images of `Fake`, 4 anchors a step and 8 a ticket; sections replace fields."""
    classes = (options or {}).get("num_classes", 3)
    fake = {"kind": "custom", "target": "fakes:Fake", "options": options or {}, "image_size": 8, "latent_dim": 4}
    values: dict[str, Any] = {
        "name": "small",
        "generator": {**fake, "num_classes": classes, "micro_batch": 16},
        "stream": {"batch_size": 4, "ticket_batches": 2},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return build(values)


def uses(steps: int, reuse: int, window: int) -> list[tuple[int, int]]:
    """For each step how often what it shows has been shown before, and the last fresh step up to it: by definition."""
    found = [(0, step) for step in range(window)]
    while len(found) < steps:
        fresh = found[-1][1] + 1
        found += [(use, fresh) for use in range(reuse)]
    return found[:steps]


class Blob(torch.nn.Module):
    """A soft ellipse whose latents are what steering is about: x, y, log size, angle, red, green, blue, and one more.

    It keeps the contract in other ways too, with `returns`: "uint8", or "constant", floats without a gradient.
    """

    def __init__(self, returns: str = "float", latent_dim: int = 8):
        super().__init__()
        self.image_size, self.latent_dim, self.num_classes, self.returns = 16, latent_dim, 2, returns
        self.width = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, z: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
        axis = (torch.arange(16) + 0.5) / 8 - 1
        x, y = axis - 0.3 * z[:, 0, None, None], axis[:, None] - 0.3 * z[:, 1, None, None]
        angle = 0.4 * z[:, 3, None, None]
        along, across = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
        size = self.width * torch.exp(0.3 * z[:, 2, None, None])
        shape = torch.exp(-((along / size) ** 2 + (across / (0.4 + 0.1 * labels[:, None, None]) / size) ** 2))
        images = torch.tanh(1.5 * shape[:, None] + 0.4 * z[:, 4:7, None, None] - 0.5)
        if self.returns == "uint8":
            return (255 * (images + 1) / 2).to(torch.uint8)
        return images.detach() if self.returns == "constant" else images


def blob(options: dict[str, Any] | None = None, **sections: Any) -> Config:
    """A run on images of `Blob`."""
    made = {"kind": "custom", "target": "fakes:Blob", "options": options or {}, "image_size": 16, "latent_dim": 8}
    generator = {**made, "num_classes": 2, "micro_batch": 16, **sections.pop("generator", {})}
    return build({"name": "blob", "generator": generator, "tracking": {"mlflow": False}, **sections})
