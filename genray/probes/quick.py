"""The probes that a run makes itself: kNN while it trains, kNN and a linear probe at its end, beside honest baselines.

Where images show several classes, there is average precision at the end instead, and nothing meanwhile. Whatever is
judged - a trained encoder, an untrained one, raw pixels - goes through the same functions with the same numbers.
Features and classifiers are deterministic: nothing here draws at random.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genray import scenes
from genray.probes import data, digits
from genray.probes.backbones import RAW_SIZE
from genray.probes.extraction import DECODERS
from genray.probes.features import Encode, features, flatten
from genray.probes.images import Split, some
from genray.probes.knn import knn
from genray.probes.linear import linear_probe
from genray.probes.pixels import Geometry, whole
from genray.probes.settings import DIGITS, Probe
from genray.probes.svm import mean_average_precision


class Labelled(NamedTuple):
    """Images to learn a classifier from, or to judge one on."""

    images: Tensor
    """uint8 `[n, 3, H, W]`."""
    labels: Tensor
    """int64 `[n]`; where an image may show several, int8 `[n, C]`."""


@functools.cache
def dataset(probe: Probe, split: scenes.Split, size: int | None = None) -> Labelled:
    """The labelled images of one split: `train` to learn from, `val` for choices, `test` for the final report alone.

    Digit scenes are as they are, all of them. Of other images there are at most `probe.images` in a split, with sides
    of `size`. They are made once and kept: do not change them in place.

    Raises:
        UserError: there are no such images, or one cannot be decoded.
    """
    if probe.data == DIGITS:
        found = digits.split(split, probe.images)
        assert found.pixels is not None
        return Labelled(found.pixels, torch.from_numpy(found.labels))
    assert size is not None
    images = data.of_run(probe)
    train, val = images.for_choices()
    return _decoded(some({"train": train, "val": val, "test": images.test}[split], probe.images), size)


def _decoded(split: Split, size: int) -> Labelled:
    geometry = Geometry(size, size)
    with ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
        pixels = list(pool.map(lambda row: whole(split.source.image(row), geometry), range(len(split))))
    return Labelled(torch.from_numpy(np.stack(pixels)), torch.from_numpy(split.labels))


class Judge:
    """The quick probe during training: kNN accuracy on the validation split.

    >>> Judge(config.probe)(encoder.features)
    0.83
    """

    def __init__(self, probe: Probe, size: int | None = None) -> None:
        self.probe, self.size = probe, size
        self.bank, self.judged = dataset(probe, "train", size), dataset(probe, "val", size)

    def __call__(self, encode: Encode) -> float:
        bank, judged = (features(encode, shown.images, size=self.size) for shown in (self.bank, self.judged))
        return knn(bank, self.bank.labels, judged, self.judged.labels, self.probe.neighbors)


def probe_report(
    encoders: Mapping[str, Encode | None], probe: Probe, split: scenes.Split = "test", size: int | None = None
) -> dict[str, dict[str, float]]:
    """kNN and linear-probe accuracies, or mean average precision, 0 to 1, of encoders on the same labelled images.

    Args:
        encoders: by name; None stands for raw pixels, normalised and flattened, of digit scenes at the size they have.
        probe: the labelled images and the number of neighbours.
        split: what they are judged on.
        size: pixels of a side that the encoders were trained at.

    Returns:
        For example `{"trained": {"knn": 0.83, "linear": 0.9}, "raw_pixels": {"knn": 0.4, "linear": 0.3}}`.
    """
    bank, judged = dataset(probe, "train", size), dataset(probe, split, size)
    raw = None if probe.data == DIGITS else RAW_SIZE
    report = {}
    for name, encode in encoders.items():
        pixels = raw if encode is None else size
        learnt, seen = (features(encode or flatten, shown.images, size=pixels) for shown in (bank, judged))
        if bank.labels.ndim == 1:
            report[name] = {
                "knn": knn(learnt, bank.labels, seen, judged.labels, probe.neighbors),
                "linear": linear_probe(learnt, bank.labels, seen, judged.labels),
            }
        else:
            x, shown, y, expected = (part.cpu().numpy() for part in (learnt, bank.labels, seen, judged.labels))
            report[name] = dict(mean_average_precision(x, shown, y, expected, data.of_run(probe).classes))
    return report
