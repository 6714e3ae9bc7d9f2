"""A folder of real images as a source: the real-data baseline. An anchor is an image, and its number in the listing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from genray.latents import Anchors
from genray.settings import ConfigError, UserError
from genray.sources import Block, SourceSpec
from genray.sources.listing import Listing, listing
from genray.sources.settings import Images

if TYPE_CHECKING:
    from genray.config import Config

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What PIL raises for a file that is no whole image."""


def describe_images(config: Config) -> SourceSpec:
    """See `genray.sources.describe`."""
    source, stream = config.source, config.stream
    assert isinstance(source, Images)
    found = listing(source.directory, source.digest)
    check_enough(found, stream.batch_size, "one step", "stream.batch_size")
    if stream.reuse != 1:
        window = stream.batch_size * stream.reuse_window
        check_enough(found, window, "a window of views that are used again", "stream.reuse_window")
    return SourceSpec(
        name=source.directory,
        image_size=source.image_size,
        latent_dim=0,
        num_classes=len(found.classes),
        views=1,
        population=len(found.files),
    )


def check_enough(found: Listing, needed: int, where: str, remedy: str) -> None:
    """Raise ConfigError where a folder has fewer images than are shown together."""
    if len(found.files) < needed:
        raise ConfigError(
            f"source.directory must hold at least {needed} images, those of {where}, got {found.directory!r} with "
            f"{len(found.files)}; add some or lower {remedy}"
        )


class ImageSource:
    """Decodes the images of a folder, in as many threads as a process of it has CPUs."""

    def __init__(self, config: Config):
        assert isinstance(config.source, Images)
        self.folder = Folder(listing(config.source.directory, config.source.digest), config, config.source.image_size)

    def shown(self, position: np.ndarray) -> Block:
        """See `genray.sources.Source`; one view of each image, and no latents.

        Raises:
            UserError: a file cannot be decoded; names it.
        """
        image, epoch = self.folder.at(position)
        return {
            "views": self.folder.pixels(image)[:, None],
            "label": self.folder.listing.labels[image],
            "latent": np.zeros((len(position), 1, 0), np.float32),
            "anchor": image,
            "epoch": epoch,
        }


class Folder:
    """Images of a listing, in a new order each epoch, as squares of `size` pixels."""

    def __init__(self, listing: Listing, config: Config, size: int):
        self.listing, self.size = listing, size
        self.order = Anchors(config.seed, latent_dim=0, num_classes=0, num_anchors=len(listing.files))
        side = config.generators if config.generators.mode == "pool" else config.learners
        self.threads = max(1, round(side.num_cpus))

    def at(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the images at these places, and epochs, int64 `[n]` each."""
        return self.order.at(position)

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The images of these numbers: uint8 `[n, 3, size, size]`."""
        paths = [Path(self.listing.directory) / self.listing.files[number] for number in image]
        with ThreadPoolExecutor(self.threads) as threads:
            found = list(threads.map(lambda path: decoded(path, self.size), paths))
        return np.stack(found) if found else np.zeros((0, 3, self.size, self.size), np.uint8)


def decoded(path: Path, size: int) -> np.ndarray:
    """The largest square in the middle of an image, resized to `size` pixels a side, antialiased: uint8 `[3, H, W]`.

    It is upright, as its EXIF data say; transparency is ignored, and of 16 bits the upper 8 are taken.

    Raises:
        UserError: the file cannot be decoded, or what is white in it cannot be known.
    """
    try:
        with Image.open(path) as file:
            image = _colours(_upright(file))
    except UNREADABLE as error:
        raise UserError(
            f"source.directory must hold images that can be decoded, got {str(path)!r} ({error}); mend or remove it, "
            "and begin another run"
        ) from None
    width, height = image.size
    side = min(width, height)
    left, top = round((width - side) / 2), round((height - side) / 2)
    square = image.crop((left, top, left + side, top + side))  # what lies beside it must not count at its edges
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _colours(file: Image.Image) -> Image.Image:
    """Three channels of 8 bits; raises ValueError for numbers that no colours follow from."""
    if file.mode == "F":
        raise ValueError("its pixels are floats")
    if not file.mode.startswith("I"):
        return file.convert("RGB")
    grey = np.asarray(file)  # PIL would take all that is above 255 for white
    if grey.min() < 0 or grey.max() >= 2**16:
        raise ValueError("its pixels have more than 16 bits")
    return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")


def _upright(file: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(file)
    except Exception:  # of many kinds, for data that are damaged; the pixels need not be
        return file
