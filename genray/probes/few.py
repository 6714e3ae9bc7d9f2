"""How much a representation makes of few labels."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genray.probes.images import ranks
from genray.probes.linear import accuracy, logistic_regression
from genray.probes.settings import SHOTS
from genray.settings import UserError

DRAWS = 5
"""Choices of them over which mean and spread are taken."""


def few_labels(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    seed: int = 0,
) -> Iterator[tuple[str, float]]:
    """Accuracies, 0 to 1, of logistic regression on a few images of each class: `few.5` and, over draws, `few.5.std`.

    Features are brought to unit length, and the penalty is that of scikit-learn's default, C = 1: nothing is left to be
    chosen, for which there would be no images (Tian, Wang, Krishnan, Tenenbaum, Isola, "Rethinking Few-Shot Image
    Classification: a Good Embedding Is All You Need?", arXiv 2003.11539). Draws are balanced, a function of the seed,
    and a larger number of images of a draw includes the smaller one.

    Raises:
        UserError: some class has fewer images than a draw needs.
    """
    x, judged = F.normalize(train_features), F.normalize(test_features)
    labels = train_labels.to(x.device)
    for shot in shots:
        scores = []
        for draw in range(draws):
            rows = torch.from_numpy(chosen(train_labels, shot, seed, draw)).to(x.device)
            start = x.new_zeros(int(labels.max()) + 1, x.shape[1]), x.new_zeros(int(labels.max()) + 1)
            weight, bias = logistic_regression(x[rows], labels[rows], 1 / len(rows), start)
            scores.append(accuracy(F.linear(judged, weight, bias).argmax(1), test_labels))
        yield f"few.{shot}", statistics.mean(scores)
        if draws > 1:
            yield f"few.{shot}.std", statistics.stdev(scores)


def chosen(labels: Tensor, shot: int, seed: int, draw: int) -> np.ndarray:
    """The rows of one draw, `shot` of each class, in their order."""
    counts = torch.bincount(labels)
    if int(counts.min()) < shot:
        raise UserError(
            f"--shots must be at most the images of each class, got {shot}, and class {int(counts.argmin())} has "
            f"{int(counts.min())}"
        )
    return np.flatnonzero(ranks(labels.cpu().numpy(), seed, "probes.few", draw) < shot)
