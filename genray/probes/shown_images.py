"""The images of a split as a backbone sees them: each image once and whole, or random crops over several epochs.

A position in this sequence determines the image and its crop, so that any process can prepare any part of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from genray.probes.crops import CROP_UNIFORMS, Geometry, cropped, whole
from genray.probes.labelled_images import Split
from genray.views.random import uniforms

Map = Callable[..., Iterator[np.ndarray]]
"""The built-in `map`, or that of an executor, which computes ahead."""

SHUFFLED_GROUPS = 4
"""Groups of rows that are shuffled together, if images can only be read in groups."""


@dataclass(frozen=True, eq=False)
class ShownImages:
    """The sequence of a split's images that a backbone sees.

    >>> crops = ShownImages(split, Geometry(224, 256), crops=60, shuffled=True)
    >>> len(crops) == 60 * len(split)
    True
    """

    split: Split
    geometry: Geometry
    crops: int = 0
    """Epochs of random crops; 0 for each image once, whole."""
    shuffled: bool = False
    """Whether each epoch has a random order of its own."""
    may_mirror: bool = False
    """Whether random crops may be mirrored."""
    seed: int = 0

    def __len__(self) -> int:
        return len(self.split) * max(1, self.crops)

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row of the split at each position, and its epoch: int64 `[n]` each."""
        epochs, offsets = np.divmod(positions, len(self.split))
        if not self.shuffled:
            return offsets, epochs
        rows = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            rows[in_epoch] = self._order(int(epoch))[offsets[in_epoch]]
        return rows, epochs

    def labels(self, positions: np.ndarray) -> np.ndarray:
        """The labels of the images at these positions."""
        return self.split.labels[self.rows(positions)[0]]

    def images(self, positions: np.ndarray, map_images: Map = map) -> Iterator[np.ndarray]:
        """The images at these positions, in order, uint8 `[3, size, size]` each.

        Args:
            positions: int64 `[n]`.
            map_images: calls a function for each image; an executor's `map` decodes them in parallel.

        Raises:
            UserError: an image cannot be decoded.
        """
        rows, epochs = self.rows(positions)
        if not self.crops:
            return map_images(lambda row: whole(self.split.reader.image(int(row)), self.geometry), rows)
        drawn = uniforms(self.seed, "probes.crop", rows, CROP_UNIFORMS, use=epochs)
        return map_images(self._crop, rows, drawn)

    def _crop(self, row: int, drawn: np.ndarray) -> np.ndarray:
        return cropped(self.split.reader.image(int(row)), self.geometry, drawn, self.may_mirror)

    def _order(self, epoch: int) -> np.ndarray:
        starts = getattr(self.split.reader, "starts", None)  # of groups of rows that are read at once
        return _shuffled(None if starts is None else tuple(starts.tolist()), len(self.split), self.seed, epoch)


def decode_batch(batch: dict[str, np.ndarray], shown: ShownImages) -> dict[str, np.ndarray]:
    """A Ray Data task: decodes the images at the positions in the column `id`, without torch."""
    positions = batch["id"]
    return {"position": positions, "pixels": np.stack(list(shown.images(positions)))}


@functools.lru_cache(maxsize=2)
def _shuffled(starts: tuple[int, ...] | None, count: int, seed: int, epoch: int) -> np.ndarray:
    """The rows in the order of an epoch: shuffled freely, or a few groups at a time."""
    if starts is None:
        return np.argsort(uniforms(seed, "probes.order", np.arange(count), 1, use=epoch)[:, 0], kind="stable")
    bounds = np.array(starts)
    groups = np.argsort(uniforms(seed, "probes.groups", np.arange(len(bounds) - 1), 1, use=epoch)[:, 0], kind="stable")
    chance = uniforms(seed, "probes.order", np.arange(count), 1, use=epoch)[:, 0]
    pieces = []
    for first in range(0, len(groups), SHUFFLED_GROUPS):
        rows = np.concatenate([np.arange(bounds[g], bounds[g + 1]) for g in groups[first : first + SHUFFLED_GROUPS]])
        pieces.append(rows[np.argsort(chance[rows], kind="stable")])
    return np.concatenate(pieces)
