"""Sources: what turns places in the stream into what is shown there, a pure function of the configuration.

Rendering by a generator is one. The others go through the same tickets, pool, learners and resume. Importing this and
describing a source take no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from genray import generators
from genray.generators import GeneratorSpec
from genray.sources.settings import Images, Mix, Stored

if TYPE_CHECKING:
    import torch

    from genray.config import Config

__all__ = ["Block", "Source", "SourceSpec", "build", "describe", "fetch", "is_mixed", "not_here", "rendered"]

Block = dict[str, np.ndarray]
"""Columns of one length; see `genray.views.Renderer.block`."""


@dataclass(frozen=True)
class SourceSpec(GeneratorSpec):
    """What the rest of a run must know of its source before there is one.

    Latents are 0 numbers wide where not every image has one, and classes are 0 where not every image has one.
    """

    views: int
    """Images of each anchor, before augmentation."""
    population: int | None = None
    """Anchors that are shown in a new order each epoch; None where they never repeat, or are not one population."""
    end: int | None = None
    """Places of the stream that there are; None for as many as are asked for."""


class Source(Protocol):
    """Shows what lies at any places of the stream."""

    def shown(self, position: np.ndarray) -> Block:
        """What is shown at these places, int64 `[n]` in any order and number.

        Returns:
            `views` uint8 `[n, V, 3, H, W]`, `latent` float32 `[n, V, d]`, `label`, `anchor` and `epoch` int64 `[n]`.

        Raises:
            BadImages: something was rendered that is not an image.
            UserError: something that was to be read cannot be.
        """
        ...


def describe(config: Config) -> SourceSpec:
    """The sizes of a configured source, from listings and small files at most; downloads nothing.

    Raises:
        ConfigError: what it names does not exist, or does not fit the rest of the configuration.
    """
    match config.source:
        case Images():
            from genray.sources.images import describe_images

            return describe_images(config)
        case Mix():
            from genray.sources.mixed import describe_mix

            return describe_mix(config)
        case Stored():
            from genray.sources.stored import describe_stored

            return describe_stored(config)
    from genray.sources.generated import describe_generated

    return describe_generated(config)


def rendered(config: Config) -> GeneratorSpec | None:
    """The generator that renders what a source shows, or has rendered it; None where there is none, or it is not here.

    Its classes are what latent views of an anchor share, also where a source shows images without a class beside them.
    """
    if isinstance(config.source, Stored):
        from genray.sources import stored

        return stored.rendered(config)
    return generators.describe(config.generator) if config.source.renders else None


def is_mixed(config: Config) -> bool:
    """Whether some of what a source shows is not rendered."""
    if isinstance(config.source, Stored):
        from genray.sources import stored

        return stored.is_mixed(config)
    return isinstance(config.source, Mix)


def build(config: Config, device: torch.device | str | None = None) -> Source:
    """The configured source; what renders does so on `device`, or on the best one where none is given.

    Raises:
        ConfigError: see `describe`, and `genray.generators.load`.
    """
    match config.source:
        case Images():
            from genray.sources.images import ImageSource

            return ImageSource(config)
        case Mix():
            from genray.sources.mixed import MixedSource

            return MixedSource(config, device)
        case Stored():
            from genray.sources.stored import StoredSource

            return StoredSource(config)
    from genray.sources.generated import GeneratorSource

    return GeneratorSource(config, device)


def fetch(config: Config) -> None:
    """See to it that the weights of a generator that is needed are on this machine; see `genray.generators.fetch`."""
    if config.source.renders:
        generators.fetch(config.generator)


def not_here(config: Config) -> str | None:
    """What would have to be downloaded before a run, in a line; None where nothing has to be."""
    return generators.not_here(config.generator) if config.source.renders else None
