"""What every configurable piece of genray is made of: a frozen dataclass whose docstrings are its help."""

from __future__ import annotations

from typing import TypeVar, cast, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict

T = TypeVar("T")


class UserError(Exception):
    """Something the user can mend: printed in one line, without a traceback, with exit code 2."""


class ConfigError(UserError):
    """A configuration that cannot be run: `<config.path> must <rule>, got <value>`, and the remedy."""


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass, checked when it is made, that refuses unknown fields and takes docstrings as help."""
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return cast("type[T]", pydantic.dataclasses.dataclass(frozen=True, config=config)(cls))
