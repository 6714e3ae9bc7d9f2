"""A folder of real images as a source: the real-data baseline. An anchor is an image's number in the listing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from genray.config.errors import ConfigError, UserError
from genray.config.source import Images
from genray.views.anchors import Anchors
from genray.views.sources.listing import Listing, listing
from genray.views.types import Block, SourceSpec

if TYPE_CHECKING:
    from genray.config.run import Config

DECODE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What PIL raises for a file that is not a complete image."""


def describe_images(config: Config) -> SourceSpec:
    """See `genray.views.sources.describe`."""
    source, stream = config.source, config.stream
    assert isinstance(source, Images)
    images = listing(source.directory, source.digest)
    check_enough(images, stream.batch_size, "one step", "stream.batch_size")
    if stream.reuse != 1:
        window = stream.batch_size * stream.reuse_window
        check_enough(images, window, "a window of reused views", "stream.reuse_window")
    return SourceSpec(
        name=source.directory,
        image_size=source.image_size,
        latent_dim=0,
        num_classes=len(images.classes),
        views=1,
        population=len(images.files),
    )


def check_enough(images: Listing, needed: int, where: str, remedy: str) -> None:
    """Raise ConfigError if a folder has fewer images than one step or window needs."""
    if len(images.files) < needed:
        raise ConfigError(
            f"source.directory must hold at least {needed} images, those of {where}, got {images.directory!r} with "
            f"{len(images.files)}; add some or lower {remedy}"
        )


class ImageSource:
    """Decodes the images of a folder, with one thread for each CPU of its process."""

    def __init__(self, config: Config):
        assert isinstance(config.source, Images)
        self.folder = Folder(listing(config.source.directory, config.source.digest), config, config.source.image_size)

    def block_at(self, position: np.ndarray) -> Block:
        """See `genray.views.types.Source`; one view of each image, and no latents.

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
    """The images of a listing in a new order each epoch, as squares of `size` pixels."""

    def __init__(self, listing: Listing, config: Config, size: int):
        self.listing, self.size = listing, size
        self.order = Anchors(config.seed, latent_dim=0, num_classes=0, num_anchors=len(listing.files))
        process = config.pool if config.render_on == "pool" else config.learners
        self.threads = max(1, round(process.num_cpus))

    def at(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image numbers and epochs at these positions, int64 `[n]` each."""
        return self.order.at(position)

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The images with these numbers: uint8 `[n, 3, size, size]`."""
        paths = [Path(self.listing.directory) / self.listing.files[number] for number in image]
        with ThreadPoolExecutor(self.threads) as threads:
            squares = list(threads.map(lambda path: decode_square(path, self.size), paths))
        return np.stack(squares) if squares else np.zeros((0, 3, self.size, self.size), np.uint8)


def decode_square(path: Path, size: int) -> np.ndarray:
    """The largest central square of an image, resized with antialiasing: uint8 `[3, size, size]`.

    The EXIF orientation is applied, transparency is ignored, and 16-bit values are reduced to their upper 8 bits.

    Raises:
        UserError: the file cannot be decoded, or its range of values is unknown.
    """
    try:
        with Image.open(path) as file:
            image = _colours(_upright(file))
    except DECODE_ERRORS as error:
        raise UserError(
            f"source.directory must hold images that can be decoded, got {str(path)!r} ({error}); repair or remove it, "
            "and start a new run"
        ) from None
    width, height = image.size
    side = min(width, height)
    left, top = round((width - side) / 2), round((height - side) / 2)
    square = image.crop((left, top, left + side, top + side))  # first, so that no pixel outside it blends into its edge
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _colours(file: Image.Image) -> Image.Image:
    """Converts to three channels of 8 bits; raises ValueError for floats and for more than 16 bits."""
    if file.mode == "F":
        raise ValueError("its pixels are floats")
    if not file.mode.startswith("I"):
        return file.convert("RGB")
    grey = np.asarray(file)  # PIL would make everything above 255 white
    if grey.min() < 0 or grey.max() >= 2**16:
        raise ValueError("its pixels have more than 16 bits")
    return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")


def _upright(file: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(file)
    except Exception:  # damaged EXIF data raise various errors; the pixels may be intact
        return file
