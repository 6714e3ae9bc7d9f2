"""Cache of folded weights, `$GENRAY_CACHE/folded`, so that each machine folds a checkpoint once.

A file's name is a digest of the checkpoint, the network in its config.json and the software that folded it. Files hold
a checksum of their tensors, are written atomically and are read by memory mapping. The cache is optional: an invalid
file is replaced, a directory that cannot be written is ignored, and files may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genray.config.files import cache_directory
from genray.views.generators.checkpoints import Layout, file_lock, weights_file
from genray.views.generators.fold import fold

FORMAT = "genray.folded.2"
TIMESTAMP_MARGIN_NS = 2_000_000_000
"""Age at which a change of a file shows in its timestamps on any file system."""
FOLDING_WAIT_S = 60.0
"""Seconds to wait for another process that is folding the same checkpoint."""


def folded(directory: Path, layout: Layout) -> dict[str, Tensor]:
    """The folded tensors of a checkpoint, as `genray.views.generators.fold.fold` returns them, cached if possible.

    Raises:
        ConfigError: they are not cached, and the checkpoint cannot be used.
    """
    source, cache = weights_file(directory).resolve(), cache_directory("folded")
    note = cache / f"{hashlib.sha256(str(source).encode()).hexdigest()[:16]}.json"
    with suppress(OSError):  # without the lock: processes that start at once need not wait for each other to read
        if (tensors := _read(cache, _key(layout, _noted(source, note)))) is not None:
            return tensors
    with file_lock(note.with_suffix(".lock"), FOLDING_WAIT_S):
        try:
            state = _state(source)
            key = _key(layout, _digest(source, note))
        except OSError:  # the source itself cannot be read; `fold` says why
            return fold(layout, source)
        tensors = _read(cache, key)
        if tensors is None:
            tensors = fold(layout, source)
            with suppress(OSError):
                if _state(source) == state:  # otherwise its content may not match the key
                    _write(cache, tensors, key)
    return tensors


def _key(layout: Layout, digest: str) -> str:
    content = json.dumps([FORMAT, torch.__version__, asdict(layout), digest], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _digest(source: Path, note: Path) -> str:
    """SHA-256 of a file, kept in a note so that an unchanged file is read only once.

    Raises:
        OSError: it cannot be read.
    """
    state = _state(source)
    if digest := _noted(source, note):
        return digest
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A file that changes again within the resolution of its timestamps would look unchanged.
    if _state(source) == state and time.time_ns() - max(state["modified"], state["changed"]) > TIMESTAMP_MARGIN_NS:
        _replace(note, json.dumps({**state, "digest": digest}).encode())
    return digest


def _noted(source: Path, note: Path) -> str:
    """The noted digest of a file in its present state; empty if there is none.

    Raises:
        OSError: the state of the file itself cannot be read.
    """
    state = _state(source)
    with suppress(OSError, ValueError):
        noted = json.loads(note.read_text())
        if isinstance(noted, dict) and {**noted, "digest": ""} == {**state, "digest": ""}:
            return str(noted["digest"])
    return ""


def _state(source: Path) -> dict[str, Any]:
    """What changes with a file. Programs can set its modification time, but not its change time."""
    stat = source.stat()
    return {
        "source": str(source),
        "bytes": stat.st_size,
        "inode": stat.st_ino,
        "modified": stat.st_mtime_ns,
        "changed": stat.st_ctime_ns,
    }


def _read(cache: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors in a file, memory-mapped; None if it is missing, truncated or not written by this module."""
    try:
        with safe_open(cache / f"{key}.safetensors", "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, RuntimeError, ValueError):
        return None
    return tensors if about == _about(tensors, key) else None


def _write(cache: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    path = cache / f"{key}.safetensors"
    partial = _partial(path)
    with suppress(OSError, SafetensorError):  # the cache is optional
        path.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
            abandoned.unlink(missing_ok=True)
        try:
            save_file(dict(tensors), partial, _about(tensors, key))
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _about(tensors: Mapping[str, Tensor], key: str) -> dict[str, str]:
    checksum = 0
    for name in sorted(tensors):
        content = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        checksum = zlib.crc32(content, zlib.crc32(name.encode(), checksum))
    return {"format": FORMAT, "key": key, "crc32": f"{checksum:08x}"}


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _replace(path: Path, content: bytes) -> None:
    partial = _partial(path)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
