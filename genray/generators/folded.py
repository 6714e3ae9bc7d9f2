"""Folded weights, kept so that no second process on a machine has to fold them: `$GENRAY_CACHE/folded`.

A file is named after the content of the checkpoint, the network in its config.json and the software that folded it. It
holds a checksum of its tensors, is written under another name first, and is read by mapping it into memory. Nothing
depends on it: one that is cut short or not of this making is made again, and where none can be written none is. They
may be removed at any time.
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

from genray.generators.checkpoints import Layout, cache_directory, held, weights_file
from genray.generators.folding import fold

FORMAT = "genray.folded.2"
SETTLED_NS = 2_000_000_000
"""Age of a file from which a change of it would show in its times, on any file system."""
FOLDING_S = 60.0
"""Seconds to wait for another process that may be folding the same."""


def folded(directory: Path, layout: Layout) -> dict[str, Tensor]:
    """The folded tensors of a checkpoint, as `genray.generators.folding.fold` gives them, from here if they are.

    Raises:
        ConfigError: they are not here, and the checkpoint cannot be used.
    """
    source, place = weights_file(directory).resolve(), cache_directory("folded")
    note = place / f"{hashlib.sha256(str(source).encode()).hexdigest()[:16]}.json"
    with suppress(OSError):  # all that start at once may read, without waiting for each other
        if (tensors := _read(place, _key(layout, _noted(source, note)))) is not None:
            return tensors
    with held(note.with_suffix(".lock"), FOLDING_S):
        try:
            state = _state(source)
            key = _key(layout, _digest(source, note))
        except OSError:  # of the source itself
            return fold(layout, source)
        tensors = _read(place, key)
        if tensors is None:
            tensors = fold(layout, source)
            with suppress(OSError):
                if _state(source) == state:  # or it may not be what the key says
                    _write(place, tensors, key)
    return tensors


def _key(layout: Layout, digest: str) -> str:
    content = json.dumps([FORMAT, torch.__version__, asdict(layout), digest], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _digest(source: Path, note: Path) -> str:
    """SHA-256 of a file's content, noted so that it is read only once as long as nothing of it has changed.

    Raises:
        OSError: it cannot be read.
    """
    state = _state(source)
    if digest := _noted(source, note):
        return digest
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A file changed again within the resolution of its times would look like the one noted.
    if _state(source) == state and time.time_ns() - max(state["modified"], state["changed"]) > SETTLED_NS:
        _replace(note, json.dumps({**state, "digest": digest}).encode())
    return digest


def _noted(source: Path, note: Path) -> str:
    """The digest that was noted for a file as it is now, empty where there is none.

    Raises:
        OSError: the file itself cannot be looked at.
    """
    state = _state(source)
    with suppress(OSError, ValueError):
        noted = json.loads(note.read_text())
        if isinstance(noted, dict) and {**noted, "digest": ""} == {**state, "digest": ""}:
            return str(noted["digest"])
    return ""


def _state(source: Path) -> dict[str, Any]:
    """What changes with a file: the time of its last change is set by the system alone, unlike that of its content."""
    found = source.stat()
    return {
        "source": str(source),
        "bytes": found.st_size,
        "inode": found.st_ino,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
    }


def _read(place: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors of a file, mapped into memory; None where it is not there, cut short or not of this making."""
    try:
        with safe_open(place / f"{key}.safetensors", "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, RuntimeError, ValueError):
        return None
    return tensors if about == _about(tensors, key) else None


def _write(place: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    path = place / f"{key}.safetensors"
    partial = _partial(path)
    with suppress(OSError, SafetensorError):  # it is only kept for the next one
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
            left.unlink(missing_ok=True)
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
