"""Which images a folder holds: a directory for each class, or images alone. Nothing is opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from genray.settings import ConfigError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of files that are taken for images, in lower or upper case."""


@dataclass(frozen=True)
class Listing:
    """The images of a folder in alphabetic order."""

    directory: str
    files: tuple[str, ...]
    """Paths below the directory."""
    sizes: tuple[int, ...]
    """Bytes of each."""

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in alphabetic order; none where the images lie in the directory itself."""
        return tuple(sorted({file.partition(os.sep)[0] for file in self.files if os.sep in file}))

    @cached_property
    def labels(self) -> np.ndarray:
        """The place of each image's class in `classes`, int64 `[n]`; -1 where there are none."""
        index = {name: number for number, name in enumerate(self.classes)}
        return np.array([index.get(file.partition(os.sep)[0], -1) for file in self.files], dtype=np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all names and sizes."""
        text = "".join(f"{file}\0{size}\n" for file, size in zip(self.files, self.sizes, strict=True))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def listing(directory: str, digest: str | None = None) -> Listing:
    """The images of a folder; looked up once in a process where their digest is given.

    Hidden files and directories, and files that are no images by their names, are left out.

    Raises:
        ConfigError: there is no such directory, it holds no images, or both images and classes of images, or others
            than those with this digest.
    """
    return _listed(directory) if digest is None else _unchanged(directory, digest)


@lru_cache(maxsize=4)
def _unchanged(directory: str, digest: str) -> Listing:
    found = _listed(directory)
    if found.digest != digest:
        raise ConfigError(
            f"source.directory must hold the files that it held when the run began, got {directory!r} with "
            f"{len(found.files)} images, whose names or sizes are others; put them back, or begin another run"
        )
    return found


def _listed(directory: str) -> Listing:
    if not Path(directory).is_dir():
        raise ConfigError(f"source.directory must be a directory that exists, got {directory!r}")
    try:
        found = sorted(_below(directory, ""))
    except OSError as error:
        raise ConfigError(f"source.directory must be readable with all below it, got {directory!r} ({error})") from None
    if not found:
        raise ConfigError(
            f"source.directory must hold images ({', '.join(SUFFIXES)}), or a directory of them for each class, got "
            f"{directory!r}, which holds none"
        )
    loose = [file for file, _ in found if os.sep not in file]
    if loose and len(loose) < len(found):
        raise ConfigError(
            "source.directory must hold either images or a directory of them for each class, got "
            f"{directory!r} with {loose[0]} beside directories of images"
        )
    return Listing(directory, tuple(file for file, _ in found), tuple(size for _, size in found))


def _below(directory: str, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(entry.path, f"{prefix}{entry.name}{os.sep}")
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                yield f"{prefix}{entry.name}", entry.stat().st_size
