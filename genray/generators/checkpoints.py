"""Where a BigGAN-deep checkpoint lies and how it is laid out: config.json beside its weights. Imports no torch."""

from __future__ import annotations

import difflib
import fcntl
import http.client
import os
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pydantic.dataclasses
from pydantic import Field, TypeAdapter, ValidationError

from genray.settings import ConfigError

EMBEDDED = {"digit-scenes": Path(__file__).parent / "assets" / "digit_scenes"}
PUBLISHED = {"biggan-deep-128": 128, "biggan-deep-256": 256, "biggan-deep-512": 512}
"""Names of the published weights, and the pixels of a side."""
PUBLISHED_Z_DIM, PUBLISHED_CLASSES = 128, 1000
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In order of preference."""

_FILES = f"{CONFIG} and {WEIGHTS[0]} or {WEIGHTS[1]}"
Positive = Annotated[int, Field(gt=0)]


@pydantic.dataclasses.dataclass(frozen=True)
class Layout:
    """The fields of pytorch-pretrained-biggan's config.json; others are ignored."""

    output_dim: Positive
    """Pixels of a side."""
    z_dim: Positive
    class_embed_dim: Positive
    channel_width: Positive
    num_classes: Positive
    layers: tuple[tuple[bool, Positive, Positive], ...]
    """Blocks from the 4x4 input on: doubles the resolution, input and output channels in units of channel_width."""
    attention_layer_position: int
    """Index of the block before which self-attention stands."""
    eps: float
    n_stats: Annotated[int, Field(ge=2)]
    """Truncations for which batch-norm statistics are stored, 0 to 1 evenly."""


_LAYOUT = TypeAdapter(Layout)


def read_layout(directory: Path) -> Layout:
    """The network that a checkpoint's config.json describes; raises ConfigError where it describes none."""
    path = directory / CONFIG
    try:
        layout = _LAYOUT.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise ConfigError(f"{path} must describe a BigGAN-deep network: {place}: {first['msg']}") from None
    size = 4 * 2 ** sum(up for up, _, _ in layout.layers)
    if layout.output_dim != size:
        raise ConfigError(f"{path}: output_dim must be {size}, what its layers produce, got {layout.output_dim}")
    return layout


def cache_directory(name: str) -> Path:
    """What this machine keeps under a name, published weights among it: below $GENRAY_CACHE, else ~/.cache/genray."""
    return Path(os.environ.get("GENRAY_CACHE") or Path.home() / ".cache" / "genray") / name


@contextmanager
def held(lock: Path, patience_s: float) -> Iterator[None]:
    """Do something while no other process on this machine does it, so that the next one finds it done.

    Only a courtesy: after `patience_s` seconds, or where the lock cannot be had, it is done all the same.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError:
        yield
        return
    with file:
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.05)
                    continue
            except OSError:  # a file system without locks
                pass
            break
        yield


def is_cached(name: str) -> bool:
    """Whether the published weights of this name are here."""
    return _is_complete(cache_directory(name))


def resolve(model: str, download: bool) -> Path:
    """The directory that holds a model's config.json and weights.

    Args:
        model: `digit-scenes`, the name of published weights, or a directory.
        download: whether published weights that are not cached may be fetched. With a cached copy, or for any other
            model, no network is used.

    Raises:
        ConfigError: there is no such model, a file is missing, or the download failed; says which files to put where.
    """
    if model in PUBLISHED:
        return _published(model, download)
    directory = EMBEDDED.get(model, Path(model).expanduser())
    if _is_complete(directory):
        return directory
    if directory.is_dir():
        raise ConfigError(f"generator.model must be a directory with {_FILES}, got {model!r}; put them in {directory}")
    names = [*EMBEDDED, *PUBLISHED]
    close = difflib.get_close_matches(model, names, 1, cutoff=0.5)
    raise ConfigError(
        f"generator.model must be one of {', '.join(names)}, or a directory with {_FILES}, got {model!r}"
        + (f"; did you mean {close[0]!r}?" if close else f"; put them in {directory}")
    )


def weights_file(directory: Path) -> Path:
    """The file of weights in a directory that `resolve` returned."""
    return next(path for name in WEIGHTS if (path := directory / name).is_file())


def _is_complete(directory: Path) -> bool:
    return (directory / CONFIG).is_file() and any((directory / name).is_file() for name in WEIGHTS)


def _published(name: str, download: bool) -> Path:
    directory = cache_directory(name)
    remedy = f"put {CONFIG} and {WEIGHTS[1]} at {directory}"
    if not _is_complete(directory):
        if not download:
            raise ConfigError(f"generator.model must be in the cache, got {name!r}, which is not; {remedy}")
        from pytorch_pretrained_biggan import model as package  # slow to import, and only its addresses are wanted

        try:
            directory.mkdir(parents=True, exist_ok=True)
            _download(package.PRETRAINED_MODEL_ARCHIVE_MAP[name], directory / WEIGHTS[1])
            _download(package.PRETRAINED_CONFIG_ARCHIVE_MAP[name], directory / CONFIG)
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(
                f"generator.model must be in the cache or be downloaded, got {name!r}, and the download failed "
                f"({error}); {remedy}"
            ) from None
    return directory


def _download(url: str, path: Path) -> None:
    """Into a temporary file, and under its own name once it is whole: several processes may do this at a time."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        partial = Path(file.name)
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                shutil.copyfileobj(response, file, 2**20)
                expected = response.headers.get("Content-Length")
            if expected is not None and file.tell() != int(expected):  # a cut connection ends like a whole file
                raise OSError(f"{url} ended after {file.tell()} of {expected} bytes")
            file.flush()
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
