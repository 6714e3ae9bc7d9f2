"""A small process beside a generator that kills it when a ticket takes too long.

It is a process of its own because a generator that was frozen by SIGSTOP, or that hangs within a call that holds the
interpreter, would freeze any thread of its own too. Ray starts a killed generator again and gives it its ticket back.
This file is also the program of that process, and needs nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Watchdog:
    """Watches the process that makes it, in the pieces of work that are marked with `over`."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @contextmanager
    def over(self, limit_s: float, file: Path | None = None) -> Iterator[None]:
        """Work that may take `limit_s` seconds; after that this process dies, and `file` gets a line about it."""
        self._tell({"limit_s": limit_s, "file": str(file) if file else None})
        try:
            yield
        finally:
            self._tell({})

    def _tell(self, message: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()


def main() -> None:
    """Follow the messages on standard input until it ends, which it does when the watched process is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    watched, message, deadline, text = os.getppid(), {}, None, b""
    while True:
        ready, _, _ = select.select([0], [], [], None if deadline is None else max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        read = os.read(0, 65536)
        if not read:
            return
        *complete, text = (text + read).split(b"\n")
        if complete:
            message = json.loads(complete[-1])
            deadline = time.monotonic() + message["limit_s"] if message else None
    if os.getppid() != watched:
        return
    os.kill(watched, signal.SIGKILL)
    if message["file"]:
        error = f"it hung: killed after {message['limit_s']:g} s"
        with suppress(OSError), open(message["file"], "a") as file:
            file.write(json.dumps({"time": time.time(), "fault": "failed", "error": error}) + "\n")


if __name__ == "__main__":
    main()
