"""Linear classifiers of frozen features, against scikit-learn's."""

import time

import pytest
import torch
from clusters import clusters

from genray.probes import linear
from genray.probes.linear import fit_linear_probe, held_out_fifth, linear_probe


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_linear_probe_equals_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    x, labels = clusters(400, spread=1.5)
    judged, _ = clusters(200, spread=1.5, seed=1)
    probe = fit_linear_probe(x, labels)
    x_standard, judged_standard = ((part - x.mean(0)) / x.std(0, correction=0) for part in (x, judged))
    theirs = LogisticRegression(C=1 / (probe.strength * len(x)), tol=1e-8, max_iter=2000).fit(x_standard, labels)
    ours = judged_standard @ probe.weight.T + probe.bias
    expected = torch.from_numpy(theirs.decision_function(judged_standard)).float()
    assert torch.allclose(ours.softmax(1), expected.softmax(1), atol=5e-3)
    assert (probe.predict(judged) == torch.from_numpy(theirs.predict(judged_standard))).float().mean() > 0.99


def test_the_linear_probe_solves_what_is_linearly_separable_at_any_scale_and_offset():
    x, labels = clusters(500, spread=0.3)
    judged, expected = clusters(200, spread=0.3, seed=1)
    stretch, shift = torch.logspace(-4, 4, 16), torch.linspace(-50, 50, 16)
    assert linear_probe(x, labels, judged, expected) > 0.98
    assert linear_probe((x + shift) * stretch, labels, (judged + shift) * stretch, expected) > 0.98


def test_a_feature_that_never_varies_does_no_harm():
    x, labels = clusters(300)
    x[:, 3] = 7.0
    assert torch.isfinite(fit_linear_probe(x, labels).weight).all()
    assert linear_probe(x, labels, x, labels) > 0.98


def test_the_penalty_is_chosen_without_the_images_that_are_judged():
    x, labels = clusters(200, width=64, spread=4.0)
    judged, expected = clusters(100, width=64, spread=4.0, seed=1)
    before = fit_linear_probe(x, labels)
    linear_probe(x, labels, judged, expected.flip(0))
    after = fit_linear_probe(x, labels)
    assert before.strength == after.strength
    assert torch.equal(before.weight, after.weight)
    wrong = linear_probe(x, labels, judged, (expected + 1) % 10)  # the labels judged on decide the score alone
    assert wrong == pytest.approx((before.predict(judged) == (expected + 1) % 10).float().mean().item())


def test_classes_that_come_in_turn_are_all_held_out():
    x, labels = clusters(400, width=64, spread=4.0)
    order = labels.argsort(stable=True)
    fewest = labels.bincount().min()
    ranks = torch.cat([torch.arange(int(count)) for count in labels.bincount()])
    order = order[ranks < fewest].view(10, fewest).t().flatten()  # 0, 1, … 9, 0, 1, …: every fifth is a 0 or a 5
    assert labels[order][::5].unique().tolist() == [0, 5]
    shuffled = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(0))]
    judged, expected = clusters(400, width=64, spread=4.0, seed=1)
    in_turn, mixed = (linear_probe(x[rows], labels[rows], judged, expected) for rows in (order, shuffled))
    assert in_turn == pytest.approx(mixed, abs=0.03)
    held = held_out_fifth(labels[order])
    assert torch.equal(labels[order][held].bincount(), torch.full((10,), -(-int(fewest) // 5)))


def test_the_penalty_is_the_best_of_the_held_out_fifth():
    random = torch.Generator().manual_seed(3)
    noise, labels = torch.randn(300, 200, generator=random), torch.randint(10, (300,), generator=random)
    clean, clean_labels = clusters(300, spread=0.8)
    few = torch.cat([clean, 0.3 * noise], 1)
    held_out = torch.arange(300) % 5 == 0
    probe = fit_linear_probe(few, clean_labels)
    x = (few - probe.mean) * probe.scale
    fits = {}
    for strength in linear.L2_STRENGTHS:
        start = torch.zeros(10, x.shape[1]), torch.zeros(10)
        weights = linear.logistic_regression(x[~held_out], clean_labels[~held_out], strength, start)
        right = torch.nn.functional.linear(x[held_out], *weights).argmax(1) == clean_labels[held_out]
        fits[strength] = right.float().mean().item()
    assert fits[probe.strength] >= max(fits.values()) - 0.02
    assert max(fits.values()) - min(fits.values()) > 0.05  # there is something to choose
    assert linear_probe(noise[:200], labels[:200], noise[200:], labels[200:]) < 0.3  # nothing to learn


@pytest.mark.usefixtures("one_thread")
def test_the_linear_probe_takes_seconds_at_the_demos_size():
    x, labels = clusters(4000, width=512, spread=3.0)
    start = time.process_time()
    linear_probe(x, labels, x, labels)
    assert time.process_time() - start < 20
