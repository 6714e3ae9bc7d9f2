"""The linear probe: logistic regression on frozen features."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

L2_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""L2 penalties that the linear probe tries, strongest first."""


class LinearProbe(NamedTuple):
    """A linear classifier of standardised features."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    """`[C, F]`."""
    bias: Tensor
    """`[C]`."""
    strength: float
    """Its L2 penalty, the best of `L2_STRENGTHS` on the held-out fifth."""

    def predict(self, features: Tensor) -> Tensor:
        """Classes, int64 `[n]`."""
        return F.linear((features - self.mean) * self.scale, self.weight, self.bias).argmax(1)


def linear_probe(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> float:
    """Test accuracy, 0 to 1, of multinomial logistic regression on frozen features."""
    predicted = fit_linear_probe(train_features, train_labels).predict(test_features)
    return accuracy(predicted, test_labels)


def fit_linear_probe(features: Tensor, labels: Tensor) -> LinearProbe:
    """Fit logistic regression to all rows, with the L2 penalty that is best on a held-out fifth of them."""
    labels = labels.to(features.device)
    mean = features.mean(0)
    scale = features.std(0, correction=0).clamp_min(1e-6).reciprocal()  # a constant feature stays 0
    x = (features - mean) * scale
    held_out = held_out_fifth(labels)
    train, train_labels, val, val_labels = x[~held_out], labels[~held_out], x[held_out], labels[held_out]

    classes = int(labels.max()) + 1
    weights = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)
    best, best_strength, best_weights, worse = -1.0, L2_STRENGTHS[0], weights, 0
    for strength in L2_STRENGTHS:
        weights = logistic_regression(train, train_labels, strength, weights)  # warm start from the stronger penalty
        score = accuracy(F.linear(val, *weights).argmax(1), val_labels)
        worse = worse + 1 if score < best else 0
        if worse == 2:
            break  # weaker penalties only fit noise, and slowly
        if score > best:
            best, best_strength, best_weights = score, strength, weights
    return LinearProbe(mean, scale, *logistic_regression(x, labels, best_strength, best_weights), best_strength)


def held_out_fifth(labels: Tensor) -> Tensor:
    """Rows to hold out, bool `[n]`: every fifth, or every fifth of each class if that would miss or exhaust a class.

    Digit scenes repeat their digits with a period that is a multiple of five, so that a digit is held out either in
    every scene or in none.
    """
    every_fifth = torch.arange(len(labels), device=labels.device) % 5 == 0
    classes = int(labels.max()) + 1
    counts, held_out = labels.bincount(minlength=classes), labels[every_fifth].bincount(minlength=classes)
    if not ((held_out == 0) & (counts >= 5) | (held_out == counts) & (counts > 1)).any():
        return every_fifth
    order = labels.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
    return rank % 5 == 0


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of predicted classes that are correct, 0 to 1."""
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
