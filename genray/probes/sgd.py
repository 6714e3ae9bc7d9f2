"""The paper's linear evaluation: a linear layer on the frozen backbone, trained by SGD on random crops.

The settings are those of the published code for arXiv 2106.05258: 60 epochs, batches of 256, momentum .9, no weight
decay, and a learning rate of .1 that is divided by five after 1/2, 2/3 and 5/6 of the epochs. The accuracy is that of
the last epoch; the published code reports the best epoch, which selects on the test images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genray.probes.linear import accuracy

LR_DROPS, LR_FACTOR = (1 / 2, 2 / 3, 5 / 6), 0.2
"""Shares of the training after which the learning rate is multiplied by the factor."""


@dataclass(frozen=True)
class LinearSGD:
    """How the linear layer is trained."""

    epochs: int = 60
    lr: float = 0.1
    """Initial learning rate, for batches of 256."""
    schedule: Literal["step", "cosine"] = "step"
    batch_size: int = 256

    def rate(self, share: float) -> float:
        """The learning rate after this share of the training, 0 to 1."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * share)) / 2
        return self.lr * LR_FACTOR ** sum(share >= drop for drop in LR_DROPS)


def train(settings: LinearSGD, features: Iterable[tuple[Tensor, Tensor]], images: int, classes: int) -> nn.Linear:
    """Train a linear layer in one pass over the features of random crops.

    Weights start at zero: the problem is convex, so a random start would converge to the same minimum.

    Args:
        settings: epochs, learning rate and batch size.
        features: batches of features `[n, F]` and classes `[n]`, of any size, in training order.
        images: number of features in all.
        classes: number of classes.
    """
    layer: nn.Linear | None = None
    seen = 0
    for x, labels in _batches(features, settings.batch_size):
        if layer is None:
            layer = nn.Linear(x.shape[1], classes, device=x.device)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            optimizer = torch.optim.SGD(layer.parameters(), lr=settings.lr, momentum=0.9)
        optimizer.param_groups[0]["lr"] = settings.rate(seen / images)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(layer(x), labels.to(x.device)))
        optimizer.step()
        seen += len(x)
    assert layer is not None  # no split is empty
    return layer


@torch.no_grad()
def top1(layer: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """Accuracy, 0 to 1."""
    return accuracy(layer(features.to(layer.weight.device)).argmax(1), labels)


def _batches(features: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """The same rows in batches of this size; the last one may be smaller."""
    rows, labels = None, None
    for x, y in features:
        rows, labels = (x, y) if rows is None or labels is None else (torch.cat([rows, x]), torch.cat([labels, y]))
        while len(rows) >= size:
            yield rows[:size], labels[:size]
            rows, labels = rows[size:], labels[size:]
    if rows is not None and labels is not None and len(rows):
        yield rows, labels
