"""Linear classifiers of frozen features, by logistic regression."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Weights of the linear probe's L2 penalty that are tried, strongest first."""


class LinearProbe(NamedTuple):
    """A linear classifier of standardised features, and how strongly it was held back."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    """`[C, F]`."""
    bias: Tensor
    """`[C]`."""
    strength: float
    """The one of `STRENGTHS` that was best on the held-out fifth."""

    def predict(self, features: Tensor) -> Tensor:
        """Classes, int64 `[n]`."""
        return F.linear((features - self.mean) * self.scale, self.weight, self.bias).argmax(1)


def linear_probe(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> float:
    """Accuracy, 0 to 1, of multinomial logistic regression on frozen features, on images it has never seen."""
    predicted = fit_linear_probe(train_features, train_labels).predict(test_features)
    return accuracy(predicted, test_labels)


def fit_linear_probe(features: Tensor, labels: Tensor) -> LinearProbe:
    """Logistic regression, its L2 penalty chosen on a fifth of the rows and then fitted to all of them."""
    labels = labels.to(features.device)
    mean = features.mean(0)
    scale = features.std(0, correction=0).clamp_min(1e-6).reciprocal()  # a constant feature stays nothing
    x = (features - mean) * scale
    held_out = _fifth(labels)
    learnt, learnt_labels, judged, judged_labels = x[~held_out], labels[~held_out], x[held_out], labels[held_out]

    classes = int(labels.max()) + 1
    weights = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)
    best, best_strength, best_weights, falls = -1.0, STRENGTHS[0], weights, 0
    for strength in STRENGTHS:
        weights = logistic_regression(learnt, learnt_labels, strength, weights)  # from where the stronger one ended
        right = accuracy(F.linear(judged, *weights).argmax(1), judged_labels)
        falls = falls + 1 if right < best else 0
        if falls == 2:
            break  # from here on it only fits the noise, and slowly
        if right > best:
            best, best_strength, best_weights = right, strength, weights
    return LinearProbe(mean, scale, *logistic_regression(x, labels, best_strength, best_weights), best_strength)


def _fifth(labels: Tensor) -> Tensor:
    """Rows that are held out, bool `[n]`: every fifth, or, where classes come in turn, every fifth of each class.

    Digit scenes repeat their digits with a period that five divides, so a held-out digit is held out in every scene.
    """
    every = torch.arange(len(labels), device=labels.device) % 5 == 0
    classes = int(labels.max()) + 1
    all_, held = labels.bincount(minlength=classes), labels[every].bincount(minlength=classes)
    if not ((held == 0) & (all_ >= 5) | (held == all_) & (all_ > 1)).any():
        return every
    order = labels.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(labels), device=labels.device) - (all_.cumsum(0) - all_)[labels[order]]
    return rank % 5 == 0


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of predicted classes that are right, 0 to 1."""
    return (predicted == labels.to(predicted.device)).float().mean().item()


def logistic_regression(
    x: Tensor, labels: Tensor, strength: float, start: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Weight `[C, F]` and bias `[C]` that minimise mean cross-entropy + strength / 2 x |weight|^2, by L-BFGS."""
    weight, bias = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=100, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + strength / 2 * weight.square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
