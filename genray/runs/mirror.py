"""The driver's side of a run in an object store: uploads its files, and downloads what other nodes wrote."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from genray.runs import filenames, store
from genray.runs.store import LEARNER_DIRECTORIES, SHARED_LOGS, StoredRun

SYNC_EVERY_S = 4.0
"""Seconds between two syncs, and between two renewals of the lease."""
PAUSE_FACTOR = 20
"""How many times longer than a sync the pause after it is, so that long logs are not uploaded all the time."""
DRIVER_FILES = ("*.json", "*.jsonl", filenames.CURVES, filenames.UNDELIVERED)
"""Patterns of the files that the driver uploads."""
LOCAL_PREFIXES = (filenames.PROCESSES_PREFIX, filenames.LEASE, filenames.CHECKPOINT_PREFIX)
"""Starts of the names of files among them that no other machine needs."""


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def mirrored(
    run: Path, say: Callable[[str], None] = lambda line: None, on_takeover: Callable[[], None] = _terminate
) -> Iterator[Callable[[], None]]:
    """Synchronise a run with its store while the block runs, and once more after it. Does nothing without a store.

    Yields a function that synchronises at once: when it returns, all that other nodes have written is here.

    Args:
        run: the run's directory on this machine.
        say: called from a thread with a line at the first failure.
        on_takeover: called from a thread when another machine has taken over the run because this one seemed dead.
    """
    if (stored := store.of(run)) is None:
        yield lambda: None
        return
    mirror, over = Mirror(stored), threading.Event()

    def repeat(action: Callable[[], None], pause_factor: int) -> None:
        pause, failed = SYNC_EVERY_S, False
        while not over.wait(pause) and not mirror.taken_over:
            began = time.monotonic()
            try:
                action()
            except Exception as error:  # of any kind: it is tried again until the store is back
                if not failed:
                    say(f"{run.name} cannot be synchronised with its store at the moment; trying again ({error})")
                failed = True
            pause = max(SYNC_EVERY_S, pause_factor * (time.monotonic() - began))

    def heartbeat() -> None:
        if host := mirror.heartbeat():
            say(f"{run.name} was taken over on {host}, and ends here")
            on_takeover()

    stored.remove(filenames.STOP)
    threads = [
        threading.Thread(target=repeat, args=arguments, name="genray-mirror", daemon=True)
        for arguments in ((mirror.sync, PAUSE_FACTOR), (heartbeat, 1))
    ]
    for thread in threads:
        thread.start()
    try:
        yield mirror.sync
    except BaseException:
        with suppress(Exception):  # the user must see the error that ended the run
            _finish(mirror, over, threads)
        raise
    _finish(mirror, over, threads)


def _finish(mirror: Mirror, over: threading.Event, threads: list[threading.Thread]) -> None:
    over.set()
    for thread in threads:
        thread.join()
    mirror.sync()
    if not mirror.taken_over:
        mirror.stored.remove(filenames.STOP)


class Mirror:
    """What has been synchronised between a run's working directory and its store."""

    def __init__(self, stored: StoredRun) -> None:
        self.stored = stored
        self.uploaded: dict[str, tuple[int, int]] = {}
        """Size and modification time of each uploaded file."""
        self.merged: dict[str, int] = {}
        """Size of each other node's log when it was merged."""
        self.taken_over = False
        """Whether another machine has taken over the run, so that this one must not write any more."""
        self.lock = threading.Lock()

    def heartbeat(self) -> str | None:
        """Renew the lease, and pass on a request to stop; returns the host that has taken over the run, if one has.

        Raises UserError.
        """
        if host := self.stored.other_driver():
            self.taken_over = True
            return host
        self.stored.renew_lease()
        if (stop := self.stored.directory / filenames.STOP).exists():
            self.stored.upload(stop, filenames.STOP)
        return None

    def sync(self) -> None:
        """Download what other nodes wrote, and upload what is new here. Raises UserError."""
        with self.lock:
            if self.heartbeat():
                return
            directory, files = self.stored.directory, self.stored.files()
            self._merge_logs(files)
            self.stored.download({name: size for name, size in files.items() if name.startswith(LEARNER_DIRECTORIES)})
            for path in sorted({path for pattern in DRIVER_FILES for path in directory.glob(pattern)}):
                if not path.name.startswith(LOCAL_PREFIXES):
                    self._upload(path)
            if filenames.UNDELIVERED in files and not (directory / filenames.UNDELIVERED).exists():
                self.stored.remove(filenames.UNDELIVERED)

    def _upload(self, path: Path) -> None:
        """Upload a file unless the store has its current state."""
        with suppress(FileNotFoundError):
            status = path.stat()
            state = status.st_size, status.st_mtime_ns
            if self.uploaded.get(path.name) != state:
                self.stored.upload(path, path.name)
                self.uploaded[path.name] = state

    def _merge_logs(self, files: Mapping[str, int]) -> None:
        """Append to the run's logs the lines that other nodes have written and the logs here lack."""
        for name, size in files.items():
            top, _, rest = name.partition("/")
            log = rest.partition("/")[2]
            if top != "nodes" or log not in SHARED_LOGS or size == self.merged.get(name):
                continue
            path = self.stored.directory / log
            known = path.read_bytes() if path.exists() else b""
            with path.open("ab") as file:
                file.write(store.missing_lines(known, self.stored.read(name) or b""))
            self.merged[name] = size
