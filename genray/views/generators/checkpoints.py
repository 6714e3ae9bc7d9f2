"""BigGAN-deep checkpoints: how to find one, and the layout in its config.json. Imports no torch."""

from __future__ import annotations

import difflib
import fcntl
import http.client
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

from genray.config.errors import ConfigError
from genray.config.files import cache_directory
from genray.config.generator import EMBEDDED_GENERATOR

EMBEDDED_DIRECTORY = Path(__file__).parent / "assets" / "digit_scenes"
"""The generator `digit-scenes` and the latent views that were learned for it."""
PUBLISHED = {"biggan-deep-128": 128, "biggan-deep-256": 256, "biggan-deep-512": 512}
"""Names of the published weights, and the side length of their images in pixels."""
PUBLISHED_Z_DIM, PUBLISHED_CLASSES = 128, 1000
NETWORK_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""In order of preference."""

_FILES = f"{NETWORK_FILE} and {WEIGHT_FILES[0]} or {WEIGHT_FILES[1]}"
Positive = Annotated[int, Field(gt=0)]


@pydantic.dataclasses.dataclass(frozen=True)
class Layout:
    """The fields of pytorch-pretrained-biggan's config.json that matter here."""

    output_dim: Positive
    """Side length of an image in pixels."""
    z_dim: Positive
    class_embed_dim: Positive
    channel_width: Positive
    num_classes: Positive
    layers: tuple[tuple[bool, Positive, Positive], ...]
    """Blocks from the 4x4 input on: (doubles the resolution, input channels, output channels), in units of
    `channel_width`.
    """
    attention_layer_position: int
    """Index of the block that self-attention precedes."""
    eps: float
    n_stats: Annotated[int, Field(ge=2)]
    """Truncations, evenly spaced from 0 to 1, for which batch-norm statistics are stored."""


_LAYOUT = TypeAdapter(Layout)


def read_layout(directory: Path) -> Layout:
    """The network that a checkpoint's config.json describes; raises ConfigError if it describes none."""
    path = directory / NETWORK_FILE
    try:
        layout = _LAYOUT.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "its content"
        raise ConfigError(f"{path} must describe a BigGAN-deep network: {field}: {first['msg']}") from None
    size = 4 * 2 ** sum(up for up, _, _ in layout.layers)
    if layout.output_dim != size:
        raise ConfigError(f"{path}: output_dim must be {size}, what its layers produce, got {layout.output_dim}")
    return layout


@contextmanager
def file_lock(lock: Path, timeout_s: float) -> Iterator[None]:
    """An advisory lock among the processes of this machine, so that work is done once and the others find it done.

    Proceeds without the lock after `timeout_s` seconds, or if the file system has none.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError:
        yield
        return
    with file:
        until = time.monotonic() + timeout_s
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
    """Whether the published weights of this name are in this machine's cache."""
    return _is_complete(cache_directory(name))


def resolve(model: str, download: bool) -> Path:
    """The directory that holds a model's config.json and weights.

    Args:
        model: `digit-scenes`, the name of published weights, or a directory.
        download: whether published weights that are not cached may be downloaded. Cached weights and any other model
            need no network.

    Raises:
        ConfigError: there is no such model, a file is missing, or the download failed; says which files to put where.
    """
    if model in PUBLISHED:
        return _published(model, download)
    directory = EMBEDDED_DIRECTORY if model == EMBEDDED_GENERATOR else Path(model).expanduser()
    if _is_complete(directory):
        return directory
    if directory.is_dir():
        raise ConfigError(f"generator.model must be a directory with {_FILES}, got {model!r}; put them in {directory}")
    names = [EMBEDDED_GENERATOR, *PUBLISHED]
    close = difflib.get_close_matches(model, names, 1, cutoff=0.5)
    raise ConfigError(
        f"generator.model must be one of {', '.join(names)}, or a directory with {_FILES}, got {model!r}"
        + (f"; did you mean {close[0]!r}?" if close else f"; put them in {directory}")
    )


def weights_file(directory: Path) -> Path:
    """The weights in a directory that `resolve` returned."""
    return next(path for name in WEIGHT_FILES if (path := directory / name).is_file())


def _is_complete(directory: Path) -> bool:
    return (directory / NETWORK_FILE).is_file() and any((directory / name).is_file() for name in WEIGHT_FILES)


def _published(name: str, download: bool) -> Path:
    directory = cache_directory(name)
    remedy = f"put {NETWORK_FILE} and {WEIGHT_FILES[1]} at {directory}"
    if not _is_complete(directory):
        if not download:
            raise ConfigError(f"generator.model must be in the cache, got {name!r}, which is not; {remedy}")
        from pytorch_pretrained_biggan import model as package  # slow to import, and needed for its addresses alone

        try:
            directory.mkdir(parents=True, exist_ok=True)
            _download(package.PRETRAINED_MODEL_ARCHIVE_MAP[name], directory / WEIGHT_FILES[1])
            _download(package.PRETRAINED_CONFIG_ARCHIVE_MAP[name], directory / NETWORK_FILE)
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(
                f"generator.model must be in the cache or be downloaded, got {name!r}, and the download failed "
                f"({error}); {remedy}"
            ) from None
    return directory


def _download(url: str, path: Path) -> None:
    """Download atomically, by way of a temporary file; several processes may do this at once."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        partial = Path(file.name)
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                shutil.copyfileobj(response, file, 2**20)
                expected = response.headers.get("Content-Length")
            if expected is not None and file.tell() != int(expected):  # a lost connection looks like the end of a file
                raise OSError(f"{url} ended after {file.tell()} of {expected} bytes")
            file.flush()
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
