"""The driver's side of a run on an object store: records are carried there, and here what other nodes wrote."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from genray import storage
from genray.storage import LINES, STOP, TREES, Stored

EVERY_S = 4.0
"""Seconds between two looks, and between two signs of life."""
IDLE = 20
"""Times as long as the last look took that the next one waits at least: long files are not carried all the time."""
UNDELIVERED = "mlflow.undelivered"
OURS = ("*.json", "*.jsonl", "report.png", UNDELIVERED)
LEFT_HERE = ("processes-", storage.LEASE, "checkpoint_")
"""Beginnings of names of what no other machine needs."""


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def mirrored(
    run: Path, say: Callable[[str], None] = lambda line: None, end: Callable[[], None] = _end
) -> Iterator[Callable[[], None]]:
    """Carry while the block runs, and once more after it; nothing where the run is in a directory.

    Yields what carries at once, and returns when all is here that other nodes have written.

    Args:
        run: its directory on this machine.
        say: called, from a thread, with a line at the first failure.
        end: called, from a thread, once another machine has taken the run over, while this one seemed dead.
    """
    if (stored := storage.of(run)) is None:
        yield lambda: None
        return
    mirror, over = Mirror(stored), threading.Event()

    def again_and_again(what: Callable[[], None], idle: int) -> None:
        wait, told = EVERY_S, False
        while not over.wait(wait) and not mirror.lost:
            began = time.monotonic()
            try:
                what()
            except Exception as error:  # of whatever kind: what is here is carried when the store is back
                if not told:
                    say(f"{run.name} is not kept in its store just now, and is tried again ({error})")
                told = True
            wait = max(EVERY_S, idle * (time.monotonic() - began))

    def live() -> None:
        if driver := mirror.live():
            say(f"{run.name} was taken over on {driver}, and ends here")
            end()

    stored.remove(STOP)
    threads = [
        threading.Thread(target=again_and_again, args=arguments, name="genray-mirror", daemon=True)
        for arguments in ((mirror.look, IDLE), (live, 1))
    ]
    for thread in threads:
        thread.start()
    try:
        yield mirror.look
    except BaseException:
        with suppress(Exception):  # what ended the run is what its user must hear of
            _last(mirror, over, threads)
        raise
    _last(mirror, over, threads)


def _last(mirror: Mirror, over: threading.Event, threads: list[threading.Thread]) -> None:
    over.set()
    for thread in threads:
        thread.join()
    mirror.look()
    if not mirror.lost:
        mirror.stored.remove(STOP)


class Mirror:
    """What of a run has been carried."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.sent: dict[str, tuple[int, int]] = {}
        self.taken: dict[str, int] = {}
        self.lost = False
        """Whether another machine has taken the run over, so that nothing of this one counts any more."""
        self.one = threading.Lock()

    def live(self) -> str | None:
        """Show a sign of life, and pass on that the run was asked to stop; or the host that has taken it over.

        Raises UserError.
        """
        if driver := self.stored.driver():
            self.lost = True
            return driver
        self.stored.show_life()
        if (self.stored.run / STOP).exists():
            self.stored.put(self.stored.run / STOP, STOP)
        return None

    def look(self) -> None:
        """Take over what the others wrote, and send what is new. Raises UserError."""
        with self.one:
            if self.live():
                return
            run, there = self.stored.run, self.stored.files()
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
        """Add the lines that any node has written to the run's own files, those that they lack."""
        for name, size in there.items():
            kind, _, rest = name.partition("/")
            of = rest.partition("/")[2]
            if kind != "nodes" or of not in LINES or size == self.taken.get(name):
                continue
            ours = self.stored.run / of
            known = ours.read_bytes() if ours.exists() else b""
            with ours.open("ab") as file:
                file.write(storage.lacking(known, self.stored.read(name) or b""))
            self.taken[name] = size
