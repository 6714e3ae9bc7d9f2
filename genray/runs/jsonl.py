"""Files of JSON lines, whose writer may be killed at any time."""

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
    """Append records. Several processes may do so, and a record that is cut short damages no other.

    Raises:
        OSError: the file cannot be written, or not all of the records.
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


def flush(*paths: Path) -> None:
    """Wait until all appended records are on the disk, so that not even a power cut loses them."""
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The complete records of a file; none if it does not exist."""
    return list(_records(path.read_bytes().splitlines())) if path.exists() else []


def last(path: Path) -> dict[str, Any]:
    """The last complete record of a file; empty if there is none."""
    return next(_records(reversed(path.read_bytes().splitlines())), {}) if path.exists() else {}


class Follower:
    """Reads each record of a growing file once, when its line is complete. The file need not exist yet.

    Args:
        path: the file.
        start: position of the first byte to read.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path, self.position = path, start

    def new(self) -> list[dict[str, Any]]:
        """The records that are new since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.position)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self.position += len(complete)
        return list(_records(complete.splitlines()))


def tail(path: Path, stop: Event, start: int = 0, poll_s: float = 0.25) -> Iterator[list[Record]]:
    """Follow a file of JSON lines: yields the new records at each poll, or an empty list if there are none.

    Each record is yielded once, when its line is complete. Records without a step and a time are left out. The last
    list holds what was appended before `stop` was set.

    Args:
        path: the file, which need not exist yet.
        stop: ends the iteration.
        start: position of the first byte to read.
        poll_s: seconds between polls.
    """
    follower = Follower(path, start)
    while True:
        last = stop.is_set()  # read first, so that what was written before the stop is still yielded
        yield [record for record in follower.new() if {"step", "time"} <= record.keys()]
        if last:
            return
        stop.wait(poll_s)


def _records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The records in some lines, without those that a killed writer left incomplete."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
