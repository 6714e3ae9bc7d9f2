"""What went wrong in a run and was survived, and how often a ticket has been tried; both outlive the processes.

A ticket that fails is rendered again in a fresh process, since a broken device or library state would only fail again
in the old one. The attempts are counted in files of the run's directory, because the process that could count them is
the one that dies.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genray import processes, records, storage
from genray.course import Ticket
from genray.generators import BadImages
from genray.settings import UserError

DIED = "it died without a word: killed, out of memory, or its node was lost"


class NotCounted(Exception):
    """An attempt was not made because it could not have been counted: the run's directory cannot be written."""


class TicketFailed(Exception):
    """A ticket failed in each of the processes that tried it."""


class StartFailed(Exception):
    """Generators died while they were loaded, again and again."""


def note(log: Path, fault: str, **facts: Any) -> None:
    """Append one line to a run's faults.jsonl."""
    records.append(log, {"time": time.time(), "fault": fault, "host": socket.gethostname(), **facts})
    storage.carry(log, log.parent)


def counts(log: Path) -> dict[str, int]:
    """How often each kind of fault is in a run's faults.jsonl."""
    return dict(Counter(record["fault"] for record in records.read(log)))


@contextmanager
def starting(file: Path, log: Path, most: int) -> Iterator[None]:
    """The start of a generator on this machine; what dies within it would be started by Ray without end.

    Raises:
        StartFailed: so many processes have died in their start since the last one that was ready.
    """
    dead = [line for line in records.read(file) if not processes.Process(**line).runs()]
    if len(dead) >= most:
        raise StartFailed(f"a generator died in each of its last {len(dead)} starts, without an error of its own")
    if dead:
        note(log, "generator failed", error="it died while it was loaded")
    processes.note(file, "generator")
    try:
        yield
    finally:  # also after an error, which is told as itself
        file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Attempts:
    """The attempts at the tickets of one pass over the stream.

    Args:
        directory: where they are counted, a file for each ticket in progress.
        log: the run's faults.jsonl.
        most: processes that may try one ticket; two where its images cannot be used.
        deaths: whether an attempt that ended without an error counts. Not where processes are also killed for other
            reasons than their ticket.
    """

    directory: Path
    log: Path
    most: int
    deaths: bool

    @contextmanager
    def at(self, ticket: Ticket) -> Iterator[Path]:
        """An attempt at a ticket; what is raised within fails it, and is raised again.

        Yields the file in which the attempts are counted.

        Raises:
            TicketFailed: this was the last attempt, or there were enough before.
            NotCounted: the directory cannot be written.
        """
        number = ticket.number
        path = self.directory / f"{ticket.positions[0]}.jsonl"  # numbers depend on how many learners there are
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            errors = self._errors(path)
            if errors and "noted" not in errors[-1]:  # it ended without the chance to say so itself
                note(self.log, "generator failed", ticket=number, error=errors[-1]["error"])
            self._stop_after(number, errors)
            note(path, "begun")
        except OSError as error:
            raise NotCounted(f"attempts at ticket {number} cannot be counted in {self.directory}: {error}") from error
        try:
            yield path
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            told = {"error": f"{type(error).__name__}: {error}", "bad_images": isinstance(error, BadImages)}
            note(path, "failed", **told, noted=True)
            note(self.log, "generator failed", ticket=number, error=told["error"])
            self._stop_after(number, [*errors, told], error)
            raise
        path.unlink(missing_ok=True)

    def _errors(self, path: Path) -> list[dict[str, Any]]:
        """One error for each attempt that is over."""
        found: list[dict[str, Any]] = []
        for line in records.read(path):
            if line["fault"] == "failed":
                found[-1:] = [line]
            elif self.deaths:
                found.append({"error": DIED})
            else:
                found.append({})
        return [error for error in found if error]

    def _stop_after(self, ticket: int, errors: list[dict[str, Any]], cause: BaseException | None = None) -> None:
        bad_images = all(error.get("bad_images") for error in errors)
        if errors and len(errors) >= (min(2, self.most) if bad_images else self.most):
            tried = f"{len(errors)} fresh processes" if len(errors) > 1 else "its only attempt"
            raise TicketFailed(f"ticket {ticket} failed in {tried}; the last error: {errors[-1]['error']}") from cause
