"""Labelled images: named splits, whose images are decoded only when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from genray.probes.pixels import decoded
from genray.probes.settings import OF_ONE, OF_SEVERAL
from genray.random import uniforms
from genray.settings import UserError

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT = 0.1
"""Share of the images to learn from that choices are made on, where the data have no split for it."""


class Source(Protocol):
    """Where images lie; it travels to the processes that decode them."""

    def image(self, row: int) -> Image.Image:
        """One image, in RGB; raises UserError if it cannot be decoded."""
        ...


@dataclass(frozen=True, eq=False)
class Files:
    """Image files below a directory, which every process sees."""

    root: str
    names: np.ndarray
    """Paths below it, bytes."""

    def image(self, row: int) -> Image.Image:
        path = Path(self.root, os.fsdecode(self.names[row]))
        return decoded(path, str(path))


@dataclass(frozen=True, eq=False)
class Picked:
    """Some rows of another source."""

    source: Source
    rows: np.ndarray

    def image(self, row: int) -> Image.Image:
        return self.source.image(int(self.rows[row]))


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images to learn a classifier from, or to judge one on."""

    labels: np.ndarray
    """Classes, int64 `[n]`. Where an image may show several, int8 `[n, C]`: 1 for shown, -1 for not, 0 for neither."""
    source: Source
    pixels: Tensor | None = None
    """All images, uint8 `[n, 3, H, W]`, where they lie in memory."""

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, rows: np.ndarray) -> Split:
        """These rows alone, in this order."""
        return Split(self.labels[rows], Picked(self.source, rows), None if self.pixels is None else self.pixels[rows])


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A data set: its splits, its classes, and its name in reports and metrics."""

    name: str
    classes: tuple[str, ...]
    train: Split
    """To learn from."""
    test: Split
    """To report on, and for nothing else."""
    val: Split | None = None
    """To make choices on."""
    mirrored: bool = True
    """Whether an image and its mirror image show the same: not so of digits."""

    @property
    def several(self) -> bool:
        """Whether an image may show several classes."""
        return self.train.labels.ndim == 2

    def check_suits(self, asked: Sequence[str], called: str) -> None:
        """Raises UserError for a probe that these images do not suit, naming what it was `called`."""
        known = OF_SEVERAL if self.several else OF_ONE
        if wrong := next((name for name in asked if name not in known), None):
            kind = "images that may show several classes" if self.several else "images of one class each"
            raise UserError(f"{called} must be of {', '.join(known)} for {kind}, got {wrong!r} on {self.name}")

    def for_choices(self) -> tuple[Split, Split]:
        """What to learn from and what to judge on while anything may still be chosen: the test split stays unseen.

        Without a split of their own, choices are made on a tenth of the images to learn from, the same in every run.
        """
        if self.val is not None:
            return self.train, self.val
        held_out = uniforms(0, "probes.held out", np.arange(len(self.train)), 1)[:, 0] < HELD_OUT
        return self.train.pick(np.flatnonzero(~held_out)), self.train.pick(np.flatnonzero(held_out))


def ranks(labels: np.ndarray, seed: int, purpose: str, draw: int = 0) -> np.ndarray:
    """The place of each row among those of its class, in random order: int64 `[n]`, from 0.

    The rows of rank below k are a random choice of k of each class, and part of any larger choice.
    """
    chance = uniforms(seed, purpose, np.arange(len(labels)), 1, use=draw)[:, 0]
    order = np.lexsort((chance, labels))
    ordered = labels[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(labels)])
    found = np.empty(len(labels), dtype=np.int64)
    found[order] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return found


def some(split: Split, count: int) -> Split:
    """At most `count` images, of each class equally many as far as there are, the same in every run."""
    if len(split) <= count:
        return split
    classes = split.labels if split.labels.ndim == 1 else np.zeros(len(split), dtype=np.int64)
    chance = uniforms(0, "probes.some", np.arange(len(split)), 1)[:, 0]
    chosen = np.lexsort((chance, ranks(classes, 0, "probes.some")))[:count]
    return split.pick(np.sort(chosen))


def same_classes(root: Path | str, train: list[str], other: str, found: list[str]) -> None:
    """Raises UserError where another split has other classes than `train`."""
    beyond, missing = sorted(set(found) - set(train)), sorted(set(train) - set(found))
    if beyond or missing:
        parts = [f"{word} {_some(names)}" for word, names in (("has", beyond), ("lacks", missing)) if names]
        raise UserError(
            f"the classes of {other} must be those of train in '{root}', got one that {' and '.join(parts)}"
        )


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
