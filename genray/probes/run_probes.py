"""A run's own probes: kNN during training; at the end kNN and a linear probe, with baselines.

Multi-label images have average precision at the end instead, and no probe during training. Trained encoder, untrained
encoder and raw pixels all go through the same functions with the same settings. Features and classifiers are
deterministic: nothing here is random.
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

from genray.config.probe import DIGIT_SCENES, Probe
from genray.probes import data, digits, scenes
from genray.probes.backbones import RAW_SIZE
from genray.probes.crops import Geometry, whole
from genray.probes.extraction import MAX_DECODE_THREADS
from genray.probes.features import Encode, features, flatten
from genray.probes.knn import knn
from genray.probes.labelled_images import Split, subset
from genray.probes.linear import linear_probe
from genray.probes.svm import mean_average_precision


class LabelledTensors(NamedTuple):
    """Labelled images in memory."""

    images: Tensor
    """uint8 `[n, 3, H, W]`."""
    labels: Tensor
    """int64 `[n]`; for multi-label images, int8 `[n, C]`."""


@functools.cache
def dataset(probe: Probe, split: scenes.SplitName, size: int | None = None) -> LabelledTensors:
    """The labelled images of one split: `train` for classifiers, `val` for choices, `test` for the final report alone.

    Digit scenes are complete and have their own size. Other splits have at most `probe.images` images, resized to
    `size` pixels a side. The result is cached: do not modify it in place.

    Raises:
        UserError: there are no such images, or one cannot be decoded.
    """
    if probe.data == DIGIT_SCENES:
        scenes_of_split = digits.split(split, probe.images)
        assert scenes_of_split.pixels is not None
        return LabelledTensors(scenes_of_split.pixels, torch.from_numpy(scenes_of_split.labels))
    assert size is not None
    images = data.of_run(probe)
    train, val = images.for_choices()
    return _decoded(subset({"train": train, "val": val, "test": images.test}[split], probe.images), size)


def _decoded(split: Split, size: int) -> LabelledTensors:
    geometry = Geometry(size, size)
    with ThreadPoolExecutor(min(MAX_DECODE_THREADS, os.cpu_count() or 1)) as pool:
        pixels = list(pool.map(lambda row: whole(split.reader.image(row), geometry), range(len(split))))
    return LabelledTensors(torch.from_numpy(np.stack(pixels)), torch.from_numpy(split.labels))


class QuickProbe:
    """The probe during training: kNN accuracy on the validation split.

    >>> QuickProbe(config.probe)(encoder.features)
    0.83
    """

    def __init__(self, probe: Probe, size: int | None = None) -> None:
        self.probe, self.size = probe, size
        self.train, self.val = dataset(probe, "train", size), dataset(probe, "val", size)

    def __call__(self, encode: Encode) -> float:
        train, val = (features(encode, split.images, size=self.size) for split in (self.train, self.val))
        return knn(train, self.train.labels, val, self.val.labels, self.probe.neighbors)


def probe_report(
    encoders: Mapping[str, Encode | None], probe: Probe, split: scenes.SplitName = "test", size: int | None = None
) -> dict[str, dict[str, float]]:
    """kNN and linear-probe accuracies, or mean average precision, 0 to 1, of encoders on the same labelled images.

    Args:
        encoders: by name; None for raw pixels, normalised and flattened (digit scenes at their own size).
        probe: the labelled images and the number of neighbours.
        split: the split to test on.
        size: side length in pixels that the encoders were trained at.

    Returns:
        For example `{"trained": {"knn": 0.83, "linear": 0.9}, "raw_pixels": {"knn": 0.4, "linear": 0.3}}`.
    """
    train, test = dataset(probe, "train", size), dataset(probe, split, size)
    raw = None if probe.data == DIGIT_SCENES else RAW_SIZE
    report = {}
    for name, encode in encoders.items():
        encoded_size = raw if encode is None else size
        train_features, test_features = (
            features(encode or flatten, labelled.images, size=encoded_size) for labelled in (train, test)
        )
        if train.labels.ndim == 1:
            report[name] = {
                "knn": knn(train_features, train.labels, test_features, test.labels, probe.neighbors),
                "linear": linear_probe(train_features, train.labels, test_features, test.labels),
            }
        else:
            report[name] = dict(
                mean_average_precision(
                    train_features.cpu().numpy(),
                    train.labels.cpu().numpy(),
                    test_features.cpu().numpy(),
                    test.labels.cpu().numpy(),
                    data.of_run(probe).classes,
                )
            )
    return report
