"""The vote of the nearest neighbours against a naive loop."""

import math

import pytest
import torch
from clusters import clusters

from genray.probes import knn as module
from genray.probes.knn import knn


def test_it_equals_a_naive_loop():
    bank, bank_labels = clusters(120, spread=2.0)
    judged, labels = clusters(60, spread=2.0, seed=1)
    for k in (1, 7, 120):
        right = 0
        for x, label in zip(judged, labels, strict=True):
            cosine = [float(x @ y / (x.norm() * y.norm())) for y in bank]
            votes = [0.0] * 10
            for i in sorted(range(len(bank)), key=lambda i: -cosine[i])[:k]:
                votes[int(bank_labels[i])] += math.exp(cosine[i] / 0.07)
            right += votes.index(max(votes)) == int(label)
        assert knn(bank, bank_labels, judged, labels, k) == pytest.approx(right / len(labels))


def test_it_solves_separable_clusters_whatever_the_length_of_a_feature():
    bank, bank_labels = clusters(300, spread=0.1)
    judged, labels = clusters(100, spread=0.1, seed=1)
    assert knn(bank, bank_labels, judged * torch.linspace(0.01, 100, 100)[:, None], labels, 10) == 1.0
    assert knn(bank, bank_labels, judged, (labels + 1) % 10, 10) == 0.0


def test_a_closer_neighbour_outvotes_two_that_are_further():
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    bank_labels, judged = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.05]])
    assert knn(bank, bank_labels, judged, torch.tensor([0]), k=3) == 1.0
    assert knn(bank, bank_labels, judged, torch.tensor([1]), k=3, temperature=100.0) == 1.0  # a plain majority


@pytest.mark.parametrize("limit", [500 * 7, 11 * 10 * 10])
def test_the_bound_on_memory_changes_no_result(limit, monkeypatch):
    bank, bank_labels = clusters(500, spread=2.0)
    judged, labels = clusters(130, spread=2.0, seed=1)
    whole = knn(bank, bank_labels, judged, labels, 10)
    monkeypatch.setattr(module, "MAX_ELEMENTS", limit)  # a few rows at once, the last chunk shorter
    assert knn(bank, bank_labels, judged, labels, 10) == whole
