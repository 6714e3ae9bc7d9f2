"""The settings of each kind of latent view; the formulas are in `genray.views.latent_views`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from genray.config.generator import EMBEDDED_GENERATOR
from genray.config.schema import PositiveFloat, settings


class View:
    """What all kinds of latent views have in common."""

    renders: ClassVar[bool] = True
    """Whether views differ before pixel augmentation."""


@settings
class NoLatentView(View):
    """Every view is the anchor's own image, rendered once ("Tx only")."""

    kind: Literal["none"] = "none"
    renders: ClassVar[bool] = False


@settings
class Independent(View):
    """Each view is a fresh draw of z with the anchor's class. For conditional generators only."""

    kind: Literal["independent"] = "independent"


@settings
class Gaussian(View):
    """z' = z + w with normal w; z' is not truncated again."""

    kind: Literal["gaussian"] = "gaussian"
    std: PositiveFloat = 1.0
    """Standard deviation of w before it is truncated, independent of `generator.truncation`. The paper uses 1.0 for
    BigGAN, 0.2 for BigBiGAN and 0.25 for StyleGAN2 cars.
    """
    truncated: bool = True
    """Truncate w at two standard deviations, as the paper does."""


@settings
class Uniform(View):
    """z' = z + w with w uniform in a box, scaled to the standard deviation `std`."""

    kind: Literal["uniform"] = "uniform"
    std: PositiveFloat = 1.0
    """Standard deviation of each coordinate of w. The box extends from -sqrt(3) std to sqrt(3) std."""


@settings
class Angular(View):
    """z' = z + w with normal w, rescaled to the length of its anchor: only the direction changes."""

    kind: Literal["angular"] = "angular"
    std: PositiveFloat = 1.0
    """Standard deviation of w before it is truncated, independent of `generator.truncation`."""
    truncated: bool = True
    """Truncate w at two standard deviations."""


@settings
class VariancePreserving(View):
    """z' = sqrt(1 - beta) z + sqrt(beta) w with w from the anchors' distribution, so that z' has the same variance."""

    kind: Literal["variance_preserving"] = "variance_preserving"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of the variance that is drawn anew. The correlation of z and z' is sqrt(1 - beta)."""


NoiseView = Annotated[
    Gaussian | Uniform | Angular | VariancePreserving | Independent,
    Field(discriminator="kind"),
]


@settings
class Chunked(View):
    """Another latent view applied to some coordinates of z; the others stay (Serez et al., arXiv 2412.03453)."""

    kind: Literal["chunked"] = "chunked"
    slices: tuple[tuple[int, int], ...] = ()
    """Ranges of coordinates that change, [[start, stop], ...], with stop excluded."""
    noise: NoiseView = Gaussian()
    """How they change: kind and fields of gaussian, uniform, angular, variance_preserving or independent."""


@settings
class Steered(View):
    """z' = z + the sum of t w over learned linear walks w, with each t drawn uniformly from the range of its walk."""

    kind: Literal["steered"] = "steered"
    walks: str = EMBEDDED_GENERATOR
    """File from `genray steer`, readable on every node; or `digit-scenes` for the walks of the embedded generator."""
    names: tuple[str, ...] | None = None
    """Walks of the file to use, all at once. Default: all, without `brightness` if the file has the three colours,
    which add up to it.
    """
    scale: PositiveFloat = 1.0
    """Factor applied to the ranges for which the walks were learned."""
    sha256: str | None = None
    """SHA-256 of the file, set when a run starts. The run resumes only with the same content."""


@settings
class Navigator(View):
    """z' = z + f(z) with a small network f, trained to give views that are hard to match to their anchor (COP-Gen).

    Li et al., "Optimal Positive Generation via Latent Transformation for Contrastive Learning" (NeurIPS 2022). It is
    deterministic: each anchor has a single neighbour.
    """

    kind: Literal["navigator"] = "navigator"
    file: str = EMBEDDED_GENERATOR
    """File from `genray navigate`, readable on every node; or `digit-scenes` for that of the embedded generator."""
    sha256: str | None = None
    """SHA-256 of the file, set when a run starts. The run resumes only with the same content."""


LatentView = Annotated[
    NoLatentView | Independent | Gaussian | Uniform | Angular | VariancePreserving | Chunked | Steered | Navigator,
    Field(discriminator="kind"),
]
