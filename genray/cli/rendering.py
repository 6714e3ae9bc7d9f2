"""Commands that render, or learn latent views: `generate`, `preview`, `steer`, `navigate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional

from genray.cli.flags import DEFAULT_IN_HELP, at_least_one
from genray.commands import printing
from genray.commands.lessons.options import NavigateOptions, SteerOptions
from genray.commands.printing import show
from genray.config.errors import UserError


@dataclass(frozen=True)
class Generate:
    """Render a run's anchors into files, to train on with `source.kind = "stored"`.

    The same command resumes unfinished work; with more tickets or anchors it adds files.
    """

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    out: Path
    """Directory of the files; on a cluster, one that all nodes share."""
    tickets: str | None = None
    """Tickets to render, as FIRST:LAST, LAST excluded. A ticket is stream.ticket_batches batches, and one file."""
    anchors: Annotated[int | None, DEFAULT_IN_HELP] = None
    """Number of anchors to render from the first, rounded up to whole tickets. Default: as many as the run uses."""
    format: Literal["parquet", "webdataset"] = "parquet"
    """`parquet` stores raw pixels; `webdataset` stores PNGs, for programs that expect image files."""
    address: Annotated[str | None, DEFAULT_IN_HELP] = None
    """Ray cluster to join. Default: RAY_ADDRESS, or a new one on this machine."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.commands.configured import configured
        from genray.commands.generate import generate

        first, _, last = (self.tickets or "0:1").partition(":")
        if not (first.isdigit() and last.isdigit()):
            raise UserError(f"--tickets must be FIRST:LAST, got {self.tickets!r}")
        tickets = (int(first), int(last)) if self.tickets else None
        config = configured(self.preset, overrides)
        stored = generate(config, self.out, tickets, self.anchors, self.format, self.address)
        print(f"{stored.anchors:,} anchors of {stored.views} images in {self.out}")
        print(f"train on them with --source.kind stored --source.directory {self.out}")


@dataclass(frozen=True)
class Preview:
    """Draw a grid of anchors, their latent views and their augmented views."""

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    out: Path = Path("preview.png")
    """PNG file to write."""
    anchors: int = 8
    """Number of anchors, each a row of the grid."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.commands.configured import configured
        from genray.commands.preview import preview
        from genray.config.errors import RunFailed
        from genray.views.types import BadImages

        at_least_one(self, "anchors")
        try:
            preview(configured(self.preset, overrides), self.out, self.anchors)
        except OSError as error:
            raise UserError(f"--out must be a file that can be written, got '{self.out}' ({error})") from None
        except BadImages as error:
            raise RunFailed(str(error)) from error
        print(self.out)


@dataclass(frozen=True)
class Steer:
    """Learn linear walks for views of kind "steered": zoom, shift, rotation, brightness, colour.

    The same command resumes the training. Of the configuration, only the generator, seed, classes and tracking are
    used.
    """

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    learning: OmitArgPrefixes[SteerOptions] = field(default_factory=SteerOptions)
    out: Path = Path("walks.safetensors")
    """File to write. A picture of the walks is written next to it."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.commands.configured import configured
        from genray.commands.lessons.steer import steer

        show(printing.lesson(self.out, steer(configured(self.preset, overrides), self.out, self.learning)))


@dataclass(frozen=True)
class Navigate:
    """Learn a network for views of kind "navigator": it moves a latent so that its view is hard to match to the anchor.

    The same command resumes the training. Of the configuration, only the generator, seed, classes and tracking are
    used.
    """

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    learning: OmitArgPrefixes[NavigateOptions] = field(default_factory=NavigateOptions)
    out: Path = Path("navigator.safetensors")
    """File to write. A picture of some views is written next to it."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.commands.configured import configured
        from genray.commands.lessons.navigate import navigate

        show(printing.lesson(self.out, navigate(configured(self.preset, overrides), self.out, self.learning)))
