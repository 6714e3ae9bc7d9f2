"""Anchors and latent views: which latents are rendered, as pure functions of (seed, anchor, view).

Definitions: Jahanian, Puig, Tian, Isola, "Generative Models as a Data Source for Multiview Representation Learning"
(ICLR 2022), section 3. Nothing here holds state; a retry, a restart or another number of generators changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from genray.random import permutation, uniforms, words
from genray.settings import settings

_TAIL = 0.02275013194817921  # the standard normal distribution function at -2


def truncated_normal(u: np.ndarray) -> np.ndarray:
    """Uniform numbers in (0, 1) to a standard normal truncated at +-2, by the inverse distribution function."""
    from scipy.special import ndtri  # not needed to read a configuration

    return ndtri(_TAIL + (1 - 2 * _TAIL) * u)


def normal(u: np.ndarray) -> np.ndarray:
    """Uniform numbers in (0, 1) to a standard normal."""
    from scipy.special import ndtri

    return ndtri(u)


class View:
    """How the latent of a neighbour follows from its anchor's."""

    renders: ClassVar[bool] = True
    """Whether views differ before pixel augmentation."""

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        """A neighbour of each anchor's latent.

        Args:
            z: the anchors' latents, `[n, d]`.
            u: fresh uniform numbers in (0, 1), `[n, d]`.
            truncation: the factor by which the anchors' truncated normal was scaled.

        Returns:
            `[n, d]`.
        """
        return z


@settings
class NoLatentView(View):
    """Every view is the anchor's own image, rendered once ("Tx only")."""

    kind: Literal["none"] = "none"
    renders: ClassVar[bool] = False


@settings
class Independent(View):
    """Each view is a second draw of z with the anchor's class; for conditional generators only."""

    kind: Literal["independent"] = "independent"

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        return truncation * truncated_normal(u)


@settings
class Gaussian(View):
    """z' = z + w with w normal; z' is not truncated again."""

    kind: Literal["gaussian"] = "gaussian"
    std: Annotated[float, Field(gt=0)] = 1.0
    """Scale of w in units of the latent prior: 1.0 for BigGAN, 0.2 for BigBiGAN, 0.25 for StyleGAN2 cars."""
    truncated: bool = True
    """Truncate w at two of its own scales, as the paper does."""

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        return z + self.std * (truncated_normal(u) if self.truncated else normal(u))


LatentView = Annotated[NoLatentView | Independent | Gaussian, Field(discriminator="kind")]


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
        """The anchors' classes, uniform: int64 `[n]`, -1 where the generator has no classes."""
        if not self.num_classes:
            return np.full(len(anchor), -1)
        return (uniforms(self.seed, "label", anchor, 1)[:, 0] * self.num_classes).astype(np.int64)

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
