"""What a backbone is shown of a split: each image once and whole, or random parts of them over several epochs.

A position in the sequence decides the image and its crop, so any process can prepare any stretch of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from genray.probes.images import Split
from genray.probes.pixels import DRAWS, Geometry, cropped, whole
from genray.random import uniforms

Map = Callable[..., Iterator[np.ndarray]]
"""Python's `map`, or one that works ahead."""

MIXED = 4
"""Groups of rows whose images are mixed, where they can only be read in groups."""


@dataclass(frozen=True, eq=False)
class Showing:
    """A sequence of images of a split."""

    split: Split
    geometry: Geometry
    crops: int = 0
    """Epochs of random crops; 0 for each image once, whole."""
    shuffled: bool = False
    """Whether each epoch has an order of its own."""
    mirrored: bool = False
    """Whether random crops may be mirrored."""
    seed: int = 0

    def __len__(self) -> int:
        return len(self.split) * max(1, self.crops)

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row of the split that each position shows, and the epoch it lies in: int64 `[n]` each."""
        epochs, places = np.divmod(positions, len(self.split))
        if not self.shuffled:
            return places, epochs
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._order(int(epoch))[places[here]]
        return rows, epochs

    def labels(self, positions: np.ndarray) -> np.ndarray:
        """The labels of what each position shows."""
        return self.split.labels[self.rows(positions)[0]]

    def images(self, positions: np.ndarray, each: Map = map) -> Iterator[np.ndarray]:
        """What these positions show, one after the other, uint8 `[3, size, size]` each.

        Args:
            positions: where in the sequence.
            each: what calls a function with each image; that of a pool of threads begins with all of them at once.

        Raises:
            UserError: an image cannot be decoded.
        """
        rows, epochs = self.rows(positions)
        if not self.crops:
            return each(lambda row: whole(self.split.source.image(int(row)), self.geometry), rows)
        chances = uniforms(self.seed, "probes.crop", rows, DRAWS, use=epochs)
        return each(self._crop, rows, chances)

    def _crop(self, row: int, chances: np.ndarray) -> np.ndarray:
        return cropped(self.split.source.image(int(row)), self.geometry, chances, self.mirrored)

    def _order(self, epoch: int) -> np.ndarray:
        starts = getattr(self.split.source, "starts", None)  # of groups of rows that are read at once
        return _mixed(None if starts is None else tuple(starts.tolist()), len(self.split), self.seed, epoch)


def decode(batch: dict[str, np.ndarray], showing: Showing) -> dict[str, np.ndarray]:
    """A task of Ray Data: the images at the positions in the column `id`, which need no torch to be decoded."""
    positions = batch["id"]
    return {"position": positions, "pixels": np.stack(list(showing.images(positions)))}


@functools.lru_cache(maxsize=2)
def _mixed(starts: tuple[int, ...] | None, count: int, seed: int, epoch: int) -> np.ndarray:
    """The rows in the order of an epoch: any order, or that of groups, a few of which are mixed at a time."""
    if starts is None:
        return np.argsort(uniforms(seed, "probes.order", np.arange(count), 1, use=epoch)[:, 0], kind="stable")
    bounds = np.array(starts)
    groups = np.argsort(uniforms(seed, "probes.groups", np.arange(len(bounds) - 1), 1, use=epoch)[:, 0], kind="stable")
    chance = uniforms(seed, "probes.order", np.arange(count), 1, use=epoch)[:, 0]
    pieces = []
    for first in range(0, len(groups), MIXED):
        rows = np.concatenate([np.arange(bounds[g], bounds[g + 1]) for g in groups[first : first + MIXED]])
        pieces.append(rows[np.argsort(chance[rows], kind="stable")])
    return np.concatenate(pieces)
