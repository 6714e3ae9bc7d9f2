"""The sizes that a .pt2 file states, read from its archive without torch."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from genray.config.errors import ConfigError

if TYPE_CHECKING:
    from genray.config.generator import ExportedGenerator

ARCHIVE_ENTRY = "genray.json"
"""Name of the entry with the sizes among the archive's extra files."""


@dataclass(frozen=True)
class Program:
    """The sizes of a generator's program."""

    image_size: int
    latent_dim: int
    num_classes: int = 0
    batch: int | None = None
    """Its batch size; None for any."""
    truncation: float | None = None
    """The truncation that its latents must be scaled by; None for any."""

    def to_json(self) -> str:
        """The content of the archive's entry."""
        return json.dumps(asdict(self))


_PROGRAM = TypeAdapter(Program)


def describe_program(config: ExportedGenerator) -> Program:
    """The sizes in the file, completed by the configuration.

    Raises:
        ConfigError: there is no such file, it is not a torch.export program, a size is given in neither place, or the
            two contradict each other.
    """
    stated = _read(config.path)
    sizes = {name: getattr(config, name) for name in ("image_size", "latent_dim", "num_classes")}
    for name, given in {**sizes, "truncation": config.truncation}.items():
        if given is not None and stated.get(name, given) != given:
            raise ConfigError(f"generator.{name} must be that of {config.path}, which has {stated[name]}, got {given}")
    values = {**{name: given for name, given in sizes.items() if given is not None}, **stated}
    if missing := [name for name in sizes if name not in values]:
        raise ConfigError(f"generator.{missing[0]} must be given, because {config.path} does not state it")
    try:
        program = _PROGRAM.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{ARCHIVE_ENTRY} in {config.path} must hold sizes: {first['loc'][0]}: {first['msg']}"
        ) from None
    check_batch(config, program.batch)
    return program


def check_batch(config: ExportedGenerator, batch: int | None) -> None:
    """Raise ConfigError if the micro-batch differs from the batch size that a program was exported for."""
    if batch is not None and config.micro_batch != batch:
        raise ConfigError(
            f"generator.micro_batch must be {batch}, the number of images for which {config.path} was exported, got "
            f"{config.micro_batch!r}; or export it for any number"
        )


@lru_cache(maxsize=4)
def _read(path: str) -> dict[str, float]:
    """The archive's entry; empty if the file was not exported by genray."""
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as archive:
            entries = [name for name in archive.namelist() if name.endswith(f"/extra/{ARCHIVE_ENTRY}")]
            stated = json.loads(archive.read(entries[0])) if entries else {}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"generator.path must be a file that torch.export.save wrote, got {path!r} ({error}); "
            "python jobs/export_generator.py writes one"
        ) from None
    return {name: value for name, value in stated.items() if value is not None}
