"""A small process that kills a generator if a ticket takes too long, or if the generator hangs between tickets.

It is a separate process because a generator that is stopped by SIGSTOP, or hangs in a call that holds the interpreter
lock, would stop its own threads too. Ray restarts a killed generator and gives it the same ticket. This file is also
the program of that process and imports only the standard library, so it owns the records that it shares with
`genray.stream.attempts`.
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
from typing import Any

ATTEMPT_BEGUN, ATTEMPT_FAILED = "begun", "failed"
"""Records in the file that counts the attempts at a ticket."""
GENERATOR_FAILED = "generator failed"
"""A record in the run's faults.jsonl."""

_WORK, _HEARTBEAT = "work", "heartbeat"


def failure_record(fault: str, error: str, **facts: Any) -> dict[str, Any]:
    """A record of a failure, for either file; writers add the time."""
    return {"fault": fault, **facts, "error": error}


class Watchdog:
    """Watches the process that creates it, both within the blocks marked with `limit` and between them.

    Args:
        idle_timeout_s: seconds without a heartbeat between two such blocks after which this process is killed.
        log: the run's faults.jsonl, which then gets a line.
    """

    def __init__(self, idle_timeout_s: float, log: Path) -> None:
        command = [sys.executable, "-I", "-S", __file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
        self._idle_timeout_s = idle_timeout_s
        error = f"it hung between two tickets: killed after {idle_timeout_s:g} s"
        self._idle_line = {"file": str(log), **failure_record(GENERATOR_FAILED, error, host=socket.gethostname())}
        self._send_heartbeat()
        threading.Thread(target=self._send_heartbeats, name="genray-watchdog", daemon=True).start()

    @contextmanager
    def limit(self, limit_s: float, file: Path | None = None) -> Iterator[None]:
        """A block that may take `limit_s` seconds; after that this process is killed, and `file` gets a line."""
        error = f"it hung: killed after {limit_s:g} s"
        self._send(_WORK, limit_s, {"file": str(file), **failure_record(ATTEMPT_FAILED, error)} if file else None)
        try:
            yield
        finally:
            self._send(_WORK, None)

    def _send_heartbeat(self) -> None:
        self._send(_HEARTBEAT, self._idle_timeout_s, self._idle_line)

    def _send_heartbeats(self) -> None:
        while True:
            time.sleep(self._idle_timeout_s / 4)
            self._send_heartbeat()

    def _send(self, kind: str, limit_s: float | None, line: dict[str, Any] | None = None) -> None:
        """Set or lift a limit. A process that is no longer watched must not continue: it could hang unnoticed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([kind, limit_s, line]).encode() + b"\n")
        except BrokenPipeError:
            os.kill(os.getpid(), signal.SIGKILL)


class Deadline:
    """A number of seconds from now, or none, and the line to write when they have passed."""

    def __init__(self, seconds: float | None, line: dict[str, Any] | None = None):
        self.seconds, self.line, self.began = seconds, line, time.monotonic()

    def left(self) -> float | None:
        """Seconds left; None without a deadline."""
        return None if self.seconds is None else max(0.0, self.began + self.seconds - time.monotonic())


def main() -> None:
    """Follow the messages on standard input until the watched process ends, or must be killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    watched, text = os.getppid(), b""
    work, idle = Deadline(None), Deadline(None)
    while True:
        deadline = work if work.left() is not None else idle  # work may block the thread that sends heartbeats
        ready, _, _ = select.select([0], [], [], deadline.left())
        if not ready:
            break
        read = os.read(0, 65536)
        if not read:
            return
        *complete, text = (text + read).split(b"\n")
        for message in complete:
            kind, limit_s, line = json.loads(message)
            if kind == _WORK:
                work, idle = Deadline(limit_s, line), Deadline(idle.seconds, idle.line)
            else:
                idle = Deadline(limit_s, line)
    if os.getppid() != watched:
        return
    os.kill(watched, signal.SIGKILL)
    if deadline.line:
        with suppress(OSError), open(deadline.line.pop("file"), "a") as file:
            file.write(json.dumps({"time": time.time(), **deadline.line}) + "\n")


if __name__ == "__main__":
    main()
