"""Anchors: which latents, classes and views a run's seed stands for, as pure functions of (seed, anchor, view).

Nothing here holds state; a retry, a restart or another number of generators changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genray import objectives
from genray.latent_views import View
from genray.random import permutation, truncated_normal, uniforms, words
from genray.settings import ConfigError

if TYPE_CHECKING:
    from genray.config import Stream
    from genray.generators import GeneratorSpec


@dataclass(frozen=True)
class Anchors:
    """The endless or finite population that a run's seed stands for.

    >>> Anchors(seed=0, latent_dim=128, num_classes=1000).latents(np.arange(4)).shape
    (4, 128)
    """

    seed: int
    latent_dim: int
    num_classes: int
    truncation: float = 1.0
    num_anchors: int | None = None
    """Anchors in the population, shown in a new order each epoch; None for as many as are asked for."""
    num_neighbors: int | None = None
    """Neighbours each anchor has, one picked for each showing; None for a fresh one each time."""
    classes: tuple[int, ...] | None = None
    """Classes that occur; None for all."""
    class_weights: tuple[float, ...] | None = None
    """How often each of them does, in any unit; None for equally often."""

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
        """The anchors' latents, truncated normal times the truncation: float64 `[n, d]`."""
        return self.truncation * truncated_normal(uniforms(self.seed, "latent", anchor, self.latent_dim))

    def labels(self, anchor: np.ndarray) -> np.ndarray:
        """The anchors' classes: int64 `[n]`, -1 where the generator has none."""
        if not self.num_classes:
            return np.full(len(anchor), -1)
        u = uniforms(self.seed, "label", anchor, 1)[:, 0]
        number = self.num_classes if self.classes is None else len(self.classes)
        if self.class_weights is None:
            drawn = (u * number).astype(np.int64)
        else:
            reached = np.cumsum(np.array(self.class_weights) / max(self.class_weights))
            drawn = np.searchsorted(reached / reached[-1], u, side="right")
        return drawn if self.classes is None else np.array(self.classes)[drawn]

    def views(self, position: np.ndarray, latent_view: View, num_views: int) -> np.ndarray:
        """Latents of the views shown at these positions, view 0 being the anchor's own: float32 `[n, V, d]`.

        V is 1 where the latent view renders nothing new.
        """
        anchor, epoch = self.at(position)
        z = self.latents(anchor)
        views = [z]
        for view in range(1, num_views if latent_view.renders else 1):
            neighbour = self.neighbour(anchor, epoch, view, num_views)
            u = uniforms(self.seed, "neighbour", anchor, self.latent_dim, use=neighbour)
            views.append(latent_view(z, u, self.truncation))
        return np.stack(views, axis=1).astype(np.float32)

    def seeds(self, position: np.ndarray, latent_view: View, num_views: int) -> np.ndarray:
        """Seeds of what a generator draws besides the latent, the same whenever a view is shown: int64 `[n, V]`."""
        anchor, epoch = self.at(position)
        shown = [np.zeros_like(anchor)]
        for view in range(1, num_views if latent_view.renders else 1):
            shown.append(1 + self.neighbour(anchor, epoch, view, num_views))
        drawn = np.stack([words(self.seed, "noise", anchor, 2, use=use) for use in shown], axis=1)
        return (drawn[..., 0] << np.uint64(31) | drawn[..., 1] >> np.uint64(1)).astype(np.int64)

    def neighbour(self, anchor: np.ndarray, epoch: np.ndarray, view: int, num_views: int) -> np.ndarray:
        """Which of its neighbours each anchor shows as this view (1 and up) in this epoch: int64 `[n]`."""
        if self.num_neighbors is None:
            return epoch * (num_views - 1) + view - 1
        first = uniforms(self.seed, "pick", anchor, 1, use=epoch)[:, 0] * self.num_neighbors
        return (first.astype(np.int64) + view - 1) % self.num_neighbors


def check_classes(stream: Stream, spec: GeneratorSpec, objective: str | None = None) -> None:
    """Raise ConfigError where the classes of the anchors are none of the generator's, or too few for the objective."""
    classes, weights = stream.classes, stream.class_weights
    for name, given in (("classes", classes), ("class_weights", weights)):
        if given is not None and not spec.num_classes:
            raise ConfigError(
                f"stream.{name} must not be given for a generator without classes, got {list(given)} with {spec.name}"
            )
    if classes is not None:
        if not classes or len(set(classes)) < len(classes):
            raise ConfigError(f"stream.classes must name one class or more, each once, got {list(classes)}")
        if unknown := [label for label in classes if not 0 <= label < spec.num_classes]:
            raise ConfigError(
                f"stream.classes must be of the classes of {spec.name}, 0 to {spec.num_classes - 1}, got {unknown[0]}"
            )
    if weights is not None:
        number = spec.num_classes if classes is None else len(classes)
        if len(weights) != number:
            raise ConfigError(
                f"stream.class_weights must have a number for each of the {number} classes, got {len(weights)}"
            )
        if not any(weights):
            raise ConfigError("stream.class_weights must not be 0 for every class")
    if objective in objectives.CLASSES and objectives.shown_classes(stream, spec) == 1:
        raise ConfigError(
            f"stream.classes must leave several classes to tell apart for objective.kind = {objective!r}, got one"
        )
