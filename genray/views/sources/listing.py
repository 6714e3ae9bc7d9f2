"""Lists the images of a folder: one directory per class, or images alone. Opens no image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from genray.config.errors import ConfigError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in either case."""


@dataclass(frozen=True)
class Listing:
    """The images of a folder in alphabetical order."""

    directory: str
    files: tuple[str, ...]
    """Paths relative to the directory."""
    sizes: tuple[int, ...]
    """Size of each file in bytes."""

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in alphabetical order; empty if the images are in the directory itself."""
        return tuple(sorted({file.partition(os.sep)[0] for file in self.files if os.sep in file}))

    @cached_property
    def labels(self) -> np.ndarray:
        """The index of each image's class in `classes`, int64 `[n]`; -1 if there are no classes."""
        index = {name: number for number, name in enumerate(self.classes)}
        return np.array([index.get(file.partition(os.sep)[0], -1) for file in self.files], dtype=np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all paths and sizes."""
        text = "".join(f"{file}\0{size}\n" for file, size in zip(self.files, self.sizes, strict=True))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def listing(directory: str, digest: str | None = None) -> Listing:
    """The images of a folder; cached in this process if their digest is given.

    Hidden files and directories, and files without an image suffix, are ignored.

    Raises:
        ConfigError: there is no such directory, it holds no images, it holds images both with and without classes, or
            its digest differs.
    """
    return _listed(directory) if digest is None else _unchanged(directory, digest)


@lru_cache(maxsize=4)
def _unchanged(directory: str, digest: str) -> Listing:
    images = _listed(directory)
    if images.digest != digest:
        raise ConfigError(
            f"source.directory must hold the files that it held when the run began, got {directory!r} with "
            f"{len(images.files)} images, whose names or sizes differ; restore them, or start a new run"
        )
    return images


def _listed(directory: str) -> Listing:
    if not Path(directory).is_dir():
        raise ConfigError(f"source.directory must be a directory that exists, got {directory!r}")
    try:
        entries = sorted(_below(directory, ""))
    except OSError as error:
        raise ConfigError(f"source.directory must be readable with all below it, got {directory!r} ({error})") from None
    if not entries:
        raise ConfigError(
            f"source.directory must hold images ({', '.join(IMAGE_SUFFIXES)}), or a directory of them for each class, "
            f"got {directory!r}, which holds none"
        )
    without_class = [file for file, _ in entries if os.sep not in file]
    if without_class and len(without_class) < len(entries):
        raise ConfigError(
            "source.directory must hold either images or a directory of them for each class, got "
            f"{directory!r} with {without_class[0]} next to directories of images"
        )
    return Listing(directory, tuple(file for file, _ in entries), tuple(size for _, size in entries))


def _below(directory: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Paths and sizes of the images below a directory."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(entry.path, f"{prefix}{entry.name}{os.sep}")
            elif entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                yield f"{prefix}{entry.name}", entry.stat().st_size
