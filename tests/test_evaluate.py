import math

import pytest
import torch
from torch import nn

from genray import evaluate, scenes
from genray.augment import MEAN, STD
from genray.config import Probe
from genray.evaluate import Judge, features, fit_linear_probe, knn, linear_probe, probe_report

PROBE = Probe(data="digit-scenes", images=400)


def clusters(n: int, width: int = 16, spread: float = 0.3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points about ten random directions."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(10, (n,), generator=random)
    return centres[labels] + spread * torch.randn(n, width, generator=random), labels


@pytest.fixture
def encoder() -> nn.Module:
    """A small network whose two modes differ."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_knn_equals_a_naive_loop():
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


def test_knn_solves_separable_clusters_whatever_the_length_of_a_feature():
    bank, bank_labels = clusters(300, spread=0.1)
    judged, labels = clusters(100, spread=0.1, seed=1)
    assert knn(bank, bank_labels, judged * torch.linspace(0.01, 100, 100)[:, None], labels, 10) == 1.0
    assert knn(bank, bank_labels, judged, (labels + 1) % 10, 10) == 0.0


def test_a_closer_neighbour_outvotes_two_that_are_further():
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    bank_labels, judged = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.05]])
    assert knn(bank, bank_labels, judged, torch.tensor([0]), k=3) == 1.0
    assert knn(bank, bank_labels, judged, torch.tensor([1]), k=3, temperature=100.0) == 1.0  # a plain majority


def test_the_bound_on_memory_changes_no_result(monkeypatch):
    bank, bank_labels = clusters(500, spread=2.0)
    judged, labels = clusters(130, spread=2.0, seed=1)
    whole = knn(bank, bank_labels, judged, labels, 10)
    monkeypatch.setattr(evaluate, "SIMILARITIES", 500 * 7)  # seven rows at once, the last chunk shorter
    assert knn(bank, bank_labels, judged, labels, 10) == whole


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


def test_the_penalty_is_the_best_of_the_held_out_fifth():
    random = torch.Generator().manual_seed(3)
    noise, labels = torch.randn(300, 200, generator=random), torch.randint(10, (300,), generator=random)
    clean, clean_labels = clusters(300, spread=0.8)
    few = torch.cat([clean, 0.3 * noise], 1)
    held_out = torch.arange(300) % 5 == 0
    probe = fit_linear_probe(few, clean_labels)
    x = (few - probe.mean) * probe.scale
    fits = {}
    for strength in evaluate.STRENGTHS:
        start = torch.zeros(10, x.shape[1]), torch.zeros(10)
        weights = evaluate._logistic_regression(x[~held_out], clean_labels[~held_out], strength, start)
        right = torch.nn.functional.linear(x[held_out], *weights).argmax(1) == clean_labels[held_out]
        fits[strength] = right.float().mean().item()
    assert fits[probe.strength] >= max(fits.values()) - 0.02
    assert max(fits.values()) - min(fits.values()) > 0.05  # there is something to choose
    assert linear_probe(noise[:200], labels[:200], noise[200:], labels[200:]) < 0.3  # nothing to learn


def test_features_do_not_depend_on_the_batch_and_leave_the_encoder_as_it_was(encoder):
    images = scenes.scenes("val", 30)[0]
    encoder[1].eval()  # a part that is frozen while the rest trains
    encoder[3].train()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    one = features(encoder, images, batch_size=7)
    assert torch.allclose(one, features(encoder, images, batch_size=30), atol=1e-6)
    assert one.dtype == torch.float32
    assert not one.requires_grad
    assert encoder.training
    assert encoder[3].training
    assert not encoder[1].training
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_an_encoder_that_fails_is_left_as_it_was(encoder):
    with pytest.raises(RuntimeError):
        features(encoder, torch.zeros(4, 5, 8, 8, dtype=torch.uint8))
    assert all(part.training for part in encoder.modules())


def test_images_are_normalised_and_resized_like_the_policy_none():
    from genray.augment import DRAWS, augment, draw, policy
    from genray.config import Augment

    images = scenes.scenes("val", 6)[0]
    pixels = features(lambda batch: batch.flatten(1), images).reshape(6, 3, 32, 32)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    assert torch.allclose(pixels, (images.float() / 255 - mean) / std, atol=1e-5)
    for size in (24, 32, 48):
        none = policy(Augment(policy="none", size=size), 32)
        expected = augment(images, none, draw(none, torch.rand(6, DRAWS).double().numpy()))
        resized = features(lambda batch: batch.flatten(1), images, size=size).reshape(6, 3, size, size)
        assert torch.allclose(resized, expected, atol=1e-4)


def test_a_report_holds_both_scores_of_every_encoder(encoder):
    probe = Probe(data="digit-scenes", images=300, neighbors=5)
    report = probe_report({"untrained": encoder, "raw_pixels": None}, probe, split="val")
    assert list(report) == ["untrained", "raw_pixels"]
    bank, judged = evaluate.dataset(probe, "train"), evaluate.dataset(probe, "val")
    a, b = features(encoder, bank.images), features(encoder, judged.images)
    assert report["untrained"]["knn"] == pytest.approx(knn(a, bank.labels, b, judged.labels, 5))
    assert report["untrained"]["linear"] == pytest.approx(linear_probe(a, bank.labels, b, judged.labels))
    assert 0.1 < report["raw_pixels"]["knn"] < 0.5
    assert Judge(probe)(encoder) == report["untrained"]["knn"]


def test_the_report_of_an_encoder_that_sees_the_class_is_perfect():
    labels = {}
    for split in ("train", "test"):
        data = evaluate.dataset(PROBE, split)
        labels |= {image.numpy().tobytes(): int(label) for image, label in zip(data.images, data.labels, strict=True)}
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def oracle(batch: torch.Tensor) -> torch.Tensor:
        pixels = ((batch * std + mean) * 255).round().to(torch.uint8)
        return torch.eye(10)[[labels[image.numpy().tobytes()] for image in pixels]]

    assert probe_report({"oracle": oracle}, PROBE)["oracle"] == {"knn": 1.0, "linear": 1.0}


def test_the_splits_judge_on_digits_that_nothing_was_learnt_from():
    sizes = {split: len(evaluate.dataset(PROBE, split).images) for split in ("train", "val", "test")}
    assert sizes == {"train": 400, "val": 1000, "test": 2388}
    assert evaluate.dataset(PROBE, "val") is evaluate.dataset(PROBE, "val")


@pytest.mark.usefixtures("one_thread")
def test_the_linear_probe_takes_seconds_at_the_demos_size():
    import time

    x, labels = clusters(4000, width=512, spread=3.0)
    start = time.process_time()
    linear_probe(x, labels, x, labels)
    assert time.process_time() - start < 20
