"""MLflow beside the training, never in its way: a thread that follows the files of records of a run.

The files are the spool. After an outage, a restart or a kill they are read again from their start, and MLflow itself
says which steps it already has, so nothing is lost and nothing is recorded twice.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genray import about, grids, storage, tracking_store
from genray.about import public
from genray.config import Config
from genray.configure import differences
from genray.records import Follower, Record, tail
from genray.rundir import RunDirectory
from genray.starts import Start

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_DELAY_S = 30.0
"""Longest pause, in seconds, between two attempts to reach MLflow."""

LAST_TRIES = 3
"""Failures in a row, once the run has ended, after which its user is told what is missing."""

_FOR_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # which of its two faces MLflow shows
_AXES = ("step", "anchors", "time")


class Tracker:
    """Records a run in MLflow from a thread of its own; a failure is a warning and never stops the training.

    The run is named `config.name`. The run whose id stands in `<run directory>/mlflow.json` is continued, where it
    still exists in this store; what is trained on then has a run of its own below it. With `tracking.mlflow = false`
    every method does nothing.

    Args:
        config: the resolved configuration.
        run_directory: holds the files of records and previews/, and mlflow.json from now on.
        warn: called, from the thread, with one line at the first failure.
        kind: what runs of MLflow it makes, one of those of `genray.about`.
        settings: what the run's parameters are, where the configuration does not decide all of it or not all of the
            configuration decides it.
        found: called, from the thread, with the run's page on the server once that has answered, if there is a server.
    """

    def __init__(
        self,
        config: Config,
        run_directory: Path,
        warn: Callable[[str], None],
        kind: str = about.RUN,
        settings: Mapping[str, Any] | None = None,
        found: Callable[[str], None] = lambda page: None,
    ) -> None:
        self._config, self._warn, self._kind, self._found = config, warn, kind, found
        self._run, self._uri = RunDirectory(run_directory), tracking_store.address(config)
        self._wanted = about.parameters(config if settings is None else settings)
        self._resumes = kind == about.RUN and self._run.metrics.exists() and not self._run.report.exists()
        self._start: Start | None = None
        self._export: Path | None = None
        self._shown: set[int] = set()
        self._artifacts: deque[tuple[Path, str | None]] = deque()
        self._lost: list[str] = []
        self._summary: dict[str, float] = {}
        self._final: dict[str, str] = {}
        self._status = "FINISHED"
        self._page = self._error = ""
        self._recorded: dict[str, int] = {}  # how far MLflow is with each metric
        self._last_step = 0
        self._delay_s = 1.0
        self._warned = self._complete = False
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="genray-mlflow", daemon=True)
        if config.tracking.mlflow:
            self._thread.start()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Queue a file, or all files of a directory, for the run's artifacts under `folder`.

        It is read when it is sent, so it must stay where it is.
        """
        self._artifacts.append((path, folder))

    def model(self, export: Path) -> None:
        """Queue an export of the run's backbone, to be registered as `tracking.model` when the run is closed."""
        self._export = export

    def summary(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Queue final metrics and tags; when the run is closed they are recorded, the metrics at its last step."""
        self._summary.update(metrics)
        self._final.update(tags)

    def url(self) -> str:
        """How to open the run: the page on the server, or the command that shows the store."""
        if not self._config.tracking.mlflow:
            return ""
        if self._on_a_server:
            return public(self._uri.rstrip("/") + self._page)
        return f"mlflow ui --backend-store-uri {public(self._uri)}"

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"], timeout_s: float) -> list[str]:
        """Write what is left, end the run with this status, and say what could not be written, if anything.

        Call it when nothing writes to the files of records any more. Returns within `timeout_s` seconds.
        """
        if not self._config.tracking.mlflow:
            return []
        self._status = status
        self._closing.set()
        self._thread.join(timeout_s)
        if self._complete:
            return self._lost
        self._abandoned.set()
        missing = [
            f"up to {count} {what}"
            for count, what in ((self._unrecorded(), "metric records"), (len(self._artifacts), "artifacts"))
            if count
        ]
        return [
            *self._lost,
            f"MLflow at {public(self._uri)} did not take all ({self._error or 'no answer yet'}): "
            f"{' and '.join(missing) or 'the end of the run'} may be missing there; "
            f"everything is in {self._run.path}, and its {self._run.metrics.name} is sent when the run is resumed",
        ]

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], timeout_s: float, undelivered: Path) -> list[str]:
        """`close`, and leave the file `undelivered` where something could not be written, or remove it."""
        missing = self.close(status, timeout_s)
        if missing:
            undelivered.touch()
        else:
            undelivered.unlink(missing_ok=True)
        return missing

    def _work(self) -> None:
        tries = LAST_TRIES
        while tries and not self._abandoned.is_set():
            try:
                self._record()
                self._complete = True
                return
            except Exception as error:  # whatever MLflow raises, the training must not notice
                self._error = _line(error)
                if not self._warned:
                    self._warned = True
                    self._warn(
                        f"MLflow at {public(self._uri)} does not record ({self._error}); training goes on, "
                        f"{self._run.metrics.name} is sent when it does"
                    )
            if self._closing.is_set():
                tries, self._delay_s = tries - 1, min(1.0, self._delay_s)
            (self._abandoned if self._closing.is_set() else self._closing).wait(self._delay_s)
            self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)

    def _record(self) -> None:
        """One connection's life: ends when the run is closed, raises when MLflow fails."""
        client, run_id = self._connect()
        self._delay_s = 1.0
        others = [Follower(file) for file in (self._run.probes, self._run.system)]
        for records in tail(self._run.metrics, self._closing):
            if records or self._recorded:  # MLflow's pages show first what was recorded first: the loss
                records = [*records, *(record for file in others for record in file.new())]
            self._log(client, run_id, records)
            if not self._closing.is_set():
                self._send_artifacts(client, run_id)
            if records:
                self._send_previews(client, run_id)
        self._log(client, run_id, [{"step": self._last_step, "time": time.time(), **self._summary}])
        for key, value in self._final.items():
            client.set_tag(run_id, key, value)
        if self._start:
            self._start.end(client, self._last_step, self._status)
        client.set_terminated(run_id, self._status)
        self._send_artifacts(client, run_id)  # last: an artifact store that fails must not keep the run from ending
        self._send_previews(client, run_id)
        self._register(client, run_id)

    def _connect(self) -> tuple[MlflowClient, str]:
        self._run.path.mkdir(parents=True, exist_ok=True)
        client = tracking_store.connect(self._uri)
        continues = tracking_store.continued(client, self._run, self._uri)
        run = continues or self._create(client)
        run_id = run.info.run_id
        page, before = f"/#/experiments/{run.info.experiment_id}/runs/{run_id}", self._page
        self._page = page
        if self._on_a_server and page != before:
            self._found(self.url())
        self._describe(client, run)
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        # The value of a metric that comes with a run is that of its last step; asking for histories would load them.
        there = run.data.to_proto().metrics
        self._recorded = {metric.key: _place(metric.key, metric.step, metric.timestamp) for metric in there}
        self._shown = grids.recorded(client, run_id)
        if continues and self._resumes and self._start is None:
            self._start = Start.begin(client, run, self._wanted, self._tags())
        return client, run_id

    def _create(self, client: MlflowClient) -> Run:
        name = self._config.tracking.experiment
        if experiment := client.get_experiment_by_name(name):
            experiment_id = experiment.experiment_id
        else:
            # A bare SQLite store would put artifacts into the directory the command happened to be run in.
            artifacts = str(storage.directory(self._config.storage_path) / "mlartifacts")
            location = artifacts if self._uri == tracking_store.own(self._config) else None
            experiment_id = client.create_experiment(name, artifact_location=location, tags=_FOR_TRAINING)
        run = client.create_run(experiment_id, run_name=self._config.name)
        tracking_store.note(self._run, run.info.run_id, self._uri)
        return run

    def _describe(self, client: MlflowClient, run: Run) -> None:
        """Parameters and tags; MLflow refuses a parameter that changed, so what a resumed run changed is a tag."""
        changed = {f"changed.{path}": b for path, a, b in differences(run.data.params, self._wanted) if a and b}
        began_with = {key for key in run.data.tags if key.startswith("mlflow.source.git.")}  # each start has its own
        tags = {key: value for key, value in self._tags().items() if key not in began_with} | changed
        if sweep := self._config.tracking.sweep:
            beside = RunDirectory(self._run.path.parent / sweep)
            if parent := tracking_store.continued(client, beside, self._uri):
                tags["mlflow.parentRunId"] = parent.info.run_id
        new = {key: value for key, value in self._wanted.items() if key not in run.data.params}
        about.describe(client, run.info.run_id, new, tags)
        if self._kind == about.RUN and not run.inputs.dataset_inputs:
            client.log_inputs(run.info.run_id, [data.for_mlflow() for data in about.data(self._config)])

    def _tags(self) -> dict[str, str]:
        return about.tags(self._config, self._kind)

    def _log(self, client: MlflowClient, run_id: str, records: list[Record]) -> None:
        from mlflow.entities import Metric

        reached, metrics = dict(self._recorded), []
        for record in records:
            step, at = record["step"], int(record["time"] * 1000)
            self._last_step = max(self._last_step, step)
            for key, value in _values(record):
                if (place := _place(key, step, at)) > reached.get(key, -1):
                    reached[key] = place
                    metrics.append(Metric(key, value, at, step))
        for first in range(0, len(metrics), 1000):
            batch = metrics[first : first + 1000]
            client.log_batch(run_id, metrics=batch)
            self._recorded.update((m.key, _place(m.key, m.step, m.timestamp)) for m in batch)

    def _send_artifacts(self, client: MlflowClient, run_id: str) -> None:
        while self._artifacts:
            path, folder = self._artifacts[0]
            if path.is_dir():
                client.log_artifacts(run_id, str(path), folder)
            elif path.exists():
                client.log_artifact(run_id, str(path), folder)
            else:
                self._lost.append(f"{path} is not among the run's artifacts in MLflow: it does not exist")
            self._artifacts.popleft()

    @property
    def _on_a_server(self) -> bool:
        return self._uri.startswith(("http://", "https://"))

    def _send_previews(self, client: MlflowClient, run_id: str) -> None:
        for step, path in grids.drawn(self._run.previews).items():
            if step not in self._shown:
                grids.record(client, run_id, step, path)
                self._shown.add(step)

    def _register(self, client: MlflowClient, run_id: str) -> None:
        name = self._config.tracking.model
        if self._export is None or name is None:
            return
        from genray import registry

        if missing := registry.register(client, run_id, name, self._export, self._summary):
            self._lost.append(missing)

    def _unrecorded(self) -> int:
        ended = threading.Event()
        ended.set()
        records = [*next(tail(self._run.metrics, ended)), {"step": self._last_step, **self._summary}]
        return sum(
            any(record["step"] > self._recorded.get(key, -1) for key, _ in _values(record)) for record in records
        )


def _place(key: str, step: int, at: int) -> int:
    """What grows from one value of a metric to the next: learners that restart from a checkpoint repeat some steps.

    Nodes are looked at from time to time, also where no step is made.
    """
    return at if key.startswith("system/") else step


def _values(record: Record) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if key not in _AXES and isinstance(value, int | float):
            yield key, float(value)


def _line(error: Exception) -> str:
    text = public(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
