"""Commands that list runs, presets and fields: `list`, `presets`, `fields`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from genray.cli.flags import no_overrides
from genray.commands import printing
from genray.commands.printing import show
from genray.config import fields, load
from genray.config.errors import UserError
from genray.config.files import is_url


@dataclass(frozen=True)
class List:
    """List the runs in a directory and their state."""

    directory: Positional[str] = "runs"
    """Directory that holds the runs, or its address in an object store."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.runs.directory import list_runs

        no_overrides(overrides)
        if not is_url(self.directory) and not Path(self.directory).is_dir():
            raise UserError(f"the directory must exist, got {self.directory!r}")
        show(printing.runs([run.state() for run in list_runs(self.directory)]))


@dataclass(frozen=True)
class Presets:
    """List the shipped presets."""

    def __call__(self, overrides: Sequence[str]) -> None:
        no_overrides(overrides)
        summaries = {name: path.read_text().splitlines()[0].lstrip("# ") for name, path in load.presets().items()}
        show([f"{name:24} {line}" for name, line in summaries.items()])


@dataclass(frozen=True)
class Fields:
    """List every field of the configuration with its default and meaning."""

    def __call__(self, overrides: Sequence[str]) -> None:
        no_overrides(overrides)
        show([fields.reference()])
