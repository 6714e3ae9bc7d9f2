"""Generators that fail, for the tests of whole runs; workers import them by name."""

from __future__ import annotations

import torch
from torch import Tensor


class Faulty:
    """Renders noise, and from the call of this number on pixels that are not finite."""

    image_size, latent_dim, num_classes = 32, 4, 0

    def __init__(self, call: int):
        self.left = call

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        self.left -= 1
        return torch.rand(len(z), 3, 32, 32) * 2 - 1 if self.left > 0 else torch.full((len(z), 3, 32, 32), torch.nan)
