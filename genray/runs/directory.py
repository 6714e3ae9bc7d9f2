"""A run's directory: its files, whether the run may be resumed, and its state."""

from __future__ import annotations

import fcntl
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genray.config.errors import ConfigError, UserError
from genray.config.files import is_url, join_address, write_atomically
from genray.config.load import build, differences
from genray.config.run import MAY_CHANGE_ON_RESUME, Config
from genray.runs import filenames, jsonl, store


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run: its configuration, records, checkpoints, previews, export and report."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        """The directory of the run with this configuration; for a run in an object store, its working directory."""
        directory = cls(store.local_directory(config.storage_path) / config.name)
        if is_url(config.storage_path):
            directory.path.mkdir(parents=True, exist_ok=True)
        return directory

    @property
    def config(self) -> Path:
        """The whole configuration, with all defaults."""
        return self.path / filenames.CONFIG

    @property
    def metrics(self) -> Path:
        """A line per `training.log_every` steps: loss, speed and balance."""
        return self.path / filenames.METRICS

    @property
    def probes(self) -> Path:
        """A line per evaluation of the run's encoder, during the training or after it."""
        return self.path / filenames.PROBES

    @property
    def system(self) -> Path:
        """A line per sample of the load on the nodes."""
        return self.path / filenames.SYSTEM

    @property
    def curves(self) -> Path:
        """Plots of the run's metrics."""
        return self.path / filenames.CURVES

    @property
    def batches(self) -> Path:
        """A line per step: the tickets it used, and digests of their latents and pixels."""
        return self.path / filenames.BATCHES

    @property
    def faults(self) -> Path:
        """A line per fault that occurred in the run."""
        return self.path / filenames.FAULTS

    @property
    def attempts(self) -> Path:
        """Directory in which attempts at tickets are counted during the run."""
        return self.path / filenames.ATTEMPTS

    @property
    def processes(self) -> Path:
        """The processes of the run on this machine, so that the next start can kill any that a killed driver left."""
        return self.path / f"{filenames.PROCESSES_PREFIX}{socket.gethostname()}.jsonl"

    @property
    def stop(self) -> Path:
        """Exists if the run has been asked to stop."""
        return self.path / filenames.STOP

    @property
    def previews(self) -> Path:
        """Directory of the grids of views that the run draws as it trains."""
        return self.path / filenames.PREVIEWS

    @property
    def export(self) -> Path:
        """Directory of the exported encoder."""
        return self.path / filenames.EXPORT

    @property
    def report(self) -> Path:
        """Results and measurements of the finished run; exists only then."""
        return self.path / filenames.REPORT

    @property
    def mlflow(self) -> Path:
        """The id of the run in MLflow, and the tracking store that has it."""
        return self.path / filenames.MLFLOW

    @property
    def undelivered(self) -> Path:
        """Exists if MLflow had not received everything when the run ended."""
        return self.path / filenames.UNDELIVERED

    @property
    def lock(self) -> Path:
        """Locked by the process that drives the run."""
        return self.path / filenames.LOCK

    def stop_requested(self) -> bool:
        """Whether the run has been asked to stop, by a file here or in its store."""
        if self.stop.exists():
            return True
        with suppress(UserError):  # the store does not answer, and will be asked again
            return (stored := store.of(self.path)) is not None and stored.exists(filenames.STOP)
        return False

    def refresh(self) -> None:
        """Bring the directory up to date with the run's store, if it has one; to be called before reading anything.

        Raises:
            UserError: the run is in progress, or the store does not answer.
        """
        if stored := store.of(self.path):
            with self.locked():
                stored.refresh(clear_unknown=True)

    def claim(self, config: Config) -> None:
        """Write config.json, unless the directory belongs to another run.

        Raises:
            UserError: the directory cannot be written, or belongs to a run with other settings or to one in progress.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.locked():
                if self.has_begun():
                    self.refuse_changes(config)
                write_atomically(self.config, json.dumps(config.to_dict(), indent=2) + "\n")
                if stored := store.of(self.path):
                    stored.start()
        except OSError as error:
            raise UserError(
                f"storage_path must be a directory that can be written, got {config.storage_path!r} ({error.strerror})"
            ) from None

    def has_begun(self) -> bool:
        """Whether the run has trained at all. A run that failed before that leaves its name free."""
        checkpoints = self.path.glob(f"{filenames.CHECKPOINT_PREFIX}*")
        return self.config.exists() and (self.metrics.exists() or any(checkpoints))

    def refuse_changes(self, config: Config) -> None:
        """Raise ConfigError if this configuration differs from that of the run in what must not change."""
        begun_with = build(json.loads(self.config.read_text())).to_dict()  # adds fields that did not exist yet
        changed = [
            f"{path} was {was!r}, is {now!r}"
            for path, was, now in differences(begun_with, config.to_dict())
            if not any(path == free or path.startswith(f"{free}.") for free in MAY_CHANGE_ON_RESUME)
        ]
        if changed:
            raise ConfigError(
                f"name must be new for a run with other settings, got {config.name!r}, in which "
                f"{'; '.join(changed)}. Choose another --name, or leave these fields as they were to resume it"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for this process while the block runs; raises UserError if another process drives it."""
        with self.lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"name must not be that of a run in progress, got {self.path.name!r}") from None
            stored = store.of(self.path)
            with stored.leased() if stored else nullcontext():
                yield

    def in_progress(self) -> bool:
        """Whether some process drives the run now. Takes no lock, so that other users' runs can be listed too."""
        if self.lock.exists():
            with self.lock.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
        stored = store.of(self.path)
        return stored is not None and stored.other_driver() is not None

    def state(self) -> dict[str, Any]:
        """`name`, `state` (finished, running, resumable, started), `step`, `steps`, `loss` and, once known, `knn`."""
        values, last = json.loads(self.config.read_text()), jsonl.last(self.metrics)
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
        checkpoints = self.path.glob(f"{filenames.CHECKPOINT_PREFIX}*/{filenames.CHECKPOINT_STATE}")
        return "resumable" if any(checkpoints) else "started"


def list_runs(storage_path: str) -> list[RunDirectory]:
    """The runs of a storage path, latest last."""
    if is_url(storage_path):
        addresses = [join_address(storage_path, name) for name in store.run_names(storage_path)]
        candidates = [RunDirectory(Path(store.fetch_run(address))) for address in addresses]
    else:
        candidates = [RunDirectory(path.parent) for path in Path(storage_path).glob(f"[!.]*/{filenames.CONFIG}")]
    return sorted(filter(is_run, candidates), key=lambda run: run.config.stat().st_mtime)


def is_run(run: RunDirectory) -> bool:
    """Whether the directory holds a run, and not some other program's config.json."""
    return run.config.exists() and _read_object(run.config).keys() >= {"name", "storage_path", "training"}


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it holds anything else."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
