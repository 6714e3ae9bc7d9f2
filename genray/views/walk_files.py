"""Files of learned latent views: their tensors, and how they were learned. Imports no torch.

They are safetensors files whose metadata is one JSON object, so that equal content is equal bytes. Reading one executes
nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genray.config.errors import ConfigError
from genray.config.files import absolute, sha256_of
from genray.config.generator import EMBEDDED_GENERATOR
from genray.views.generators.checkpoints import EMBEDDED_DIRECTORY, PUBLISHED

if TYPE_CHECKING:
    from genray.views.types import GeneratorSpec

STABLE_NAMES = {EMBEDDED_GENERATOR, *PUBLISHED}
"""Generator names that always mean the same weights; any other may be a path, and the file may have moved."""


@dataclass(frozen=True)
class Content:
    """The content of a file."""

    tensors: Mapping[str, np.ndarray]
    """float64, sorted by name."""
    about: Mapping[str, Any]
    """How they were learned; `generator` and `latent_dim` say for which generator."""


@dataclass(frozen=True)
class LearnedViewFile:
    """The file format of one kind of learned latent view, and the command that writes it."""

    name: str
    """`walks` or `navigator`: the kind that such a file states, and the stem of the embedded file."""
    verb: str
    """The subcommand of `genray` that writes it."""

    def command(self, file: str) -> str:
        """The command that writes such a file."""
        return f"genray {self.verb} PRESET --out {'FILE' if file == EMBEDDED_GENERATOR else file}"

    def pinned(self, file: str) -> tuple[str, str | None]:
        """A file's absolute path and SHA-256: the embedded one keeps its name; None for a file that cannot be read."""
        return (file if file == EMBEDDED_GENERATOR else absolute(file)), sha256_of(str(self._path(file)))

    def read(self, field: str, file: str, sha256: str | None = None, spec: GeneratorSpec | None = None) -> Content:
        """The content of a file; cached in this process if its digest is given.

        Args:
            field: the setting that names the file, for the error.
            file: a path, or `digit-scenes` for the embedded one.
            sha256: the digest that it must have.
            spec: the generator that it must have been learned for.

        Raises:
            ConfigError: there is no such file, or it does not fit; names the command that writes one.
        """
        content = (_read_cached if sha256 else _read)(self, field, file, sha256)
        if spec and content.about["latent_dim"] != spec.latent_dim:
            raise ConfigError(
                f"{field} must be learned for latents of {spec.latent_dim} numbers, those of {spec.name}, got {file!r} "
                f"for the {content.about['latent_dim']} of {content.about['generator']}; {self.command('FILE')} "
                "learns one"
            )
        learned_for, wanted = content.about.get("generator"), spec.name if spec else None
        if wanted not in (None, learned_for) and {learned_for, wanted} & STABLE_NAMES:
            raise ConfigError(
                f"{field} must be learned for {wanted}, got {file!r} for {learned_for}; {self.command('FILE')} learns "
                "one"
            )
        return content

    def write(self, path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Write a file atomically; tensors become float32."""
        from safetensors.numpy import save

        float32 = {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
        content = save(float32, metadata={"genray": json.dumps({"kind": self.name, **about})})
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, file: str) -> Path:
        return (
            EMBEDDED_DIRECTORY / f"{self.name}.safetensors" if file == EMBEDDED_GENERATOR else Path(file).expanduser()
        )

    def _read(self, field: str, file: str, sha256: str | None) -> Content:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        rule = f"{field} must be a file that `genray {self.verb}` wrote, got {file!r}"
        try:
            content = self._path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"{rule} ({error.strerror}); write one: {self.command(file)}") from None
        actual = hashlib.sha256(content).hexdigest()
        if sha256 not in (None, actual):
            raise ConfigError(
                f"{field} must hold what it held when the run began (SHA-256 {sha256}), got {file!r} with {actual}; "
                "restore that content, or start a new run: --name NAME --view.sha256 none"
            )
        try:
            length = int.from_bytes(content[:8], "little")
            about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["genray"])
            tensors = load(content)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(f"{rule}, which is not one ({type(error).__name__}: {error})") from None
        if about.get("kind") != self.name:
            raise ConfigError(f"{rule}, which holds {about.get('kind')!r}")
        return Content({name: tensors[name].astype(np.float64) for name in sorted(tensors)}, about)


def _read(kind: LearnedViewFile, field: str, file: str, sha256: str | None) -> Content:
    return kind._read(field, file, sha256)


_read_cached = lru_cache(maxsize=None)(_read)

WALKS = LearnedViewFile("walks", "steer")
"""Linear walks, for views of kind `steered`."""
NAVIGATOR = LearnedViewFile("navigator", "navigate")
"""A network that moves latents, for views of kind `navigator`."""
