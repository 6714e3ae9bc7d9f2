"""Classes that images show several of at once: a linear SVM for each, judged by average precision.

The protocol for VOC07 is that of Goyal, Mahajan, Gupta, Misra, "Scaling and Benchmarking Self-Supervised Visual
Representation Learning" (ICCV 2019, arXiv 1905.01235), which arXiv 2106.05258 follows: features of unit length, a
positive image weighing as much as two others, the cost of each class chosen by three-fold cross-validation on what the
SVM then learns from, and the test split seen only by the SVM that was chosen.
"""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from genray.settings import UserError

COSTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Costs that are tried; the published list of 26 goes down to 1e-7, where features of unit length are all the same."""
FOLDS = 3


def mean_average_precision(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: Sequence[str],
    seed: int = 0,
) -> Iterator[tuple[str, float]]:
    """Means over the classes, 0 to 1: `svm`, the area under precision over recall, and `svm.11-point`, as VOC07 has it.

    Args:
        train_features: `[n, F]`, of any length, but for zero.
        train_labels: `[n, C]`: 1 for shown, -1 for not; an image with 0 is left out for that class.
        test_features: `[m, F]`.
        test_labels: `[m, C]`.
        classes: their names, for errors.
        seed: of the SVMs' solver.

    Raises:
        UserError: a class has too few images to learn from or to judge on.
    """
    from sklearn.exceptions import ConvergenceWarning

    learnt, judged = (_unit(found) for found in (train_features, test_features))

    def of_class(place: int) -> tuple[float, float]:
        counted, seen = train_labels[:, place] != 0, test_labels[:, place] != 0
        shown, expected = train_labels[counted, place] > 0, test_labels[seen, place] > 0
        if min(shown.sum(), (~shown).sum()) < FOLDS or not expected.any():
            raise UserError(
                f"each class must have {FOLDS} images to learn from with it and without it, and one to judge on, "
                f"got {classes[place]!r} with {shown.sum()}, {(~shown).sum()} and {expected.sum()}"
            )
        x = learnt[counted]
        found = _svm(choose_cost(x, shown, seed), seed).fit(x, shown)
        scores = found.decision_function(judged[seen])
        return average_precision(scores, expected), eleven_point(scores, expected)

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:  # liblinear lets other threads run
        warnings.simplefilter("ignore", ConvergenceWarning)
        areas, points = zip(*pool.map(of_class, range(train_labels.shape[1])), strict=True)
    yield "svm", statistics.mean(areas)
    yield "svm.11-point", statistics.mean(points)


def choose_cost(x: np.ndarray, shown: np.ndarray, seed: int = 0) -> float:
    """The first of `COSTS` with the best mean average precision over the folds."""
    from sklearn.model_selection import cross_val_score

    precision = [
        cross_val_score(_svm(cost, seed), x, shown, cv=FOLDS, scoring="average_precision").mean() for cost in COSTS
    ]
    return COSTS[int(np.argmax(precision))]


def average_precision(scores: np.ndarray, shown: np.ndarray) -> float:
    """The sum, over images in the order of their scores, of precision times the gain in recall; equal scores are one.

    >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.8333333333333333
    """
    precision, recall = _curve(scores, shown)
    return float(np.sum(precision * np.diff(recall, prepend=0)))


def eleven_point(scores: np.ndarray, shown: np.ndarray) -> float:
    """The mean, at recalls of 0, .1, …, 1, of the best precision at that recall or a higher one.

    Everingham, Van Gool, Williams, Winn, Zisserman, "The Pascal Visual Object Classes (VOC) Challenge" (IJCV 2010).
    """
    precision, recall = _curve(scores, shown)
    return float(np.mean([precision[recall >= point / 10 - 1e-9].max(initial=0) for point in range(11)]))


def _curve(scores: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of taking all images down to each score."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    right = np.cumsum(shown[order])[last]
    return right / (last + 1), right / right[-1]


def _svm(cost: float, seed: int) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight={True: 2, False: 1}, dual="auto", max_iter=2000, random_state=seed)


def _unit(features: np.ndarray) -> np.ndarray:
    rows = features.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
