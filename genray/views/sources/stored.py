"""Rendered anchors read from files: exactly the blocks of the live stream, whatever the ticket size.

The directory's manifest records the settings that determine the images; any other configuration is refused.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from genray.config.errors import ConfigError, UserError
from genray.config.load import differences
from genray.config.run import CONFIG_ADAPTER, MAY_CHANGE_ON_RESUME, Config
from genray.config.source import Mix, Stored
from genray.views import generators
from genray.views.sources.shards import DamagedShard, ShardFormat, ShardReader, Shards
from genray.views.types import Block, GeneratorSpec, SourceSpec

MANIFEST = "manifest.json"
CHUNKING_FIELDS = ("batch_size", "ticket_batches", "reuse", "reuse_window")
"""Fields of the stream that do not determine what is at a position."""
DIGEST_OF = {
    "generator.path": "generator.sha256",
    "generator.prompts_file": "generator.prompts_sha256",
    "view.walks": "view.sha256",
    "view.file": "view.sha256",
}
"""Fields that name a file, with the field that holds its digest; equal digests make them equal."""


@dataclass(frozen=True)
class Manifest:
    """The content of a directory of rendered anchors, and the settings that determined it."""

    name: str
    """Of the generator, or of the source in its place."""
    image_size: int
    latent_dim: int
    num_classes: int
    views: int
    """Images of each anchor."""
    format: ShardFormat
    ticket_anchors: int
    """Anchors in each file; file k begins at position k * `ticket_anchors`."""
    decided_by: dict[str, Any]
    """The part of the configuration that determines what is at each position."""
    generator_sha256: str | None = None
    """Digest of the generator's weights, if they are one or two files."""
    tickets: tuple[tuple[int, int], ...] = ()
    """Existing files, as ranges [first, last + 1]."""
    anchors: int = 0
    """Anchors in all files."""
    faults: dict[str, int] | None = None
    """Faults survived while the files were written, counted by kind."""
    versions: dict[str, str] | None = None
    """Versions of the software that rendered; if they changed in between, all of them."""
    config: dict[str, Any] | None = None
    """The whole configuration of the last `genray generate`."""

    def to_json(self) -> str:
        """The content of the file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def shards(self, directory: Path) -> Shards:
        """The files."""
        return Shards(directory, self.format, self.ticket_anchors)

    @property
    def end(self) -> int:
        """Length of the stream in anchors, up to the first missing file."""
        return next((last for first, last in self.tickets if first == 0), 0) * self.ticket_anchors


_MANIFEST = TypeAdapter(Manifest)


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file, with defaults for newer fields; raises ConfigError if it is not a manifest."""
    try:
        manifest = _MANIFEST.validate_json(path.read_bytes())
        config = CONFIG_ADAPTER.validate_python({"name": "stored", **manifest.decided_by})
        return replace(manifest, decided_by=decided_by(config))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "its content"
        raise ConfigError(f"{path} must be a manifest of genray generate: {field}: {first['msg']}") from None


def decided_by(config: Config) -> dict[str, Any]:
    """The part of a configuration that determines what is at each position, as plain JSON values."""
    values = config.to_dict()
    part = {key: values[key] for key in ("seed", "source", "generator", "view")}
    part["stream"] = {name: value for name, value in values["stream"].items() if name not in CHUNKING_FIELDS}
    if not config.source.renders:
        del part["generator"]
    if isinstance(config.source, Mix):  # the batch size determines which positions are real
        part["stream"]["batch_size"] = config.stream.batch_size
    return part


def changes(manifest: Manifest, config: Config) -> list[str]:
    """How a configuration differs from the one that determined stored anchors, for an error message.

    Ignored are values that the configuration leaves open, digests of files that are not here, paths of files with equal
    digests, and whatever may change when a run is resumed.
    """
    was, now = manifest.decided_by, decided_by(config)
    if isinstance(config.source, Stored):  # it stands for the source that was written
        was, now = ({**values, "source": None} for values in (was, now))
        if "generator" in was:
            now["generator"] = config.to_dict()["generator"]
        if "batch_size" in was["stream"]:
            now["stream"]["batch_size"] = config.stream.batch_size
    changed = [(path, a, b) for path, a, b in differences(was, now) if b != "auto" and (b or "sha256" not in path)]
    paths = {path for path, _, _ in changed}
    ignored = {path for path, digest in DIGEST_OF.items() if digest not in paths and _at(now, digest)}
    if "generator.model" in paths and manifest.generator_sha256:
        same_weights = generators.fingerprint(config.generator) == manifest.generator_sha256
        ignored |= {"generator.model"} if same_weights else set()
    ignored |= {*MAY_CHANGE_ON_RESUME}
    return [f"{path} was {a!r}, is {b!r}" for path, a, b in changed if path not in ignored]


def _at(values: dict[str, Any], path: str) -> Any:
    section, _, name = path.partition(".")
    return values.get(section, {}).get(name)


def describe_stored(config: Config) -> SourceSpec:
    """See `genray.views.sources.describe`."""
    manifest = _manifest(config)
    if not manifest.end:
        raise ConfigError(
            f"source.directory must hold the anchors from the first on, got {_directory(config)} with files "
            f"{' and '.join(f'{first} to {last - 1}' for first, last in manifest.tickets)}; genray generate adds others"
        )
    return SourceSpec(
        name=manifest.name,
        image_size=manifest.image_size,
        latent_dim=manifest.latent_dim,
        num_classes=manifest.num_classes,
        views=manifest.views,
        end=manifest.end,
    )


def rendered(config: Config) -> GeneratorSpec | None:
    """The generator of stored anchors, for `genray.views.sources.rendered`; None if it is not here."""
    part = _manifest(config).decided_by
    with suppress(ConfigError):
        return generators.describe(config.generator) if "generator" in part else None
    return None


def is_mixed(config: Config) -> bool:
    """Whether some of the stored anchors are real images."""
    return bool(_manifest(config).decided_by["source"]["kind"] == "mix")


class StoredSource:
    """Reads what `genray generate` wrote."""

    def __init__(self, config: Config):
        self.reader = ShardReader(_manifest(config).shards(_directory(config)))

    def block_at(self, position: np.ndarray) -> Block:
        """See `genray.views.types.Source`.

        Raises:
            UserError: the file of a position is missing or damaged.
        """
        try:
            block = self.reader.read(position)
        except (FileNotFoundError, DamagedShard) as error:
            raise UserError(
                f"source.directory must hold whole files ({error}); remove damaged files and repeat the genray "
                "generate command that wrote them"
            ) from None
        return {name: column for name, column in block.items() if name != "position"}


def _directory(config: Config) -> Path:
    assert isinstance(config.source, Stored)
    return Path(config.source.directory).expanduser()


def _manifest(config: Config) -> Manifest:
    """The manifest of the source's directory; raises ConfigError if there is none or it is of other anchors."""
    directory = _directory(config)
    if not (directory / MANIFEST).is_file():
        raise ConfigError(
            f"source.directory must be one that genray generate has finished, got {str(directory)!r} without "
            f"{MANIFEST}; genray generate PRESET --out {directory} resumes it"
        )
    manifest = read_manifest(directory / MANIFEST)
    if changed := changes(manifest, config):
        raise ConfigError(
            f"source.directory must hold what this configuration shows, got {str(directory)!r}, for which "
            f"{'; '.join(changed)}. Change these fields, or render into another directory"
        )
    return manifest
