"""Latent views: how a neighbour's latent follows from its anchor's, as pure functions of that and of random numbers.

Definitions: Jahanian, Puig, Tian, Isola, "Generative Models as a Data Source for Multiview Representation Learning"
(ICLR 2022), section 3, where no other source is given. All is done element by element, never by a matrix product, so
that a row comes out the same to the last bit whatever it is computed together with.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from genray import learned
from genray.random import normal, truncated_normal
from genray.settings import ConfigError, settings

if TYPE_CHECKING:
    from genray.config import Stream
    from genray.generators import GeneratorSpec

Positive = Annotated[float, Field(gt=0)]


class View:
    """How the latent of a neighbour follows from its anchor's."""

    renders: ClassVar[bool] = True
    """Whether views differ before pixel augmentation."""

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        """A neighbour of each anchor's latent.

        Args:
            z: the anchors' latents, float64 `[n, d]`.
            u: fresh uniform numbers in (0, 1), `[n, d]`.
            truncation: the factor by which the anchors' truncated normal was scaled.

        Returns:
            float64 `[n, d]`.
        """
        return z

    def draws_all_anew(self, spec: GeneratorSpec) -> bool:
        """Whether nothing of the anchor's latent is left in its view."""
        return False

    def check(self, stream: Stream, spec: GeneratorSpec) -> None:
        """Raise ConfigError where this view makes no sense with that stream or generator."""

    def settled(self) -> Self:
        """The same with what it reads from a file named for good, by an absolute path and the content's digest."""
        return self


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

    def draws_all_anew(self, spec: GeneratorSpec) -> bool:
        return True


@settings
class Gaussian(View):
    """z' = z + w with w normal; z' is not truncated again."""

    kind: Literal["gaussian"] = "gaussian"
    std: Positive = 1.0
    """Scale of w, 1 being a standard normal whatever `generator.truncation` is: 1.0 for BigGAN, 0.2 for BigBiGAN, 0.25
    for StyleGAN2 cars.
    """
    truncated: bool = True
    """Truncate w at two of its own scales, as the paper does."""

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        return z + self.std * (truncated_normal(u) if self.truncated else normal(u))


@settings
class Uniform(View):
    """z' = z + w with w uniform in a box as wide as gives it the standard deviation `std`."""

    kind: Literal["uniform"] = "uniform"
    std: Positive = 1.0
    """Standard deviation of each coordinate of w; the box reaches from -sqrt(3) std to sqrt(3) std."""

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        return z + 3**0.5 * self.std * (2 * u - 1)


@settings
class Angular(View):
    """z' = z + w with w normal, then scaled to the length of its own anchor: another direction alone."""

    kind: Literal["angular"] = "angular"
    std: Positive = 1.0
    """Scale of w, 1 being a standard normal whatever `generator.truncation` is."""
    truncated: bool = True
    """Truncate w at two of its own scales."""

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        moved = Gaussian(std=self.std, truncated=self.truncated)(z, u, truncation)
        return moved * (_length(z) / _length(moved))


@settings
class VariancePreserving(View):
    """z' = sqrt(1 - beta) z + sqrt(beta) w with w a draw of the anchors' own distribution: z' spreads as they do."""

    kind: Literal["variance_preserving"] = "variance_preserving"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the variance that is drawn anew; the correlation of z and z' is sqrt(1 - beta)."""

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        return (1 - self.beta) ** 0.5 * z + self.beta**0.5 * truncation * truncated_normal(u)


NoiseView = Annotated[
    Gaussian | Uniform | Angular | VariancePreserving | Independent,
    Field(discriminator="kind"),
]


@settings
class Chunked(View):
    """Another view on chosen coordinates of z, the others kept (Serez et al., arXiv 2412.03453)."""

    kind: Literal["chunked"] = "chunked"
    slices: tuple[tuple[int, int], ...] = ()
    """Coordinates that change, [[start, stop], ...]: start is the first of them, stop the first that is kept again."""
    noise: NoiseView = Gaussian()
    """What they change by: kind and fields of gaussian, uniform, angular, variance_preserving or independent."""

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        columns = np.concatenate([np.arange(start, stop) for start, stop in self.slices])
        changed = z.copy()
        changed[:, columns] = self.noise(z[:, columns], u[:, columns], truncation)
        return changed

    def draws_all_anew(self, spec: GeneratorSpec) -> bool:
        changed = sum(stop - start for start, stop in self.slices)
        return self.noise.kind == "independent" and changed == spec.latent_dim

    def check(self, stream: Stream, spec: GeneratorSpec) -> None:
        bounds = [0, *(end for pair in self.slices for end in pair), spec.latent_dim]
        ordered = all(a <= b for a, b in pairwise(bounds)) and all(start < stop for start, stop in self.slices)
        if not self.slices or not ordered:
            raise ConfigError(
                f"view.slices must be [[start, stop], ...] in order within the {spec.latent_dim} numbers of a latent "
                f"of {spec.name}, got {[list(pair) for pair in self.slices]}"
            )
        if self.noise.kind == "angular" and sum(stop - start for start, stop in self.slices) < 2:
            raise ConfigError(
                "view.slices must be of two numbers at least for view.noise.kind = 'angular', since one has no "
                f"direction but its sign, got {[list(pair) for pair in self.slices]}"
            )


@settings
class Steered(View):
    """z' = z + the sum of t w over learned linear walks w, each by an amount t drawn evenly from its range."""

    kind: Literal["steered"] = "steered"
    walks: str = learned.EMBEDDED
    """File that `genray steer` wrote, on a cluster one that all nodes see; `digit-scenes`: the embedded generator's."""
    names: tuple[str, ...] | None = None
    """Walks of the file that are taken, all at once; where it is not given, every one but `brightness` beside the three
    colours, which together are the same.
    """
    scale: Positive = 1.0
    """Factor of the ranges for which the walks were learned."""
    sha256: str | None = None
    """Digest of the file, noted when a run begins: it is resumed with no other content."""

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        walks = self._walks()
        amounts = self.scale * (2 * u[:, : len(walks)] - 1)
        for amount, walk in zip(amounts.T, walks.values(), strict=True):
            z = z + amount[:, None] * walk
        return z

    def check(self, stream: Stream, spec: GeneratorSpec) -> None:
        known = learned.WALKS.read("view.walks", self.walks, self.sha256, spec)
        if unknown := [name for name in self.names or () if name not in known.tensors]:
            raise ConfigError(
                f"view.names must be of the walks in {self.walks} ({', '.join(known.tensors)}), got {unknown[0]!r}; "
                f"another one is learned by {learned.WALKS.command(self.walks)} --walks {unknown[0]}"
            )
        if not 0 < len(self._walks()) <= spec.latent_dim:
            raise ConfigError(
                f"view.names must be 1 to {spec.latent_dim} walks, as many as a latent of {spec.name} has numbers, "
                f"got {len(self._walks())}"
            )

    def settled(self) -> Self:
        path, digest = learned.WALKS.settled(self.walks)
        return replace(self, walks=path, sha256=self.sha256 or digest)

    def _walks(self) -> dict[str, np.ndarray]:
        known = learned.WALKS.read("view.walks", self.walks, self.sha256).tensors
        every = [name for name in known if name != "brightness" or not known.keys() >= COLOURS]
        return {name: known[name] for name in (every if self.names is None else self.names)}


@settings
class Navigator(View):
    """z' = z + a small network of z, learned to make views that are hard to tell apart from other anchors' (COP-Gen).

    Li et al., "Optimal Positive Generation via Latent Transformation for Contrastive Learning" (NeurIPS 2022). Nothing
    is drawn: an anchor has this one neighbour.
    """

    kind: Literal["navigator"] = "navigator"
    file: str = learned.EMBEDDED
    """File that `genray navigate` wrote, on a cluster one that all nodes see; `digit-scenes`: the embedded one's."""
    sha256: str | None = None
    """Digest of the file, noted when a run begins: it is resumed with no other content."""

    def __call__(self, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
        layers = learned.NAVIGATOR.read("view.file", self.file, self.sha256).tensors
        hidden = np.maximum(_product(z, layers["first.weight"]) + layers["first.bias"], 0)
        return z + _product(hidden, layers["second.weight"]) + layers["second.bias"]

    def check(self, stream: Stream, spec: GeneratorSpec) -> None:
        learned.NAVIGATOR.read("view.file", self.file, self.sha256, spec)
        for name, most in (("num_views", 2), ("num_neighbors", 1)):
            if (getattr(stream, name) or 0) > most:
                raise ConfigError(
                    f"stream.{name} must be {most} with view.kind = 'navigator', whose anchors have one neighbour "
                    f"each, got {getattr(stream, name)}"
                )

    def settled(self) -> Self:
        path, digest = learned.NAVIGATOR.settled(self.file)
        return replace(self, file=path, sha256=self.sha256 or digest)


COLOURS = {"red", "green", "blue"}

LatentView = Annotated[
    NoLatentView | Independent | Gaussian | Uniform | Angular | VariancePreserving | Chunked | Steered | Navigator,
    Field(discriminator="kind"),
]


def _length(z: np.ndarray) -> np.ndarray:
    """Euclidean length of each row, `[n, 1]`; added up one after the other, since a sum may pair them by the shape."""
    return np.sqrt(np.cumsum(z * z, axis=1)[:, -1:])


def _product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`x @ weight.T` of `[n, a]` and `[b, a]`, added up in one order for any n, which a matrix product is not."""
    total = np.zeros((len(x), len(weight)))
    for column, factors in zip(x.T, weight.T, strict=True):
        total += column[:, None] * factors
    return total
