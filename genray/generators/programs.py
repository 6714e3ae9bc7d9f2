"""What a .pt2 file says of itself, read from its archive without torch."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from genray.settings import ConfigError

if TYPE_CHECKING:
    from genray.generators.settings import ExportedGenerator

ENTRY = "genray.json"
"""Among the extra files of the archive."""


@dataclass(frozen=True)
class Program:
    """What must be known of a generator's program."""

    image_size: int
    latent_dim: int
    num_classes: int = 0
    batch: int | None = None
    """Images that it renders at once; None for any number."""
    truncation: float | None = None
    """For which its latents must have been scaled; None for any."""

    def to_json(self) -> str:
        """As it stands in the archive."""
        return json.dumps(asdict(self))


_PROGRAM = TypeAdapter(Program)


def describe_program(config: ExportedGenerator) -> Program:
    """What the file says, completed by the settings.

    Raises:
        ConfigError: there is no such file, it is none of torch.export's, it lacks a size that the settings do not give
            either, or says something else than they do.
    """
    said = _read(config.path)
    sizes = {name: getattr(config, name) for name in ("image_size", "latent_dim", "num_classes")}
    for name, given in {**sizes, "truncation": config.truncation}.items():
        if given is not None and said.get(name, given) != given:
            raise ConfigError(f"generator.{name} must be that of {config.path}, which has {said[name]}, got {given}")
    found = {**{name: given for name, given in sizes.items() if given is not None}, **said}
    if missing := [name for name in sizes if name not in found]:
        raise ConfigError(f"generator.{missing[0]} must be given for a program that does not say it, as {config.path}")
    try:
        program = _PROGRAM.validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{ENTRY} in {config.path} must hold sizes: {first['loc'][0]}: {first['msg']}") from None
    check_batch(config, program.batch)
    return program


def check_batch(config: ExportedGenerator, batch: int | None) -> None:
    """Raise ConfigError where a program for so many images at once would be given another number."""
    if batch is not None and config.micro_batch != batch:
        raise ConfigError(
            f"generator.micro_batch must be {batch}, the number of images for which {config.path} was exported, got "
            f"{config.micro_batch!r}; or export it for any number"
        )


@lru_cache(maxsize=4)
def _read(path: str) -> dict[str, float]:
    """The archive's entry; empty where somebody else than genray has exported it."""
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as archive:
            entries = [name for name in archive.namelist() if name.endswith(f"/extra/{ENTRY}")]
            found = json.loads(archive.read(entries[0])) if entries else {}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"generator.path must be a file that torch.export.save wrote, got {path!r} ({error}); "
            "python jobs/export_generator.py writes one"
        ) from None
    return {name: value for name, value in found.items() if value is not None}
