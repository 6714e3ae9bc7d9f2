"""Checks of flags, and writing `--out`, shared by several commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tyro.conf import arg

from genray.config.errors import UserError
from genray.config.files import write_atomically

DEFAULT_IN_HELP = arg(help_behavior_hint="")
"""Annotates flags after whose help `(default: None)` or `(default: )` would be wrong or say nothing."""


def at_least_one(command: Any, *names: str) -> None:
    """Raise UserError for the first of these flags that is below 1."""
    for name in names:
        if (value := getattr(command, name)) < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")


def positive(command: Any, *names: str) -> None:
    """Raise UserError for the first of these flags that is given and not above 0."""
    for name in names:
        if (value := getattr(command, name)) is not None and value <= 0:
            raise UserError(f"--{name} must be more than 0, got {value:g}")


def writable(out: Path | None) -> None:
    """Raise UserError if `--out` is given and cannot be a file."""
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UserError(f"--out must be a file in a directory that exists, got '{out}'")


def write_json(out: Path | None, results: dict[str, Any]) -> None:
    """Write a command's results to `--out`, if that is given."""
    if out:
        write_atomically(out, json.dumps(results, indent=1) + "\n")


def no_overrides(overrides: Sequence[str]) -> None:
    """Raise UserError for arguments that a command without a configuration does not take."""
    if overrides:
        raise UserError(f"this command takes no {overrides[0]!r}")
