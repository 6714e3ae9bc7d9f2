"""What every configurable piece of genray is made of: a frozen dataclass whose docstrings are its help."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict

T = TypeVar("T")


class UserError(Exception):
    """Something the user can mend: printed in one line, without a traceback, with exit code 2."""


class ConfigError(UserError):
    """A configuration that cannot be run: `<config.path> must <rule>, got <value>`, and the remedy."""


class Reason(NamedTuple):
    """Why another process failed, as its traceback tells it."""

    name: str
    message: str

    @property
    def mendable(self) -> bool:
        """Whether it was a UserError."""
        return self.name in (UserError.__name__, ConfigError.__name__)


def reason_in(traceback: str) -> Reason | None:
    """The last exception of genray's own in a traceback that Ray has turned into text; None where there is none."""
    found = re.findall(r"^genray(?:\.\w+)*\.(\w+): (.+)$", traceback, re.MULTILINE)
    return Reason(*found[-1]) if found else None


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass, checked when it is made, that refuses unknown fields and takes docstrings as help."""
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    return cast("type[T]", pydantic.dataclasses.dataclass(frozen=True, config=config)(cls))
