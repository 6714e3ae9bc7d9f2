"""`genray evaluate`: backbones, labelled images and probes in, a table of figures out.

A probe is a function of a `Subject` that yields (metric, value).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from genray.probes.backbones import Backbone
from genray.probes.extraction import Extract, all_features
from genray.probes.few import DRAWS, few_labels
from genray.probes.images import LabelledImages, Split, some
from genray.probes.knn import knn
from genray.probes.linear import linear_probe
from genray.probes.settings import SHOTS, ProbeName
from genray.probes.sgd import SGD, top1, train
from genray.probes.showing import Showing
from genray.probes.similarity import IMAGES, similarity
from genray.probes.svm import mean_average_precision
from genray.settings import UserError


@dataclass(frozen=True)
class Settings:
    """The numbers of the probes."""

    neighbors: int = 10
    """Neighbours that vote."""
    shots: tuple[int, ...] = SHOTS
    """Labelled images of each class, where labels are few."""
    draws: int = DRAWS
    """Choices of them."""
    sgd: SGD = field(default_factory=SGD)
    seed: int = 0
    """Decides every random number: draws of labels, random crops, their order."""


class Subject:
    """A backbone before labelled images; what it makes of them whole is computed once."""

    def __init__(self, backbone: Backbone, data: LabelledImages, settings: Settings, extract: Extract) -> None:
        self.backbone, self.data, self.settings, self.extract = backbone, data, settings, extract

    @cached_property
    def learnt(self) -> Tensor:
        """Features to learn from, `[n, F]`."""
        return self._whole(self.data.train)

    @cached_property
    def judged(self) -> Tensor:
        """Features to judge on, `[m, F]`."""
        return self._whole(self.data.test)

    @property
    def labels(self) -> tuple[Tensor, Tensor]:
        """Labels of both."""
        return torch.from_numpy(self.data.train.labels), torch.from_numpy(self.data.test.labels)

    def crops(self, split: Split, epochs: int, shuffled: bool) -> Showing:
        """Random crops of a split's images, over several epochs."""
        return Showing(split, self.backbone.geometry, epochs, shuffled, self.data.mirrored, self.settings.seed)

    def _whole(self, split: Split) -> Tensor:
        found = all_features(Showing(split, self.backbone.geometry), self.backbone, self.extract)
        device = self.extract.device
        if device.type == "cuda" and 4 * found.nbytes > torch.cuda.mem_get_info()[0]:
            return found  # classifiers need as much again, and more
        return found.to(device)


def _knn(subject: Subject) -> Iterator[tuple[str, float]]:
    learnt, labels = subject.labels
    k = subject.settings.neighbors
    if k > len(learnt):
        raise UserError(f"--neighbors must be at most the images to learn from ({len(learnt)}), got {k}")
    yield "knn", knn(subject.learnt, learnt, subject.judged, labels, k)


def _linear(subject: Subject) -> Iterator[tuple[str, float]]:
    learnt, labels = subject.labels
    yield "linear", linear_probe(subject.learnt, learnt, subject.judged, labels)


def _few(subject: Subject) -> Iterator[tuple[str, float]]:
    (learnt, labels), settings = subject.labels, subject.settings
    yield from few_labels(subject.learnt, learnt, subject.judged, labels, settings.shots, settings.draws, settings.seed)


def _sgd(subject: Subject) -> Iterator[tuple[str, float]]:
    showing = subject.crops(subject.data.train, subject.settings.sgd.epochs, shuffled=True)
    found = (
        (part.to(subject.extract.device), torch.from_numpy(showing.labels(positions)))
        for positions, part in subject.extract(showing, subject.backbone)
    )
    layer = train(subject.settings.sgd, found, len(showing), len(subject.data.classes))
    yield "sgd", top1(layer, subject.judged, subject.labels[1])


def _svm(subject: Subject) -> Iterator[tuple[str, float]]:
    learnt, judged = (found.cpu().numpy() for found in (subject.learnt, subject.judged))
    yield from mean_average_precision(
        learnt,
        subject.data.train.labels,
        judged,
        subject.data.test.labels,
        subject.data.classes,
        subject.settings.seed,
    )


def _similarity(subject: Subject) -> Iterator[tuple[str, float]]:
    showing = subject.crops(some(subject.data.test, IMAGES), 2, shuffled=False)
    first, second = all_features(showing, subject.backbone, subject.extract).chunk(2)
    yield from similarity(first, second)


Probe = Callable[[Subject], Iterator[tuple[str, float]]]
"""What it finds: names of metrics, and their values."""

PROBES: dict[ProbeName, Probe] = {
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
    settings: Settings,
    extract: Extract,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Every probe of every backbone; the usual ones, kNN and linear or svm, where none are asked for.

    Returns:
        `data` (its name and sizes), `settings`, and `backbones`: for each its metrics by name.

    Raises:
        UserError: a probe does not suit the data, or an image cannot be decoded.
    """
    data.check_suits(probes, "--probe")
    usual: Sequence[ProbeName] = ("svm",) if data.several else ("knn", "linear")
    found: dict[str, dict[str, float]] = {}
    for backbone in backbones:
        subject = Subject(backbone, data, settings, extract)
        found[backbone.name] = {}
        for name in probes or usual:
            say(f"{backbone.name}: {name} on {data.name}")
            found[backbone.name].update(PROBES[name](subject))
    sizes = {"train": len(data.train), "test": len(data.test), "classes": len(data.classes)}
    return {"data": {"name": data.name, **sizes}, "settings": asdict(settings), "backbones": found}


def table(found: Mapping[str, Any]) -> list[str]:
    """The figures of `judge` for people: accuracies and precisions in percent, with their spread over draws."""
    data, rows = found["data"], found["backbones"]
    metrics = [name for name in dict.fromkeys(name for row in rows.values() for name in row) if _is_shown(name)]
    cells = {name: [_cell(row, metric) for metric in metrics] for name, row in rows.items()}
    widths = [max(len(text) for text in column) for column in zip(metrics, *cells.values(), strict=True)]
    first = max(map(len, [*rows, "backbone"]))
    lines = [
        f"{data['name']}: {data['train']:,} images to learn from, {data['test']:,} to judge on, "
        f"{data['classes']:,} classes"
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
