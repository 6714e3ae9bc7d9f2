"""Runs probes on backbones and labelled images, for `genray evaluate`, and formats their metrics as a table.

A probe is a function that takes a `Subject` and yields (metric, value).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from genray.config.errors import UserError
from genray.config.probe import DEFAULT_SHOTS, ProbeName
from genray.probes.backbones import Backbone
from genray.probes.extraction import Extractor, all_features
from genray.probes.few_labels import NUM_DRAWS, few_labels
from genray.probes.knn import knn
from genray.probes.labelled_images import LabelledImages, Split, subset
from genray.probes.linear import linear_probe
from genray.probes.sgd import LinearSGD, top1, train
from genray.probes.shown_images import ShownImages
from genray.probes.similarity import MAX_IMAGES, similarity
from genray.probes.svm import mean_average_precision


@dataclass(frozen=True)
class ProbeSettings:
    """The settings of the probes."""

    neighbors: int = 10
    """Number of neighbours in kNN."""
    shots: tuple[int, ...] = DEFAULT_SHOTS
    """Labelled images of each class in the few-label probe."""
    draws: int = NUM_DRAWS
    """Random choices of these images."""
    sgd: LinearSGD = field(default_factory=LinearSGD)
    seed: int = 0
    """Determines all random numbers: draws of labels, random crops and their order."""


class Subject:
    """A backbone and the labelled images to judge it on; features of whole images are computed once."""

    def __init__(self, backbone: Backbone, data: LabelledImages, settings: ProbeSettings, extract: Extractor) -> None:
        self.backbone, self.data, self.settings, self.extract = backbone, data, settings, extract

    @cached_property
    def train(self) -> Tensor:
        """Features of the training images, `[n, F]`."""
        return self._features(self.data.train)

    @cached_property
    def test(self) -> Tensor:
        """Features of the test images, `[m, F]`."""
        return self._features(self.data.test)

    @property
    def labels(self) -> tuple[Tensor, Tensor]:
        """Labels of the training and the test images."""
        return torch.from_numpy(self.data.train.labels), torch.from_numpy(self.data.test.labels)

    def crops(self, split: Split, epochs: int, shuffled: bool) -> ShownImages:
        """Random crops of a split's images, over several epochs."""
        return ShownImages(split, self.backbone.geometry, epochs, shuffled, self.data.may_mirror, self.settings.seed)

    def _features(self, split: Split) -> Tensor:
        features = all_features(ShownImages(split, self.backbone.geometry), self.backbone, self.extract)
        device = self.extract.device
        if device.type == "cuda" and 4 * features.nbytes > torch.cuda.mem_get_info()[0]:
            return features  # classifiers need at least as much memory again
        return features.to(device)


def _knn(subject: Subject) -> Iterator[tuple[str, float]]:
    train_labels, test_labels = subject.labels
    k = subject.settings.neighbors
    if k > len(train_labels):
        raise UserError(f"--neighbors must be at most the number of training images ({len(train_labels)}), got {k}")
    yield "knn", knn(subject.train, train_labels, subject.test, test_labels, k)


def _linear(subject: Subject) -> Iterator[tuple[str, float]]:
    train_labels, test_labels = subject.labels
    yield "linear", linear_probe(subject.train, train_labels, subject.test, test_labels)


def _few(subject: Subject) -> Iterator[tuple[str, float]]:
    (train_labels, test_labels), settings = subject.labels, subject.settings
    yield from few_labels(
        subject.train, train_labels, subject.test, test_labels, settings.shots, settings.draws, settings.seed
    )


def _sgd(subject: Subject) -> Iterator[tuple[str, float]]:
    crops = subject.crops(subject.data.train, subject.settings.sgd.epochs, shuffled=True)
    batches = (
        (features.to(subject.extract.device), torch.from_numpy(crops.labels(positions)))
        for positions, features in subject.extract(crops, subject.backbone)
    )
    layer = train(subject.settings.sgd, batches, len(crops), len(subject.data.classes))
    yield "sgd", top1(layer, subject.test, subject.labels[1])


def _svm(subject: Subject) -> Iterator[tuple[str, float]]:
    yield from mean_average_precision(
        subject.train.cpu().numpy(),
        subject.data.train.labels,
        subject.test.cpu().numpy(),
        subject.data.test.labels,
        subject.data.classes,
        subject.settings.seed,
    )


def _similarity(subject: Subject) -> Iterator[tuple[str, float]]:
    crops = subject.crops(subset(subject.data.test, MAX_IMAGES), 2, shuffled=False)
    first, second = all_features(crops, subject.backbone, subject.extract).chunk(2)
    yield from similarity(first, second)


ProbeFunction = Callable[[Subject], Iterator[tuple[str, float]]]
"""Yields names of metrics and their values."""

PROBES: dict[ProbeName, ProbeFunction] = {
    "knn": _knn,
    "linear": _linear,
    "few": _few,
    "sgd": _sgd,
    "similarity": _similarity,
    "svm": _svm,
}


def judge(
    backbones: Sequence[Backbone],
    data: LabelledImages,
    probes: Sequence[ProbeName],
    settings: ProbeSettings,
    extract: Extractor,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run every probe on every backbone.

    Args:
        backbones: the networks to judge.
        data: the labelled images.
        probes: names of probes; if empty, kNN and linear, or svm for multi-label images.
        settings: of the probes.
        extract: computes features.
        say: gets a line before each probe.

    Returns:
        `data` (its name and sizes), `settings`, and `backbones`: for each of them its metrics by name.

    Raises:
        UserError: a probe does not suit the data, or an image cannot be decoded.
    """
    data.check_suits(probes, "--probe")
    default: Sequence[ProbeName] = ("svm",) if data.multi_label else ("knn", "linear")
    metrics: dict[str, dict[str, float]] = {}
    for backbone in backbones:
        subject = Subject(backbone, data, settings, extract)
        metrics[backbone.name] = {}
        for name in probes or default:
            say(f"{backbone.name}: {name} on {data.name}")
            metrics[backbone.name].update(PROBES[name](subject))
    sizes = {"train": len(data.train), "test": len(data.test), "classes": len(data.classes)}
    return {"data": {"name": data.name, **sizes}, "settings": asdict(settings), "backbones": metrics}


def table(results: Mapping[str, Any]) -> list[str]:
    """The results of `judge` as printable lines: accuracies and precisions in percent, with spreads over draws."""
    data, rows = results["data"], results["backbones"]
    metrics = [name for name in dict.fromkeys(name for row in rows.values() for name in row) if _is_shown(name)]
    cells = {name: [_cell(row, metric) for metric in metrics] for name, row in rows.items()}
    widths = [max(len(text) for text in column) for column in zip(metrics, *cells.values(), strict=True)]
    first = max(map(len, [*rows, "backbone"]))
    lines = [
        f"{data['name']}: {data['train']:,} training images, {data['test']:,} test images, {data['classes']:,} classes"
    ]
    for name, row in {"backbone": metrics, **cells}.items():
        lines.append("  ".join([f"{name:{first}}", *(f"{c:>{w}}" for c, w in zip(row, widths, strict=True))]))
    return lines


def _is_shown(metric: str) -> bool:
    return not metric.endswith(".std")


def _cell(row: Mapping[str, float], metric: str) -> str:
    value = row[metric]
    if metric in ("alignment", "uniformity"):
        return f"{value:.3f}"
    spread = row.get(f"{metric}.std")
    return f"{value:.1%}" + (f" ±{100 * spread:.1f}" if spread is not None else "")
