"""The paper's linear evaluation: a linear layer on the frozen backbone, trained by SGD on random crops.

The numbers are those of the published code for arXiv 2106.05258: 60 epochs of batches of 256, momentum .9, no decay, a
rate of .1 that falls to a fifth after 1/2, 2/3 and 5/6 of the epochs. What is reported is the last epoch's accuracy;
that code reports the best of all epochs, which chooses by the test images.
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

DROPS, FALL = (1 / 2, 2 / 3, 5 / 6), 0.2


@dataclass(frozen=True)
class SGD:
    """How the linear layer is trained."""

    epochs: int = 60
    lr: float = 0.1
    """Learning rate at the start, for batches of 256."""
    schedule: Literal["step", "cosine"] = "step"
    batch_size: int = 256

    def rate(self, share: float) -> float:
        """The learning rate after a share of the training, 0 to 1."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * share)) / 2
        return self.lr * FALL ** sum(share >= drop for drop in DROPS)


def train(settings: SGD, features: Iterable[tuple[Tensor, Tensor]], images: int, classes: int) -> nn.Linear:
    """The linear layer after one pass over features of random crops.

    It starts at zero, from where every draw of weights would be led to the same minimum.

    Args:
        settings: how.
        features: batches of features `[n, F]` and classes `[n]`, of any size, in the order they are to be learned from.
        images: how many features there are.
        classes: how many classes.
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
    """The same rows in batches of this size; the last may be smaller."""
    rows, labels = None, None
    for x, y in features:
        rows, labels = (x, y) if rows is None or labels is None else (torch.cat([rows, x]), torch.cat([labels, y]))
        while len(rows) >= size:
            yield rows[:size], labels[:size]
            rows, labels = rows[size:], labels[size:]
    if rows is not None and labels is not None and len(rows):
        yield rows, labels
