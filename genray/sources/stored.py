"""Rendered anchors that are read from files: exactly the blocks of the live stream, whatever the tickets' size.

What decided the images stands in the directory's manifest; a configuration that would have rendered others is refused.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from genray import generators
from genray.config import ADAPTER, MAY_CHANGE, Config
from genray.configure import differences
from genray.generators import GeneratorSpec
from genray.settings import ConfigError, UserError
from genray.sources import Block, SourceSpec
from genray.sources.settings import Mix, Stored
from genray.sources.shards import Damaged, Format, Reader, Shards

MANIFEST = "manifest.json"
PORTIONS = ("batch_size", "ticket_batches", "reuse", "reuse_window")
"""Fields of the stream that do not decide what lies at its places."""
MOVED = {
    "generator.path": "generator.sha256",
    "generator.prompts_file": "generator.prompts_sha256",
    "view.walks": "view.sha256",
    "view.file": "view.sha256",
}
"""Fields that may differ where these, the digests of the files that they name, do not."""


@dataclass(frozen=True)
class Manifest:
    """What a directory of rendered anchors holds, and what decided it."""

    name: str
    """Of the generator, or of whatever was shown in its place."""
    image_size: int
    latent_dim: int
    num_classes: int
    views: int
    """Images of each anchor."""
    format: Format
    ticket_anchors: int
    """Anchors in each file; file k holds the places of the stream from k times that many on."""
    decided_by: dict[str, Any]
    """The part of the configuration that decides what lies at a place of the stream."""
    generator_sha256: str | None = None
    """Of the generator's weights, where they are a file or two."""
    tickets: tuple[tuple[int, int], ...] = ()
    """Files that there are, in ranges [first, the one after the last]."""
    anchors: int = 0
    """In all files together."""
    faults: dict[str, int] | None = None
    """How often something went wrong and was survived while they were written."""
    versions: dict[str, str] | None = None
    """Of the programs that rendered; with others in turn, all of them."""
    config: dict[str, Any] | None = None
    """The whole configuration, as it was when the last files were asked for."""

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def shards(self, directory: Path) -> Shards:
        """The files."""
        return Shards(directory, self.format, self.ticket_anchors)

    @property
    def end(self) -> int:
        """Places of the stream, from its beginning, that there are without a gap."""
        return next((last for first, last in self.tickets if first == 0), 0) * self.ticket_anchors


_MANIFEST = TypeAdapter(Manifest)


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file, with what was not there yet when it was written; ConfigError where it is none."""
    try:
        found = _MANIFEST.validate_json(path.read_bytes())
        return replace(found, decided_by=decided_by(ADAPTER.validate_python({"name": "stored", **found.decided_by})))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise ConfigError(f"{path} must be a manifest of genray generate: {place}: {first['msg']}") from None


def decided_by(config: Config) -> dict[str, Any]:
    """The part of a configuration that decides what lies at each place of the stream, as plain JSON values."""
    values = config.to_dict()
    found = {key: values[key] for key in ("seed", "source", "generator", "view")}
    found["stream"] = {name: value for name, value in values["stream"].items() if name not in PORTIONS}
    if not config.source.renders:
        del found["generator"]
    if isinstance(config.source, Mix):  # then the batch decides which places are real
        found["stream"]["batch_size"] = config.stream.batch_size
    return found


def changes(theirs: Manifest, config: Config) -> list[str]:
    """How a configuration differs from what decided stored anchors, apart from where the same files lie.

    What it leaves open, or cannot know because the file is not here, is no difference, and neither is what may change
    while a run is resumed.
    """
    was, now = theirs.decided_by, decided_by(config)
    if isinstance(config.source, Stored):  # it stands for whatever was written down
        was, now = ({**values, "source": None} for values in (was, now))
        if "generator" in was:
            now["generator"] = config.to_dict()["generator"]
        if "batch_size" in was["stream"]:
            now["stream"]["batch_size"] = config.stream.batch_size
    found = [(path, a, b) for path, a, b in differences(was, now) if b != "auto" and (b or "sha256" not in path)]
    told = {path for path, _, _ in found}
    same = {*MAY_CHANGE, *(path for path, digest in MOVED.items() if digest not in told and _at(now, digest))}
    if "generator.model" in told and theirs.generator_sha256:
        same |= {"generator.model"} if generators.fingerprint(config.generator) == theirs.generator_sha256 else set()
    found = [change for change in found if change[0] not in same]
    return [f"{path} was {a!r}, is {b!r}" for path, a, b in found]


def _at(values: dict[str, Any], path: str) -> Any:
    section, _, name = path.partition(".")
    return values.get(section, {}).get(name)


def describe_stored(config: Config) -> SourceSpec:
    """See `genray.sources.describe`."""
    found = _manifest(config)
    if not found.end:
        raise ConfigError(
            f"source.directory must hold the anchors from the first on, got {_directory(config)} with files "
            f"{' and '.join(f'{first} to {last - 1}' for first, last in found.tickets)}; genray generate adds others"
        )
    return SourceSpec(
        name=found.name,
        image_size=found.image_size,
        latent_dim=found.latent_dim,
        num_classes=found.num_classes,
        views=found.views,
        end=found.end,
    )


def rendered(config: Config) -> GeneratorSpec | None:
    """The generator of stored anchors, as `genray.sources.rendered` has it; None where it is not here."""
    found = _manifest(config).decided_by
    with suppress(ConfigError):
        return generators.describe(config.generator) if "generator" in found else None
    return None


def is_mixed(config: Config) -> bool:
    """Whether stored anchors are real images in part."""
    return bool(_manifest(config).decided_by["source"]["kind"] == "mix")


class StoredSource:
    """Reads what `genray generate` has written."""

    def __init__(self, config: Config):
        self.reader = Reader(_manifest(config).shards(_directory(config)))

    def shown(self, position: np.ndarray) -> Block:
        """See `genray.sources.Source`.

        Raises:
            UserError: there is no file of one of these places, or it is not what was written.
        """
        try:
            found = self.reader.read(position)
        except (FileNotFoundError, Damaged) as error:
            raise UserError(
                f"source.directory must hold whole files ({error}); remove what is damaged and run the genray generate "
                "that wrote it again"
            ) from None
        return {name: column for name, column in found.items() if name != "position"}


def _directory(config: Config) -> Path:
    assert isinstance(config.source, Stored)
    return Path(config.source.directory).expanduser()


def _manifest(config: Config) -> Manifest:
    """Raises ConfigError where there is none, or it is of other anchors than this configuration shows."""
    directory = _directory(config)
    if not (directory / MANIFEST).is_file():
        raise ConfigError(
            f"source.directory must be one that genray generate has finished, got {str(directory)!r} without "
            f"{MANIFEST}; genray generate PRESET --out {directory} goes on with what it has begun"
        )
    found = read_manifest(directory / MANIFEST)
    if changed := changes(found, config):
        raise ConfigError(
            f"source.directory must hold what this configuration shows, got {str(directory)!r}, for which "
            f"{'; '.join(changed)}. Change these fields, or render into another directory"
        )
    return found
