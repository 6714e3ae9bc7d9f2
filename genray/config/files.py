"""Files that a configuration names, and the cache directories of this machine."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from genray.config.errors import ConfigError

CONFIG_FILE = "config.json"
"""Name of the file in a run's directory that holds its configuration."""


def absolute(path: str) -> str:
    """The absolute path, valid in any working directory; an empty path stays empty."""
    return path and str(Path(path).expanduser().absolute())


def sha256_of(path: str) -> str | None:
    """SHA-256 of a file in hexadecimal; None if it cannot be read."""
    try:
        with Path(path).expanduser().open("rb") as file:
            checksum = sha256()
            while piece := file.read(1 << 20):
                checksum.update(piece)
            return checksum.hexdigest()
    except OSError:
        return None


def require_unchanged(field: str, path: str, expected: str | None) -> None:
    """Raise ConfigError if a file's SHA-256 is not the `expected` one; `field` is the setting that names the file."""
    if expected is not None and (actual := sha256_of(path)) != expected:
        raise ConfigError(
            f"{field} must hold what it held when the run began (SHA-256 {expected}), got {path!r} with {actual}; "
            "restore that content, or start a new run"
        )


def is_url(text: str) -> bool:
    """Whether a storage path is the address of an object store rather than a directory."""
    return "://" in text


def join_address(storage_path: str, name: str) -> str:
    """The address of `name` in a storage path, which may end with options.

    >>> join_address("s3://bucket/runs?region=x", "demo")
    's3://bucket/runs/demo?region=x'
    """
    path, mark, options = storage_path.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def split_address(address: str) -> tuple[str, str]:
    """The storage path and the name that an address was joined from."""
    path, mark, options = address.partition("?")
    parent, _, name = path.rstrip("/").rpartition("/")
    return f"{parent}{mark}{options}", name


def cache_directory(name: str) -> Path:
    """This machine's cache of that name, for example of published weights: below $GENRAY_CACHE, or ~/.cache/genray."""
    return Path(os.environ.get("GENRAY_CACHE") or Path.home() / ".cache" / "genray") / name


def write_atomically(path: Path, text: str) -> None:
    """Write a file such that no reader ever sees part of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)
