"""A small process beside a generator that kills it when a ticket takes too long, or when it is frozen between tickets.

It is a process of its own because a generator that was frozen by SIGSTOP, or that hangs within a call that holds the
interpreter, would freeze any thread of its own too. Ray starts a killed generator again and gives it its ticket back.
This file is also the program of that process, and needs nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WORK, LIFE = "work", "life"


class Watchdog:
    """Watches the process that makes it: in the pieces of work that are marked with `over`, and between them.

    Args:
        still_s: seconds without a sign of life between two pieces of work after which this process dies.
        log: gets a line about that.
    """

    def __init__(self, still_s: float, log: Path) -> None:
        command = [sys.executable, "-I", "-S", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
        self._still_s = still_s
        error = f"it hung between two tickets: killed after {still_s:g} s"
        self._line = {"file": str(log), "fault": "generator failed", "host": socket.gethostname(), "error": error}
        self._show_life()
        threading.Thread(target=self._go_on_showing_life, name="genray-watchdog", daemon=True).start()

    @contextmanager
    def over(self, limit_s: float, file: Path | None = None) -> Iterator[None]:
        """Work that may take `limit_s` seconds; after that this process dies, and `file` gets a line about it."""
        error = f"it hung: killed after {limit_s:g} s"
        self._tell(WORK, limit_s, {"file": str(file), "fault": "failed", "error": error} if file else None)
        try:
            yield
        finally:
            self._tell(WORK, None)

    def _show_life(self) -> None:
        self._tell(LIFE, self._still_s, self._line)

    def _go_on_showing_life(self) -> None:
        while True:
            time.sleep(self._still_s / 4)
            self._show_life()

    def _tell(self, about: str, limit_s: float | None, line: dict[str, str] | None = None) -> None:
        """Set or lift a limit. What cannot be watched any more must not go on: it could hang unseen."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([about, limit_s, line]).encode() + b"\n")
        except BrokenPipeError:
            os.kill(os.getpid(), signal.SIGKILL)


class Limit:
    """Seconds from now on, or none, and the line that is due when they are over."""

    def __init__(self, seconds: float | None, line: dict[str, str] | None = None):
        self.seconds, self.line, self.began = seconds, line, time.monotonic()

    def left(self) -> float | None:
        return None if self.seconds is None else max(0.0, self.began + self.seconds - time.monotonic())


def main() -> None:
    """Follow the messages on standard input until it ends, which it does when the watched process is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    watched, text = os.getppid(), b""
    work, life = Limit(None), Limit(None)
    while True:
        watch = work if work.left() is not None else life  # work has its own limit, and may hold up a thread
        ready, _, _ = select.select([0], [], [], watch.left())
        if not ready:
            break
        read = os.read(0, 65536)
        if not read:
            return
        *complete, text = (text + read).split(b"\n")
        for message in complete:
            about, limit_s, line = json.loads(message)
            if about == WORK:
                work, life = Limit(limit_s, line), Limit(life.seconds, life.line)
            else:
                life = Limit(limit_s, line)
    if os.getppid() != watched:
        return
    os.kill(watched, signal.SIGKILL)
    if watch.line:
        with suppress(OSError), open(watch.line.pop("file"), "a") as file:
            file.write(json.dumps({"time": time.time(), **watch.line}) + "\n")


if __name__ == "__main__":
    main()
