"""Average precision by hand and against scikit-learn's, and the choice of costs."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from genray.config.errors import UserError
from genray.probes import svm
from genray.probes.svm import COSTS, average_precision, choose_cost, eleven_point, mean_average_precision


def several(n: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features that lean towards each class an image shows, and for three classes whether it does."""
    random = np.random.default_rng(seed)
    labels = np.where(random.random((n, 3)) < 0.3, 1, -1).astype(np.int8)
    directions = np.random.default_rng(99).normal(size=(3, 12))
    return labels @ directions + noise * random.normal(size=(n, 12)), labels


def test_average_precision_by_hand():
    scores, shown = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 0, 1], dtype=bool)
    assert average_precision(scores, shown) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # the best precision at a recall of at least 0 … .3, then .4 … .6, then .7 … 1
    assert eleven_point(scores, shown) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)
    assert average_precision(-scores, shown) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)  # it reads the same backwards


@pytest.mark.parametrize("decimals", [8, 1], ids=["distinct", "many equal"])
def test_average_precision_is_scikit_learns(decimals):
    random = np.random.default_rng(0)
    for share in (0.05, 0.5, 0.95):
        shown = random.random(300) < share
        scores = (random.normal(size=300) + shown).round(decimals)
        assert average_precision(scores, shown) == pytest.approx(average_precision_score(shown, scores))


def test_the_mean_is_over_an_svm_for_each_class(monkeypatch):
    monkeypatch.setattr(svm, "COSTS", (0.1, 1.0))
    (x, labels), (judged, expected) = several(200, 0), several(150, 1)
    found = dict(mean_average_precision(x, labels, judged, expected, "abc"))
    unit, unit_judged = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x, judged))
    areas = []
    for place in range(3):
        cost = choose_cost(unit, labels[:, place] > 0)
        theirs = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=False).fit(unit, labels[:, place])
        areas.append(average_precision_score(expected[:, place] > 0, theirs.decision_function(unit_judged)))
    assert found["svm"] == pytest.approx(np.mean(areas), abs=2e-3)
    assert np.mean(expected > 0) + 0.2 < found["svm"] < 1
    assert found["svm.11-point"] == pytest.approx(found["svm"], abs=0.05)
    assert dict(mean_average_precision(5 * x, labels, 0.1 * judged, expected, "abc")) == found


def test_the_cost_is_the_best_of_three_folds(monkeypatch):
    x, labels = several(90, 2, noise=4.0)
    x, shown = x / np.linalg.norm(x, axis=1, keepdims=True), labels[:, 0] > 0
    means = {}
    for cost in COSTS:
        scores = []
        for learnt, judged in StratifiedKFold(3).split(x, shown):
            found = LinearSVC(C=cost, class_weight={True: 2, False: 1}, dual=False).fit(x[learnt], shown[learnt])
            scores.append(average_precision_score(shown[judged], found.decision_function(x[judged])))
        means[cost] = np.mean(scores)
    assert means[choose_cost(x, shown)] >= max(means.values()) - 1e-3
    assert max(means.values()) - min(means.values()) > 0.01  # there is something to choose


def test_an_image_that_counts_neither_way_is_left_out(monkeypatch):
    monkeypatch.setattr(svm, "COSTS", (1.0,))
    (x, labels), (judged, expected) = several(120, 0), several(100, 1)
    without = dict(mean_average_precision(x, labels[:, :1], judged, expected[:, :1], "a"))
    spoilt = np.random.default_rng(5).normal(size=(40, 12)) * 9
    zeros = np.zeros((40, 1), dtype=np.int8)
    more = np.concatenate([x, spoilt]), np.concatenate([labels[:, :1], zeros])
    judged_more = np.concatenate([judged, spoilt]), np.concatenate([expected[:, :1], zeros])
    assert dict(mean_average_precision(*more, *judged_more, "a")) == pytest.approx(without)


def test_a_class_with_too_few_images_is_named():
    (x, labels), (judged, expected) = several(60, 0), several(40, 1)
    labels[:, 1] = -1
    labels[:2, 1] = 1
    with pytest.raises(UserError, match=r"^each class must have 3 training images.*, got 'b' with 2, 58 and \d+$"):
        dict(mean_average_precision(x, labels, judged, expected, "abc"))
