"""Few labels: balanced, reproducible draws, and a classifier against scikit-learn's."""

import statistics

import numpy as np
import pytest
import torch
from clusters import clusters

from genray.config.errors import UserError
from genray.probes.few_labels import draw_rows, few_labels


def test_a_draw_is_balanced_reproducible_and_part_of_a_larger_one():
    labels = torch.randint(7, (300,), generator=torch.Generator().manual_seed(0))
    for shot in (1, 5, 10):
        rows = draw_rows(labels, shot, seed=3, draw=1)
        assert torch.bincount(labels[rows]).tolist() == [shot] * 7
        assert np.array_equal(rows, draw_rows(labels, shot, seed=3, draw=1))
        assert set(rows) <= set(draw_rows(labels, 12, seed=3, draw=1))
        assert not np.array_equal(rows, draw_rows(labels, shot, seed=3, draw=2))
        assert not np.array_equal(rows, draw_rows(labels, shot, seed=4, draw=1))


def test_each_image_of_a_class_is_equally_likely():
    labels = torch.arange(40) % 4
    drawn = np.bincount(np.concatenate([draw_rows(labels, 3, 0, draw) for draw in range(2000)]), minlength=40)
    assert drawn.sum() == 2000 * 12
    assert np.abs(drawn / 2000 - 0.3).max() < 0.05  # five standard deviations


def test_mean_and_spread_are_those_of_scikit_learn_on_the_same_draws():
    from sklearn.linear_model import LogisticRegression

    x, labels = clusters(300, spread=1.5)
    judged, expected = clusters(200, spread=1.5, seed=1)
    found = dict(few_labels(x, labels, judged, expected, shots=(1, 5), draws=3, seed=2))
    assert list(found) == ["few.1", "few.1.std", "few.5", "few.5.std"]
    unit, unit_judged = (torch.nn.functional.normalize(part).double().numpy() for part in (x, judged))
    for shot in (1, 5):
        scores = []
        for draw in range(3):
            rows = draw_rows(labels, shot, 2, draw)
            theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(unit[rows], labels[rows])
            scores.append(theirs.score(unit_judged, expected))
        assert found[f"few.{shot}"] == pytest.approx(statistics.mean(scores), abs=0.01)
        assert found[f"few.{shot}.std"] == pytest.approx(statistics.stdev(scores), abs=0.01)
    assert found["few.1"] < found["few.5"]


def test_one_draw_has_no_spread():
    x, labels = clusters(100)
    assert list(dict(few_labels(x, labels, x, labels, shots=(2,), draws=1))) == ["few.2"]


def test_a_class_with_too_few_images_is_named():
    x, labels = torch.eye(7), torch.tensor([0, 0, 0, 1, 2, 2, 2])
    with pytest.raises(
        UserError, match=r"^--shots must be at most the images of each class, got 3, and class 1 has 1$"
    ):
        dict(few_labels(x, labels, x, labels, shots=(1, 3)))
