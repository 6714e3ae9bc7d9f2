"""How good a representation is: kNN and a linear probe on frozen features, beside honest baselines.

Whatever is judged - a trained encoder, an untrained one, raw pixels - goes through the same functions with the same
numbers. Features and classifiers are deterministic: nothing here draws at random.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genray import scenes
from genray.augment import normalise
from genray.config import Probe

Encode = Callable[[Tensor], Tensor]
"""Normalised images, float32 `[n, 3, h, w]`, to features `[n, F]`."""

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Weights of the linear probe's L2 penalty that are tried, strongest first."""

SIMILARITIES = 2**24
"""Cosines that kNN holds at once: 64 MiB."""

_SIZES: dict[scenes.Split, int] = {"val": 1000, "test": 2388}  # five scenes of each digit, and four


class Labelled(NamedTuple):
    """Images to learn a classifier from, or to judge one on."""

    images: Tensor
    """uint8 `[n, 3, H, W]`."""
    labels: Tensor
    """int64 `[n]`."""


@functools.cache
def dataset(probe: Probe, split: scenes.Split) -> Labelled:
    """The labelled images of one split: `train` to learn from, `val` for choices, `test` for the final report alone.

    They are made once and kept: do not change them in place.
    """
    return Labelled(*scenes.scenes(split, _SIZES.get(split, probe.images)))


def features(encode: Encode, images: Tensor, batch_size: int = 250, size: int | None = None) -> Tensor:
    """Features of images that are not augmented, only resized and normalised as the `none` policy does.

    Args:
        encode: what maps normalised images to features. A module is put into evaluation mode for the time being and
            fed on its own device; any other callable sees to both itself.
        images: uint8 `[n, 3, H, W]`.
        batch_size: images encoded at once.
        size: pixels of a side that the encoder was trained at; the images' own where it is not given.

    Returns:
        float32 `[n, F]`, where the encoder leaves them.
    """
    device = next(encode.parameters(), images).device if isinstance(encode, nn.Module) else images.device
    with _evaluation(encode), torch.no_grad():
        batches = [encode(_prepare(batch.to(device), size)).float() for batch in torch.split(images, batch_size)]
    return torch.cat(batches)


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 10,
    temperature: float = 0.07,
) -> float:
    """Accuracy, 0 to 1, of the k nearest neighbours' vote by cosine, each weighted by exp(cosine / temperature).

    Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018). Raw
    pixels are judged by the same vote; a plain majority by Euclidean distance is no kinder to them.
    """
    bank, judged = F.normalize(train_features), F.normalize(test_features)
    train_labels, test_labels = train_labels.to(bank.device), test_labels.to(bank.device)
    votes_for = F.one_hot(train_labels).to(bank.dtype)
    rows = max(1, SIMILARITIES // len(bank))
    correct = 0
    for chunk, labels in zip(torch.split(judged, rows), torch.split(test_labels, rows), strict=True):
        nearest, index = (chunk @ bank.T).topk(k, dim=1)
        weights = torch.exp((nearest - 1) / temperature)  # at most 1: cannot overflow
        votes = torch.einsum("nk,nkc->nc", weights, votes_for[index])
        correct += int((votes.argmax(1) == labels).sum())
    return correct / len(judged)


class LinearProbe(NamedTuple):
    """A linear classifier of standardised features, and how strongly it was held back."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    """`[C, F]`."""
    bias: Tensor
    """`[C]`."""
    strength: float
    """The one of `STRENGTHS` that was best on the held-out fifth."""

    def predict(self, features: Tensor) -> Tensor:
        """Classes, int64 `[n]`."""
        return F.linear((features - self.mean) * self.scale, self.weight, self.bias).argmax(1)


def linear_probe(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> float:
    """Accuracy, 0 to 1, of multinomial logistic regression on frozen features, on images it has never seen."""
    predicted = fit_linear_probe(train_features, train_labels).predict(test_features)
    return accuracy(predicted, test_labels)


def fit_linear_probe(features: Tensor, labels: Tensor) -> LinearProbe:
    """Logistic regression, its L2 penalty chosen on every fifth row and then fitted to all of them.

    Digit scenes repeat their digits with a period that five divides, so a held-out digit is held out in every scene.
    """
    labels = labels.to(features.device)
    mean = features.mean(0)
    scale = features.std(0, correction=0).clamp_min(1e-6).reciprocal()  # a constant feature stays nothing
    x = (features - mean) * scale
    held_out = torch.arange(len(x), device=x.device) % 5 == 0
    learnt, learnt_labels, judged, judged_labels = x[~held_out], labels[~held_out], x[held_out], labels[held_out]

    classes = int(labels.max()) + 1
    weights = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)
    best, best_strength, best_weights = -1.0, STRENGTHS[0], weights
    for strength in STRENGTHS:
        weights = _logistic_regression(learnt, learnt_labels, strength, weights)  # from where the stronger one ended
        right = accuracy(F.linear(judged, *weights).argmax(1), judged_labels)
        if right < best:
            break  # from here on it only fits the noise, and slowly
        if right > best:
            best, best_strength, best_weights = right, strength, weights
    return LinearProbe(mean, scale, *_logistic_regression(x, labels, best_strength, best_weights), best_strength)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of predicted classes that are right, 0 to 1."""
    return (predicted == labels.to(predicted.device)).float().mean().item()


class Judge:
    """The quick probe during training: kNN accuracy on the validation split.

    >>> Judge(config.probe)(encoder.features)
    0.83
    """

    def __init__(self, probe: Probe, size: int | None = None) -> None:
        self.probe, self.size = probe, size
        self.bank, self.judged = dataset(probe, "train"), dataset(probe, "val")

    def __call__(self, encode: Encode) -> float:
        bank, judged = (features(encode, data.images, size=self.size) for data in (self.bank, self.judged))
        return knn(bank, self.bank.labels, judged, self.judged.labels, self.probe.neighbors)


def probe_report(
    encoders: Mapping[str, Encode | None], probe: Probe, split: scenes.Split = "test", size: int | None = None
) -> dict[str, dict[str, float]]:
    """kNN and linear-probe accuracies, 0 to 1, of several encoders on the same labelled images.

    Args:
        encoders: by name; None stands for raw pixels, normalised and flattened at the size they have.
        probe: the labelled images and the number of neighbours.
        split: what they are judged on.
        size: pixels of a side that the encoders were trained at.

    Returns:
        For example `{"trained": {"knn": 0.83, "linear": 0.9}, "raw_pixels": {"knn": 0.4, "linear": 0.3}}`.
    """
    bank, judged = dataset(probe, "train"), dataset(probe, split)
    report = {}
    for name, encode in encoders.items():
        pixels = None if encode is None else size
        learnt, seen = (features(encode or _flatten, data.images, size=pixels) for data in (bank, judged))
        report[name] = {
            "knn": knn(learnt, bank.labels, seen, judged.labels, probe.neighbors),
            "linear": linear_probe(learnt, bank.labels, seen, judged.labels),
        }
    return report


def _flatten(images: Tensor) -> Tensor:
    return images.flatten(1)


def _prepare(images: Tensor, size: int | None) -> Tensor:
    pixels = images.float()
    if size is not None and size != pixels.shape[-1]:
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return normalise(pixels.transpose(0, 1) / 255)


@contextmanager
def _evaluation(encode: Encode) -> Iterator[None]:
    """Evaluation mode for a module, and afterwards for each of its parts the mode it had."""
    before = [(part, part.training) for part in encode.modules()] if isinstance(encode, nn.Module) else []
    try:
        for part, _ in before:
            part.training = False
        yield
    finally:
        for part, training in before:
            part.training = training


def _logistic_regression(
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
