"""Real and rendered images in one batch; the position alone decides which of the two it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genray.config.errors import ConfigError
from genray.config.source import Mix
from genray.views.generators import describe
from genray.views.sources.generated import GeneratorSource
from genray.views.sources.images import Folder, check_enough
from genray.views.sources.listing import Listing, listing
from genray.views.types import Block, GeneratorSpec, SourceSpec

if TYPE_CHECKING:
    import torch

    from genray.config.run import Config


def describe_mix(config: Config) -> SourceSpec:
    """See `genray.views.sources.describe`.

    There are no latents, because real images have none, and no classes if either side has none.
    """
    source, spec, stream = config.source, describe(config.generator), config.stream
    assert isinstance(source, Mix)
    images, real = listing(source.directory, source.digest), source.real(stream.batch_size)
    check_enough(images, real, "one step", "source.share")
    if stream.reuse != 1:
        check_enough(images, real * stream.reuse_window, "a window of reused views", "stream.reuse_window")
    return SourceSpec(
        name=f"{spec.name} and {source.directory}",
        image_size=spec.image_size,
        latent_dim=0,
        num_classes=_num_classes(images, spec, source.classes),
        views=stream.num_views if config.view.renders else 1,
    )


class MixedSource:
    """A generator and a folder, each with its own stream, interleaved.

    The rendered images of a mix are thus the first ones that the generator alone would show. A real image is repeated
    for all V views, and its anchor is -1 minus its number, which no rendered one has.
    """

    def __init__(self, config: Config, device: str | torch.device | None = None):
        assert isinstance(config.source, Mix)
        self.generated = GeneratorSource(config, device)
        images, spec = listing(config.source.directory, config.source.digest), describe(config.generator)
        self.folder = Folder(images, config, spec.image_size)
        self.classes = _class_labels(images, spec, config.source.classes)
        self.batch, self.real = config.stream.batch_size, config.source.real(config.stream.batch_size)
        self.views = config.stream.num_views if config.view.renders else 1

    def block_at(self, position: np.ndarray) -> Block:
        """See `genray.views.types.Source`; raises what `GeneratorSource` and `ImageSource` raise."""
        real, own_position = split_positions(position, self.batch, self.real)
        parts = [(real, self._real(own_position[real]))]
        if not real.all():
            rendered = self.generated.block_at(own_position[~real])
            parts.append((~real, {**rendered, "latent": rendered["latent"][..., :0]}))
        block = {}
        for name in parts[0][1]:
            columns = [part[name] for _, part in parts]
            block[name] = np.empty((len(position), *columns[0].shape[1:]), columns[0].dtype)
            for (rows, _), column in zip(parts, columns, strict=True):
                block[name][rows] = column
        return block

    def _real(self, position: np.ndarray) -> Block:
        image, epoch = self.folder.at(position)
        labels = self.folder.listing.labels[image]
        return {
            "views": np.repeat(self.folder.pixels(image)[:, None], self.views, axis=1),
            "label": self.classes[labels] if len(self.classes) else labels,
            "latent": np.zeros((len(position), self.views, 0), np.float32),
            "anchor": -1 - image,
            "epoch": epoch,
        }


def split_positions(position: np.ndarray, batch_size: int, real: int) -> tuple[np.ndarray, np.ndarray]:
    """Which positions of the stream are real, bool `[n]`, and their positions in their own side's stream, int64 `[n]`.

    Each batch has `real` of them, in the same rows, evenly spread.
    """
    step, row = np.divmod(position, batch_size)
    before = row * real // batch_size
    is_real = (row + 1) * real // batch_size > before
    return is_real, np.where(is_real, step * real + before, step * (batch_size - real) + row - before)


def _class_labels(images: Listing, spec: GeneratorSpec, how: str) -> np.ndarray:
    """The label of each class directory, int64 `[C]`; labels from `spec.num_classes` up are not the generator's.

    Raises:
        ConfigError: the classes are to be matched by order, but their numbers differ.
    """
    names = images.classes
    if how == "order" and len(names) != spec.num_classes:
        raise ConfigError(
            f"source.classes must not be 'order' unless there is a directory for each of the {spec.num_classes} "
            f"classes of {spec.name}, got {images.directory!r} with {len(names)}"
        )
    if how == "order":
        return np.arange(len(names))
    numbers = [_class_number(name, spec.num_classes) if how == "names" else None for name in names]
    unused = iter(range(spec.num_classes, spec.num_classes + len(names)))
    return np.array([next(unused) if number is None else number for number in numbers], dtype=np.int64)


def _class_number(name: str, num_classes: int) -> int | None:
    return int(name) if name.isascii() and name.isdigit() and int(name) < num_classes else None


def _num_classes(images: Listing, spec: GeneratorSpec, how: str) -> int:
    """Number of classes of both sides together; 0 if either side has none."""
    labels = _class_labels(images, spec, how)
    return max(spec.num_classes, int(labels.max()) + 1) if len(labels) and spec.num_classes else 0
