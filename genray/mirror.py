"""The driver's side of a run on an object store: records are carried there, and here what other nodes wrote."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from genray import storage
from genray.settings import UserError
from genray.storage import LINES, STOP, TREES, Stored

EVERY_S = 4.0
"""Seconds between two looks."""
IDLE = 20
"""Times as long as the last look took that the next one waits at least: long files are not carried all the time."""
UNDELIVERED = "mlflow.undelivered"
OURS = ("*.json", "*.jsonl", "report.png", UNDELIVERED)
LEFT_HERE = ("processes-", storage.LEASE, "checkpoint_")
"""Beginnings of names of what no other machine needs."""
TAKEN = "nodes.json"
"""How much of the other nodes' lines has been taken over."""


@contextmanager
def mirrored(run: Path) -> Iterator[Callable[[], None]]:
    """Carry while the block runs, and once more after it; nothing where the run is in a directory.

    Yields what carries at once, and returns when all is here that other nodes have written.
    """
    if (stored := storage.of(run)) is None:
        yield lambda: None
        return
    mirror, over = Mirror(stored), threading.Event()

    def work() -> None:
        wait = EVERY_S
        while not over.wait(wait):
            began = time.monotonic()
            with suppress(UserError):  # the store is away; what is here is carried when it is back
                mirror.look()
            wait = max(EVERY_S, IDLE * (time.monotonic() - began))

    thread = threading.Thread(target=work, name="genray-mirror", daemon=True)
    stored.remove(STOP)
    thread.start()
    try:
        yield mirror.look
    finally:
        over.set()
        thread.join()
        mirror.look()
        stored.remove(STOP)


class Mirror:
    """What of a run has been carried."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.sent: dict[str, tuple[int, int]] = {}
        self.one = threading.Lock()

    def look(self) -> None:
        """Take over what the others wrote, send what is new, show a sign of life. Raises UserError."""
        with self.one:
            run = self.stored.run
            if (run / STOP).exists():
                self.stored.put(run / STOP, STOP)
            self.stored.show_life()
            there = self.stored.files()
            self._take_over(there)
            self.stored.pull({name: size for name, size in there.items() if name.startswith(TREES)})
            for path in sorted({path for pattern in OURS for path in run.glob(pattern)}):
                if not path.name.startswith(LEFT_HERE):
                    self.send(path)
            if UNDELIVERED in there and not (run / UNDELIVERED).exists():
                self.stored.remove(UNDELIVERED)

    def send(self, path: Path) -> None:
        """Take a file to the store, unless that has it as it is."""
        with suppress(FileNotFoundError):
            found = path.stat()
            state = found.st_size, found.st_mtime_ns
            if self.sent.get(path.name) != state:
                self.stored.put(path, path.name)
                self.sent[path.name] = state

    def _take_over(self, there: Mapping[str, int]) -> None:
        """Add the lines that other nodes have written to the run's own files."""
        file = self.stored.run / TAKEN
        taken: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        before = dict(taken)
        for name, size in there.items():
            kind, _, rest = name.partition("/")
            node, _, of = rest.partition("/")
            if kind != "nodes" or node == self.stored.identity or of not in LINES or size <= taken.get(name, 0):
                continue
            content = self.stored.read(name) or b""
            new = content[taken.get(name, 0) : content.rfind(b"\n") + 1]
            with (self.stored.run / of).open("ab") as ours:
                ours.write(new)
            taken[name] = taken.get(name, 0) + len(new)
        if taken != before:
            file.write_text(json.dumps(taken))
