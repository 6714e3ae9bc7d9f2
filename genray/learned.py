"""Files of learned latent views: tensors, and how they came about. Reading and writing them takes no torch.

They are safetensors whose metadata is one JSON object, so that the same content is always the same bytes. Nothing that
a file holds is executed.
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

from genray.generators.checkpoints import PUBLISHED
from genray.generators.settings import absolute, digest
from genray.settings import ConfigError

if TYPE_CHECKING:
    from genray.generators import GeneratorSpec

EMBEDDED = "digit-scenes"
NAMED = {EMBEDDED, *PUBLISHED}
"""Generators whose names say which they are; another one may be called by a path that has changed."""
"""Stands for the files that are shipped with the embedded generator."""
ASSETS = Path(__file__).parent / "generators" / "assets" / "digit_scenes"


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    tensors: Mapping[str, np.ndarray]
    """In the order of their names, float64."""
    about: Mapping[str, Any]
    """Among others `generator` and `latent_dim`, whom the tensors were learned for."""


@dataclass(frozen=True)
class Kind:
    """A kind of files, with the command that writes them."""

    name: str
    verb: str

    def command(self, file: str) -> str:
        """What a user has to run for such a file."""
        return f"genray {self.verb} PRESET --out {'FILE' if file == EMBEDDED else file}"

    def settled(self, file: str) -> tuple[str, str | None]:
        """A file's absolute path (the name of a shipped one stays) and SHA-256; None where it cannot be read yet."""
        return (file if file == EMBEDDED else absolute(file)), digest(str(self._path(file)))

    def read(self, field: str, file: str, sha256: str | None = None, spec: GeneratorSpec | None = None) -> Content:
        """The content of a file; read from the disk once in a process where its digest is given.

        Args:
            field: the setting that names the file.
            file: a path, or the name of a shipped one.
            sha256: of the only content that will do.
            spec: the generator that it is for.

        Raises:
            ConfigError: there is no such file, or it is another one; with the command that writes one.
        """
        found = (_remembered if sha256 else _read)(self, field, file, sha256)
        if spec and found.about["latent_dim"] != spec.latent_dim:
            raise ConfigError(
                f"{field} must be learned for latents of {spec.latent_dim} numbers, as {spec.name} has them, got "
                f"{file!r} for the {found.about['latent_dim']} of {found.about['generator']}; {self.command('FILE')} "
                "learns one"
            )
        theirs, ours = found.about.get("generator"), spec.name if spec else None
        if ours not in (None, theirs) and {theirs, ours} & NAMED:
            raise ConfigError(
                f"{field} must be learned for {ours}, got {file!r} for {theirs}; {self.command('FILE')} learns one"
            )
        return found

    def write(self, path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Write a file, whole or not at all; tensors become float32."""
        from safetensors.numpy import save

        narrow = {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
        content = save(narrow, metadata={"genray": json.dumps({"kind": self.name, **about})})
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
        return ASSETS / f"{self.name}.safetensors" if file == EMBEDDED else Path(file).expanduser()

    def _read(self, field: str, file: str, sha256: str | None) -> Content:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        rule = f"{field} must be a file that `genray {self.verb}` wrote, got {file!r}"
        try:
            content = self._path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"{rule} ({error.strerror}); write one: {self.command(file)}") from None
        found = hashlib.sha256(content).hexdigest()
        if sha256 not in (None, found):
            raise ConfigError(
                f"{field} must hold what it held when the run began (SHA-256 {sha256}), got {file!r} with {found}; "
                "put that content back, or begin another run: --name NAME --view.sha256 none"
            )
        try:
            length = int.from_bytes(content[:8], "little")
            about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["genray"])
            tensors = load(content)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(f"{rule}, which is none ({type(error).__name__}: {error})") from None
        if about.get("kind") != self.name:
            raise ConfigError(f"{rule}, which holds {about.get('kind')!r}")
        return Content({name: tensors[name].astype(np.float64) for name in sorted(tensors)}, about)


def _read(kind: Kind, field: str, file: str, sha256: str | None) -> Content:
    return kind._read(field, file, sha256)


_remembered = lru_cache(maxsize=None)(_read)

WALKS = Kind("walks", "steer")
NAVIGATOR = Kind("navigator", "navigate")
