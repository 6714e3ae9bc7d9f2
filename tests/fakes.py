"""Generators for tests, by `generator.target = "fakes:Fake"`, and a small configuration that uses one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genray.config import Config
from genray.configure import build


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
