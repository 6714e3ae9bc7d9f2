"""genray's own errors, what each means for a run, and how one is recognised after Ray has turned it into text."""

from __future__ import annotations

import pkgutil
import re
from enum import Enum
from typing import ClassVar, NamedTuple


class Remedy(Enum):
    """What helps against an error that ended one of a run's processes."""

    USER = "the user removes its cause"
    RETRY = "another attempt may succeed"
    NONE = "another attempt would end the same way"


class GenrayError(Exception):
    """Base class of genray's own errors. `remedy` says what each means for a run."""

    remedy: ClassVar[Remedy] = Remedy.RETRY


class UserError(GenrayError):
    """Something the user can fix: printed in one line, without a traceback, with exit code 2."""

    remedy = Remedy.USER


class ConfigError(UserError):
    """A configuration that cannot be run: `<config.path> must <rule>, got <value>`, and the remedy."""


class Hopeless(GenrayError):
    """An error that another attempt would only meet again: it ends the run at once."""

    remedy = Remedy.NONE


class RunFailed(GenrayError):
    """A command ended with an error that no other command would fix: exit code 1."""

    remedy = Remedy.NONE


class RunStopped(Exception):
    """The run was asked to stop, and can be resumed. `interrupted` distinguishes Ctrl-C from SIGTERM."""

    def __init__(self, message: str, interrupted: bool):
        super().__init__(message)
        self.interrupted = interrupted


class Reason(NamedTuple):
    """Why another process failed."""

    remedy: Remedy
    message: str

    def error(self) -> UserError | RunFailed:
        """What a command raises for it."""
        return UserError(self.message) if self.remedy is Remedy.USER else RunFailed(self.message)


def reason_of(error: BaseException) -> Reason | None:
    """Why another process failed, from the error that Ray raises here; None if the cause is no error of genray's own.

    Ray keeps the original error as `cause` where it can. Where it hands over only the text of the traceback, the last
    error of genray's own in that text counts.
    """
    original = getattr(error, "cause", None) or error
    if isinstance(original, GenrayError):
        return Reason(original.remedy, str(original))
    named = re.findall(r"^(genray(?:\.\w+)*)\.(\w+): (.+)$", str(error), re.MULTILINE)
    if not named:
        return None
    module, name, message = named[-1]
    return Reason(_remedy_of(module, name), message)


def _remedy_of(module: str, name: str) -> Remedy:
    """The remedy of the error class that a traceback names; the class is resolved by its name, as pickle does it."""
    try:
        return pkgutil.resolve_name(f"{module}:{name}").remedy
    except (ImportError, AttributeError):  # a class of another version of genray, or outside the hierarchy
        return GenrayError.remedy
