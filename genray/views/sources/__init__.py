"""Sources map positions in the stream to images, as pure functions of the configuration.

A generator is one kind of source. All kinds share the same tickets, pool, learners and resume. Importing this module
and describing a source need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genray.config.source import Images, Mix, Stored
from genray.views import generators
from genray.views.types import GeneratorSpec, Source, SourceSpec

if TYPE_CHECKING:
    import torch

    from genray.config.run import Config


def describe(config: Config) -> SourceSpec:
    """The sizes of the configured source; reads listings and small files at most and downloads nothing.

    Raises:
        ConfigError: something that it names does not exist, or does not fit the rest of the configuration.
    """
    match config.source:
        case Images():
            from genray.views.sources.images import describe_images

            return describe_images(config)
        case Mix():
            from genray.views.sources.mixed import describe_mix

            return describe_mix(config)
        case Stored():
            from genray.views.sources.stored import describe_stored

            return describe_stored(config)
    from genray.views.sources.generated import describe_generated

    return describe_generated(config)


def rendered(config: Config) -> GeneratorSpec | None:
    """The generator that renders, or has rendered, a source's images; None if there is none or it is not here.

    Latent views of an anchor share its class even if the source also shows images without a class.
    """
    if isinstance(config.source, Stored):
        from genray.views.sources import stored

        return stored.rendered(config)
    return generators.describe(config.generator) if config.source.renders else None


def is_mixed(config: Config) -> bool:
    """Whether a source shows both real and rendered images."""
    if isinstance(config.source, Stored):
        from genray.views.sources import stored

        return stored.is_mixed(config)
    return isinstance(config.source, Mix)


def build(config: Config, device: torch.device | str | None = None) -> Source:
    """The configured source. A generator renders on `device`, by default on a GPU if there is one.

    Raises:
        ConfigError: see `describe` and `genray.views.generators.load`.
    """
    match config.source:
        case Images():
            from genray.views.sources.images import ImageSource

            return ImageSource(config)
        case Mix():
            from genray.views.sources.mixed import MixedSource

            return MixedSource(config, device)
        case Stored():
            from genray.views.sources.stored import StoredSource

            return StoredSource(config)
    from genray.views.sources.generated import GeneratorSource

    return GeneratorSource(config, device)


def fetch(config: Config) -> None:
    """Download the weights of the generator if the source needs one; see `genray.views.generators.fetch`."""
    if config.source.renders:
        generators.fetch(config.generator)


def pending_download(config: Config) -> str | None:
    """A line about what must be downloaded before a run; None for nothing."""
    return generators.pending_download(config.generator) if config.source.renders else None
