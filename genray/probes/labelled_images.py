"""Labelled images: named splits whose images are decoded on demand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from genray.config.errors import UserError
from genray.config.probe import MULTI_LABEL_PROBES, SINGLE_LABEL_PROBES
from genray.probes.crops import decode_rgb
from genray.views.random import uniforms

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT_SHARE = 0.1
"""Share of the training images used for validation, if the data have no validation split."""


class ImageReader(Protocol):
    """Reads images by row; it is sent to the processes that decode them."""

    def image(self, row: int) -> Image.Image:
        """One image, in RGB; raises UserError if it cannot be decoded."""
        ...


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """An `ImageReader` of files in a directory that all processes can read."""

    root: str
    names: np.ndarray
    """Paths relative to it, bytes."""

    def image(self, row: int) -> Image.Image:
        path = Path(self.root, os.fsdecode(self.names[row]))
        return decode_rgb(path, str(path))


@dataclass(frozen=True, eq=False)
class PickedRows:
    """Some rows of another `ImageReader`."""

    reader: ImageReader
    rows: np.ndarray

    def image(self, row: int) -> Image.Image:
        return self.reader.image(int(self.rows[row]))


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images to train or test a classifier on."""

    labels: np.ndarray
    """Classes, int64 `[n]`; for multi-label images, int8 `[n, C]`: 1 for present, -1 for absent, 0 for undecided."""
    reader: ImageReader
    pixels: Tensor | None = None
    """All images, uint8 `[n, 3, H, W]`, if they are in memory."""

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, rows: np.ndarray) -> Split:
        """These rows only, in this order."""
        return Split(
            self.labels[rows], PickedRows(self.reader, rows), None if self.pixels is None else self.pixels[rows]
        )


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A data set: its splits, its classes, and its name in reports and metrics."""

    name: str
    classes: tuple[str, ...]
    train: Split
    """To train classifiers on."""
    test: Split
    """For the report, and for nothing else."""
    val: Split | None = None
    """To make choices on; None if the data have no such split."""
    may_mirror: bool = True
    """Whether a mirrored image has the same label, unlike a digit."""

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.train.labels.ndim == 2

    def check_suits(self, probes: Sequence[str], source: str) -> None:
        """Raise UserError for a probe that does not suit these images; `source` is the option or field with it."""
        suitable = MULTI_LABEL_PROBES if self.multi_label else SINGLE_LABEL_PROBES
        if wrong := next((name for name in probes if name not in suitable), None):
            kind = "multi-label images" if self.multi_label else "images with one label each"
            raise UserError(f"{source} must be of {', '.join(suitable)} for {kind}, got {wrong!r} on {self.name}")

    def for_choices(self) -> tuple[Split, Split]:
        """Training and validation images for every choice before the final report: the test split stays unseen.

        Without a validation split, a tenth of the training images is held out, the same in every run.
        """
        if self.val is not None:
            return self.train, self.val
        held_out = uniforms(0, "probes.held out", np.arange(len(self.train)), 1)[:, 0] < HELD_OUT_SHARE
        return self.train.pick(np.flatnonzero(~held_out)), self.train.pick(np.flatnonzero(held_out))


def ranks_in_class(labels: np.ndarray, seed: int, purpose: str, draw: int = 0) -> np.ndarray:
    """The rank of each row in a random order of the rows of its class: int64 `[n]`, from 0.

    Rows with a rank below k are a random choice of k of each class, and part of any larger choice.
    """
    chance = uniforms(seed, purpose, np.arange(len(labels)), 1, use=draw)[:, 0]
    order = np.lexsort((chance, labels))
    ordered = labels[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(labels)])
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return rank


def subset(split: Split, count: int) -> Split:
    """At most `count` images, as balanced over the classes as possible, the same in every run."""
    if len(split) <= count:
        return split
    classes = split.labels if split.labels.ndim == 1 else np.zeros(len(split), dtype=np.int64)
    chance = uniforms(0, "probes.some", np.arange(len(split)), 1)[:, 0]
    chosen = np.lexsort((chance, ranks_in_class(classes, 0, "probes.some")))[:count]
    return split.pick(np.sort(chosen))


def check_same_classes(root: Path | str, train: list[str], split: str, classes: list[str]) -> None:
    """Raise UserError if another split, given by its name and classes, has other classes than `train`."""
    extra, missing = sorted(set(classes) - set(train)), sorted(set(train) - set(classes))
    if extra or missing:
        parts = [f"{word} {_abbreviated(names)}" for word, names in (("has", extra), ("lacks", missing)) if names]
        raise UserError(
            f"the classes of {split} must be those of train in '{root}', got one that {' and '.join(parts)}"
        )


def _abbreviated(names: list[str], limit: int = 3) -> str:
    first = ", ".join(map(repr, names[:limit]))
    return f"{first} and {len(names) - limit} more" if len(names) > limit else first
