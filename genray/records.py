"""Files of JSON lines, which their writer may have been killed over."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

Record = dict[str, Any]


def append(path: Path, *records: dict[str, Any]) -> None:
    """Add records; several processes may, and one that a full disk or a kill cut short spoils none but itself.

    Raises:
        OSError: the file cannot be written, or not to the end of the records.
    """
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        length = os.fstat(descriptor).st_size
        cut_short = length and os.pread(descriptor, 1, length - 1) != b"\n"
        text = b"\n" + text if cut_short else text
        if os.write(descriptor, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def settle(*paths: Path) -> None:
    """Wait until all that was added is on the disk, so that not even a power cut loses it."""
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The whole records of a file; none where it does not exist."""
    return list(_whole(path.read_bytes().splitlines())) if path.exists() else []


def last(path: Path) -> dict[str, Any]:
    """The last whole record of a file; empty where there is none."""
    return next(_whole(reversed(path.read_bytes().splitlines())), {}) if path.exists() else {}


class Follower:
    """Reads a file from a byte on, which need not exist yet: each record once, when its line is complete."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path, self.position = path, start

    def new(self) -> list[dict[str, Any]]:
        """The records since the last look."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.position)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self.position += len(complete)
        return list(_whole(complete.splitlines()))


def tail(path: Path, stop: Event, start: int = 0, poll_s: float = 0.25) -> Iterator[list[Record]]:
    """Follow a file of JSON lines: at each poll the records that are new, an empty list where there are none.

    Each record comes once, and only when its line is complete; a file that does not exist yet is waited for. Lines
    that are no record with a step and a time (a writer was killed within one) are left out. Ends with what the file
    holds after `stop` was set. `start` is the byte to begin at.
    """
    follower = Follower(path, start)
    while True:
        last = stop.is_set()  # asked before reading: what was written before the stop is still seen
        yield [record for record in follower.new() if {"step", "time"} <= record.keys()]
        if last:
            return
        stop.wait(poll_s)


def _whole(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Those that are records; a writer was killed within the others."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
