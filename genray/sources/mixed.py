"""Real and rendered images in one batch: which places are real is a function of the place alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genray.generators import GeneratorSpec, describe
from genray.settings import ConfigError
from genray.sources import Block, SourceSpec
from genray.sources.generated import GeneratorSource
from genray.sources.images import Folder, check_enough
from genray.sources.listing import Listing, listing
from genray.sources.settings import Mix

if TYPE_CHECKING:
    import torch

    from genray.config import Config


def describe_mix(config: Config) -> SourceSpec:
    """See `genray.sources.describe`.

    There are no latents, because real images have none, and no classes where one of the two sides has none.
    """
    source, spec, stream = config.source, describe(config.generator), config.stream
    assert isinstance(source, Mix)
    found, real = listing(source.directory, source.digest), source.real(stream.batch_size)
    check_enough(found, real, "one step", "source.share")
    if stream.reuse != 1:
        check_enough(found, real * stream.reuse_window, "a window of views that are used again", "stream.reuse_window")
    return SourceSpec(
        name=f"{spec.name} and {source.directory}",
        image_size=spec.image_size,
        latent_dim=0,
        num_classes=_number(found, spec, source.classes),
        views=stream.num_views if config.view.renders else 1,
    )


class MixedSource:
    """A generator and a folder, each with a stream of its own that the places are divided between.

    So the rendered images of a mix are those that the generator alone would show, later. A real image stands V times in
    the place of V views, and its anchor is -1 minus its number, which no rendered one has.
    """

    def __init__(self, config: Config, device: str | torch.device | None = None):
        assert isinstance(config.source, Mix)
        self.generated = GeneratorSource(config, device)
        found, spec = listing(config.source.directory, config.source.digest), describe(config.generator)
        self.folder = Folder(found, config, spec.image_size)
        self.classes = _shown(found, spec, config.source.classes)
        self.batch, self.real = config.stream.batch_size, config.source.real(config.stream.batch_size)
        self.views = config.stream.num_views if config.view.renders else 1

    def shown(self, position: np.ndarray) -> Block:
        """See `genray.sources.Source`, and for what is raised those of a generator and of a folder."""
        real, place = divided(position, self.batch, self.real)
        parts = [(real, self._real(place[real]))]
        if not real.all():
            rendered = self.generated.shown(place[~real])
            parts.append((~real, {**rendered, "latent": rendered["latent"][..., :0]}))
        block = {}
        for name in parts[0][1]:
            columns = [part[name] for _, part in parts]
            block[name] = np.empty((len(position), *columns[0].shape[1:]), columns[0].dtype)
            for (where, _), column in zip(parts, columns, strict=True):
                block[name][where] = column
        return block

    def _real(self, place: np.ndarray) -> Block:
        image, epoch = self.folder.at(place)
        labels = self.folder.listing.labels[image]
        return {
            "views": np.repeat(self.folder.pixels(image)[:, None], self.views, axis=1),
            "label": self.classes[labels] if len(self.classes) else labels,
            "latent": np.zeros((len(place), self.views, 0), np.float32),
            "anchor": -1 - image,
            "epoch": epoch,
        }


def divided(position: np.ndarray, batch_size: int, real: int) -> tuple[np.ndarray, np.ndarray]:
    """Which places of the stream are real, bool `[n]`, and where each lies in the stream of its own side, int64 `[n]`.

    Each batch has `real` of them, at the same places, as evenly spread as can be.
    """
    step, place = np.divmod(position, batch_size)
    before = place * real // batch_size
    is_real = (place + 1) * real // batch_size > before
    return is_real, np.where(is_real, step * real + before, step * (batch_size - real) + place - before)


def _shown(found: Listing, spec: GeneratorSpec, how: str) -> np.ndarray:
    """The class that each directory shows, int64; from the generator's number of classes on, one of its own.

    Raises:
        ConfigError: they cannot show the generator's classes in order, because they are not as many.
    """
    names = found.classes
    if how == "order" and len(names) != spec.num_classes:
        raise ConfigError(
            f"source.classes must not be 'order' unless there is a directory for each of the {spec.num_classes} "
            f"classes of {spec.name}, got {found.directory!r} with {len(names)}"
        )
    if how == "order":
        return np.arange(len(names))
    numbers = [_number_in(name, spec.num_classes) if how == "names" else None for name in names]
    apart = iter(range(spec.num_classes, spec.num_classes + len(names)))
    return np.array([next(apart) if number is None else number for number in numbers], dtype=np.int64)


def _number_in(name: str, classes: int) -> int | None:
    return int(name) if name.isascii() and name.isdigit() and int(name) < classes else None


def _number(found: Listing, spec: GeneratorSpec, how: str) -> int:
    """Classes of both sides together; 0 where one has none."""
    shown = _shown(found, spec, how)
    return max(spec.num_classes, int(shown.max()) + 1) if len(shown) and spec.num_classes else 0
