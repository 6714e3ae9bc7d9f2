"""Multi-label classification: one linear SVM per class, judged by average precision.

The protocol for VOC07 is that of Goyal, Mahajan, Gupta, Misra, "Scaling and Benchmarking Self-Supervised Visual
Representation Learning" (ICCV 2019, arXiv 1905.01235), which arXiv 2106.05258 follows: features of unit length, twice
the weight for positive images, the cost of each class chosen by three-fold cross-validation on the training images, and
the test split seen only by the final SVM.
"""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from genray.config.errors import UserError

COSTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Costs to try; the published list of 26 goes down to 1e-7, too low to separate features of unit length."""
FOLDS = 3


def mean_average_precision(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: Sequence[str],
    seed: int = 0,
) -> Iterator[tuple[str, float]]:
    """Mean average precision over the classes, 0 to 1.

    `svm` is the area under the precision-recall curve, `svm.11-point` the interpolation of VOC07.

    Args:
        train_features: `[n, F]`, not necessarily of unit length.
        train_labels: `[n, C]`: 1 if the image shows the class, -1 if not, 0 to leave the image out for that class.
        test_features: `[m, F]`.
        test_labels: `[m, C]`.
        classes: their names, for errors.
        seed: of the SVMs' solver.

    Raises:
        UserError: a class has too few training or test images.
    """
    from sklearn.exceptions import ConvergenceWarning

    train, test = (_unit(features) for features in (train_features, test_features))

    def of_class(c: int) -> tuple[float, float]:
        in_train, in_test = train_labels[:, c] != 0, test_labels[:, c] != 0
        positive, expected = train_labels[in_train, c] > 0, test_labels[in_test, c] > 0
        if min(positive.sum(), (~positive).sum()) < FOLDS or not expected.any():
            raise UserError(
                f"each class must have {FOLDS} training images with it, as many without it, and one test image, "
                f"got {classes[c]!r} with {positive.sum()}, {(~positive).sum()} and {expected.sum()}"
            )
        x = train[in_train]
        svm = _svm(choose_cost(x, positive, seed), seed).fit(x, positive)
        scores = svm.decision_function(test[in_test])
        return average_precision(scores, expected), eleven_point(scores, expected)

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:  # liblinear lets other threads run
        warnings.simplefilter("ignore", ConvergenceWarning)
        areas, points = zip(*pool.map(of_class, range(train_labels.shape[1])), strict=True)
    yield "svm", statistics.mean(areas)
    yield "svm.11-point", statistics.mean(points)


def choose_cost(x: np.ndarray, positive: np.ndarray, seed: int = 0) -> float:
    """The cost in `COSTS` with the best mean average precision over the folds; the first of equals."""
    from sklearn.model_selection import cross_val_score

    precision = [
        cross_val_score(_svm(cost, seed), x, positive, cv=FOLDS, scoring="average_precision").mean() for cost in COSTS
    ]
    return COSTS[int(np.argmax(precision))]


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Sum of precision times gain in recall, over images by descending score; equal scores count together.

    >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.8333333333333333
    """
    precision, recall = _curve(scores, positive)
    return float(np.sum(precision * np.diff(recall, prepend=0)))


def eleven_point(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean over the recalls 0, .1, …, 1 of the best precision at that recall or a higher one.

    Everingham, Van Gool, Williams, Winn, Zisserman, "The Pascal Visual Object Classes (VOC) Challenge" (IJCV 2010).
    """
    precision, recall = _curve(scores, positive)
    return float(np.mean([precision[recall >= point / 10 - 1e-9].max(initial=0) for point in range(11)]))


def _curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at each distinct score as the threshold, in descending order."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    true_positives = np.cumsum(positive[order])[last]
    return true_positives / (last + 1), true_positives / true_positives[-1]


def _svm(cost: float, seed: int) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight={True: 2, False: 1}, dual="auto", max_iter=2000, random_state=seed)


def _unit(features: np.ndarray) -> np.ndarray:
    rows = features.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
