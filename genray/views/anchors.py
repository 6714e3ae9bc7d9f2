"""Anchors: their latents, classes and views, as pure functions of (seed, anchor, view).

Nothing here has state: retries, restarts and the number of generators do not change an anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genray.config.run import Config
from genray.config.view import LatentView
from genray.views.latent_views import neighbour_latents
from genray.views.random import permutation, truncated_normal, uniforms, words
from genray.views.types import GeneratorSpec


@dataclass(frozen=True)
class Anchors:
    """The population of anchors that a run's seed determines, endless or finite.

    >>> Anchors(seed=0, latent_dim=128, num_classes=1000).latents(np.arange(4)).shape
    (4, 128)
    """

    seed: int
    latent_dim: int
    num_classes: int
    truncation: float = 1.0
    num_anchors: int | None = None
    """Size of the population, shown in a new order each epoch; None for an endless one."""
    num_neighbors: int | None = None
    """Neighbours of each anchor, one of which is picked in each epoch; None for a new one each time."""
    classes: tuple[int, ...] | None = None
    """Classes that occur; None for all."""
    class_weights: tuple[float, ...] | None = None
    """Relative frequencies of these classes; None for equal ones."""

    def at(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Anchor ids and epochs at these positions of the stream, int64 `[n]` each."""
        if self.num_anchors is None:
            return position, np.zeros_like(position)
        epoch, offset = np.divmod(position, self.num_anchors)
        anchor = np.empty_like(position)
        for e in np.unique(epoch):
            anchor[epoch == e] = permutation(self.seed, int(e), offset[epoch == e], self.num_anchors)
        return anchor, epoch

    def latents(self, anchor: np.ndarray) -> np.ndarray:
        """The anchors' latents, float64 `[n, d]`: a truncated normal scaled by `truncation`."""
        return self.truncation * truncated_normal(uniforms(self.seed, "latent", anchor, self.latent_dim))

    def labels(self, anchor: np.ndarray) -> np.ndarray:
        """The anchors' classes, int64 `[n]`; -1 if the generator has none."""
        if not self.num_classes:
            return np.full(len(anchor), -1)
        u = uniforms(self.seed, "label", anchor, 1)[:, 0]
        number = self.num_classes if self.classes is None else len(self.classes)
        if self.class_weights is None:
            drawn = (u * number).astype(np.int64)
        else:
            cumulative = np.cumsum(np.array(self.class_weights) / max(self.class_weights))
            drawn = np.searchsorted(cumulative / cumulative[-1], u, side="right")
        return drawn if self.classes is None else np.array(self.classes)[drawn]

    def views(self, position: np.ndarray, latent_view: LatentView, num_views: int) -> np.ndarray:
        """Latents of the views at these positions, float32 `[n, V, d]`; view 0 is the anchor itself.

        V is 1 for a latent view that renders nothing new.
        """
        anchor, epoch = self.at(position)
        z = self.latents(anchor)
        views = [z]
        for view in range(1, num_views if latent_view.renders else 1):
            neighbour = self.neighbour(anchor, epoch, view, num_views)
            u = uniforms(self.seed, "neighbour", anchor, self.latent_dim, use=neighbour)
            views.append(neighbour_latents(latent_view, z, u, self.truncation))
        return np.stack(views, axis=1).astype(np.float32)

    def seeds(self, position: np.ndarray, latent_view: LatentView, num_views: int) -> np.ndarray:
        """Noise seeds of the views at these positions, int64 `[n, V]`; a view that is shown again has the same seed."""
        anchor, epoch = self.at(position)
        uses = [np.zeros_like(anchor)]
        for view in range(1, num_views if latent_view.renders else 1):
            uses.append(1 + self.neighbour(anchor, epoch, view, num_views))
        drawn = np.stack([words(self.seed, "noise", anchor, 2, use=use) for use in uses], axis=1)
        return (drawn[..., 0] << np.uint64(31) | drawn[..., 1] >> np.uint64(1)).astype(np.int64)

    def neighbour(self, anchor: np.ndarray, epoch: np.ndarray, view: int, num_views: int) -> np.ndarray:
        """The number of the neighbour that each anchor shows as this view (1 and up) in this epoch, int64 `[n]`."""
        if self.num_neighbors is None:
            return epoch * (num_views - 1) + view - 1
        first = uniforms(self.seed, "pick", anchor, 1, use=epoch)[:, 0] * self.num_neighbors
        return (first.astype(np.int64) + view - 1) % self.num_neighbors


def anchors_of(config: Config, spec: GeneratorSpec) -> Anchors:
    """The anchors that a generator renders in a run."""
    return Anchors(
        seed=config.seed,
        latent_dim=spec.latent_dim,
        num_classes=spec.num_classes,
        truncation=config.generator.truncation,
        num_anchors=config.stream.num_anchors,
        num_neighbors=config.stream.num_neighbors,
        classes=config.stream.classes,
        class_weights=config.stream.class_weights,
    )
