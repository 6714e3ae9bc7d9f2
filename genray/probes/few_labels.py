"""The few-label probe: logistic regression on a few labelled images of each class."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genray.config.errors import UserError
from genray.config.probe import DEFAULT_SHOTS
from genray.probes.labelled_images import ranks_in_class
from genray.probes.linear import accuracy, logistic_regression

NUM_DRAWS = 5
"""Random choices of labelled images that the mean and standard deviation are taken over."""


def few_labels(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    shots: Sequence[int] = DEFAULT_SHOTS,
    draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Iterator[tuple[str, float]]:
    """Accuracies, 0 to 1, for each number of images per class: `few.5`, the mean over draws, and `few.5.std`.

    Features have unit length, and the penalty is scikit-learn's default, C = 1: with so few images none are left to
    choose hyperparameters on (Tian, Wang, Krishnan, Tenenbaum, Isola, "Rethinking Few-Shot Image Classification: a Good
    Embedding Is All You Need?", arXiv 2003.11539). Draws are balanced and depend only on the seed; within a draw, a
    larger number of images includes the smaller ones.

    Raises:
        UserError: a class has fewer images than a draw needs.
    """
    x, queries = F.normalize(train_features), F.normalize(test_features)
    labels = train_labels.to(x.device)
    for shot in shots:
        scores = []
        for draw in range(draws):
            rows = torch.from_numpy(draw_rows(train_labels, shot, seed, draw)).to(x.device)
            start = x.new_zeros(int(labels.max()) + 1, x.shape[1]), x.new_zeros(int(labels.max()) + 1)
            weight, bias = logistic_regression(x[rows], labels[rows], 1 / len(rows), start)
            scores.append(accuracy(F.linear(queries, weight, bias).argmax(1), test_labels))
        yield f"few.{shot}", statistics.mean(scores)
        if draws > 1:
            yield f"few.{shot}.std", statistics.stdev(scores)


def draw_rows(labels: Tensor, shot: int, seed: int, draw: int) -> np.ndarray:
    """The rows of one draw, `shot` of each class, in ascending order."""
    counts = torch.bincount(labels)
    if int(counts.min()) < shot:
        raise UserError(
            f"--shots must be at most the images of each class, got {shot}, and class {int(counts.argmin())} has "
            f"{int(counts.min())}"
        )
    return np.flatnonzero(ranks_in_class(labels.cpu().numpy(), seed, "probes.few", draw) < shot)
