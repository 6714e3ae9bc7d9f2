"""Counts the attempts at each ticket, across the processes that make them.

A ticket that fails is rendered again in a fresh process, since a broken device or library would only fail again in the
old one. Attempts are counted in files in the run's directory, because the process that makes them may die.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genray.config.errors import GenrayError, Hopeless, UserError
from genray.runs import jsonl, processes
from genray.runs.faults import note
from genray.stream.tickets import Ticket
from genray.stream.watchdog import ATTEMPT_BEGUN, ATTEMPT_FAILED, GENERATOR_FAILED, failure_record
from genray.views.types import BadImages

DIED_SILENTLY = "it died without an error: killed, out of memory, or its node was lost"
"""Error of an attempt that began and never reported its end."""


class NotCounted(GenrayError):
    """An attempt was not made because it could not be counted: the run's directory is not writable."""


class TicketFailed(Hopeless):
    """A ticket failed in every process that tried it."""


class StartFailed(Hopeless):
    """Generators died repeatedly while they were loaded."""


@contextmanager
def starting(file: Path, log: Path, max_deaths: int) -> Iterator[None]:
    """Counts the generators that die within this block on this machine, which Ray would restart forever.

    Args:
        file: records their processes.
        log: the run's faults.jsonl.
        max_deaths: deaths since the last successful start after which there is no other attempt.

    Raises:
        StartFailed: there have been that many.
    """
    dead = [line for line in jsonl.read(file) if not processes.Process(**line).is_alive()]
    if len(dead) >= max_deaths:
        raise StartFailed(f"a generator died in each of its last {len(dead)} starts, without an error message")
    if dead:
        note(log, **failure_record(GENERATOR_FAILED, "it died while it was loaded"))
    processes.note(file, "generator")
    try:
        yield
    finally:  # also after an error, which is reported separately
        file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Attempts:
    """The attempts at the tickets of one pass over the stream.

    Args:
        directory: holds a file with the attempts of each ticket in progress.
        log: the run's faults.jsonl.
        max_attempts: processes that may try one ticket; two for bad images.
        count_deaths: whether an attempt that ended without an error counts. It must not if processes are also killed
            for reasons other than their ticket.
    """

    directory: Path
    log: Path
    max_attempts: int
    count_deaths: bool

    @contextmanager
    def at(self, ticket: Ticket) -> Iterator[Path]:
        """One attempt at a ticket: an error raised in this block fails it, and is raised again.

        Yields the file that counts the ticket's attempts.

        Raises:
            TicketFailed: this was the last attempt, or it has already been made.
            NotCounted: the directory is not writable.
        """
        number = ticket.number
        path = self.directory / f"{ticket.positions[0]}.jsonl"  # a ticket's number changes with the number of learners
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            errors = self._errors(path)
            if errors and "noted" not in errors[-1]:  # its process died before it could write to the log
                note(self.log, **failure_record(GENERATOR_FAILED, errors[-1]["error"], ticket=number))
            self._stop_after(number, errors)
            note(path, ATTEMPT_BEGUN)
        except OSError as error:
            raise NotCounted(f"attempts at ticket {number} cannot be counted in {self.directory}: {error}") from error
        try:
            yield path
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            message = f"{type(error).__name__}: {error}"
            line = failure_record(ATTEMPT_FAILED, message) | {"bad_images": isinstance(error, BadImages), "noted": True}
            note(path, **line)
            note(self.log, **failure_record(GENERATOR_FAILED, message, ticket=number))
            self._stop_after(number, [*errors, line], error)
            raise
        path.unlink(missing_ok=True)

    def _errors(self, path: Path) -> list[dict[str, Any]]:
        """One failure for each finished attempt that counts, in order."""
        attempts: list[dict[str, Any]] = []
        for line in jsonl.read(path):
            if line["fault"] == ATTEMPT_FAILED:
                attempts[-1:] = [line]
            else:
                attempts.append(failure_record(ATTEMPT_FAILED, DIED_SILENTLY) if self.count_deaths else {})
        return [attempt for attempt in attempts if attempt]

    def _stop_after(self, ticket: int, errors: list[dict[str, Any]], cause: BaseException | None = None) -> None:
        bad_images = all(error.get("bad_images") for error in errors)
        limit = min(2, self.max_attempts) if bad_images else self.max_attempts
        if errors and len(errors) >= limit:
            tried = f"{len(errors)} fresh processes" if len(errors) > 1 else "its only attempt"
            raise TicketFailed(f"ticket {ticket} failed in {tried}; the last error: {errors[-1]['error']}") from cause
