"""A run's directory: what lies where, whether it may be resumed, and what state it is in."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genray import records, storage
from genray.config import MAY_CHANGE, Config
from genray.configure import build, differences
from genray.settings import ConfigError, UserError


@dataclass(frozen=True)
class RunDirectory:
    """`config.json`, `metrics.jsonl`, `probes.jsonl`, `previews/`, checkpoints, `export/`, at the end `report.json`."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        found = cls(storage.directory(config.storage_path) / config.name)
        if storage.is_url(config.storage_path):
            found.path.mkdir(parents=True, exist_ok=True)
        return found

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def probes(self) -> Path:
        """A line for each time that probes were made of the run's encoder beside the training or after it."""
        return self.path / "probes.jsonl"

    @property
    def system(self) -> Path:
        """A line for each look at how busy the nodes were."""
        return self.path / "system.jsonl"

    @property
    def curves(self) -> Path:
        """The run's curves as a picture."""
        return self.path / "report.png"

    @property
    def batches(self) -> Path:
        """A line for each step: the tickets it used and digests of their latents and pixels."""
        return self.path / "batches.jsonl"

    @property
    def faults(self) -> Path:
        """A line for each fault that the run met."""
        return self.path / "faults.jsonl"

    @property
    def attempts(self) -> Path:
        """Where attempts at tickets are counted while the run goes on."""
        return self.path / "attempts"

    @property
    def processes(self) -> Path:
        """The processes of the run on each machine, for the next start to end what a killed one left."""
        return self.path / f"processes-{socket.gethostname()}.jsonl"

    @property
    def stop(self) -> Path:
        """Stands where the run has been asked to stop."""
        return self.path / "stop"

    @property
    def previews(self) -> Path:
        return self.path / "previews"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def mlflow(self) -> Path:
        """Which run of MLflow this is, and in what store."""
        return self.path / "mlflow.json"

    @property
    def undelivered(self) -> Path:
        """Stands where MLflow had not taken all of a run when it ended."""
        return self.path / "mlflow.undelivered"

    @property
    def lock(self) -> Path:
        return self.path / "run.lock"

    def asked_to_stop(self) -> bool:
        """Whether the run has been asked to stop, by a file here or in its store."""
        if self.stop.exists():
            return True
        with suppress(UserError):  # the store is away: who asks will ask again
            return (stored := storage.of(self.path)) is not None and stored.exists(storage.STOP)
        return False

    def take_up(self) -> None:
        """Before anything is read here: make it what the store has of the run, if it is in one.

        Raises:
            UserError: the run is in progress, or the store does not answer.
        """
        if stored := storage.of(self.path):
            with self.locked():
                stored.take_up(anew=True)

    def claim(self, config: Config) -> None:
        """Make the directory this configuration's, or refuse: writes config.json.

        Raises:
            UserError: the directory cannot be written, belongs to a run with other settings, or to one in progress.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.locked():
                if self.has_begun():
                    self.refuse_changes(config)
                write_atomically(self.config, json.dumps(config.to_dict(), indent=2) + "\n")
                if stored := storage.of(self.path):
                    stored.begin()
        except OSError as error:
            raise UserError(
                f"storage_path must be a directory that can be written, got {config.storage_path!r} ({error.strerror})"
            ) from None

    def has_begun(self) -> bool:
        """Whether something was trained under these settings; a failed start leaves a name free."""
        return self.config.exists() and (self.metrics.exists() or any(self.path.glob("checkpoint_*")))

    def refuse_changes(self, config: Config) -> None:
        """Raises ConfigError where this configuration is not that of the run, which has begun."""
        theirs = build(json.loads(self.config.read_text())).to_dict()  # with what was not there yet when it began
        changed = [
            f"{path} was {was!r}, is {now!r}"
            for path, was, now in differences(theirs, config.to_dict())
            if not any(path == free or path.startswith(f"{free}.") for free in MAY_CHANGE)
        ]
        if changed:
            raise ConfigError(
                f"name must be new for a run with other settings, got {config.name!r}, which exists with "
                f"{'; '.join(changed)}. Choose another --name, or leave these fields as they were to resume it"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; a second driver of the same run is refused."""
        with self.lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"name must not be that of a run in progress, got {self.path.name!r}") from None
            stored = storage.of(self.path)
            with stored.driven() if stored else nullcontext():
                yield

    def in_progress(self) -> bool:
        """Whether some process drives the run now; only looks, so that a run of another user's can be listed too."""
        if self.lock.exists():
            with self.lock.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
        stored = storage.of(self.path)
        return stored is not None and stored.driver() is not None

    def state(self) -> dict[str, Any]:
        """`name`, `state` (finished, running, resumable, started), `step`, `steps`, `loss` and, once known, `knn`."""
        values, last = json.loads(self.config.read_text()), records.last(self.metrics)
        report = json.loads(self.report.read_text()) if self.report.exists() else {}
        return {
            "name": self.path.name,
            "state": self._stage(),
            "step": last.get("step", 0),
            "steps": values["training"]["steps"],
            "loss": last.get("loss"),
            "knn": report.get("probes", {}).get("trained", {}).get("knn"),
        }

    def _stage(self) -> str:
        if self.report.exists():
            return "finished"
        if self.in_progress():
            return "running"
        return "resumable" if any(self.path.glob("checkpoint_*/checkpoint.json")) else "started"


def runs(storage_path: str) -> list[RunDirectory]:
    """The runs of a storage path, the latest last."""
    if storage.is_url(storage_path):
        there = [storage.below(storage_path, name) for name in storage.names(storage_path)]
        found = [RunDirectory(Path(storage.here(address))) for address in there]
    else:
        found = [RunDirectory(path.parent) for path in Path(storage_path).glob("[!.]*/config.json")]
    return sorted(filter(is_run, found), key=lambda run: run.config.stat().st_mtime)


def is_run(run: RunDirectory) -> bool:
    """Whether there is a run; a config.json of something else does not make one."""
    return run.config.exists() and _read_object(run.config).keys() >= {"name", "storage_path", "training"}


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where it holds none."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that no reader ever sees a part of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)
