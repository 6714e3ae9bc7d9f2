"""Records a run in MLflow without holding up the training: a thread follows the run's JSON Lines files.

The files are the queue. After an outage, a restart or a kill they are read again from the start, and MLflow says which
steps it already has, so nothing is lost and nothing is recorded twice.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genray.config.load import differences
from genray.config.run import Config
from genray.runs import previews, store
from genray.runs.directory import RunDirectory
from genray.runs.jsonl import Follower, Record, tail
from genray.stream.plan import Plan
from genray.tracking import described, mlflow_store, preview_images
from genray.tracking.described import redacted
from genray.tracking.restarts import Restart

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_RETRY_DELAY_S = 30.0
"""Longest pause between two attempts to reach MLflow, in seconds."""

CLOSE_TIMEOUT_S = 60.0
"""Seconds that a command waits at its end for MLflow to accept what is left."""

CLOSING_TRIES = 3
"""Attempts to reach MLflow after the end of the run, before the tracker gives up and reports what is missing."""

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow shows its pages for GenAI
_AXES = ("step", "anchors", "time")


class Tracker:
    """Records a run in MLflow from a background thread; a failure is a warning and never stops the training.

    >>> tracker = Tracker(config, Path("runs/demo"), warn=print)
    >>> jsonl.append(Path("runs/demo/metrics.jsonl"), {"step": 20, "time": time.time(), "loss": 2.1})
    >>> tracker.summary({"final.trained.knn": 0.9}, tags={"advice": "…"})
    >>> tracker.close("FINISHED", timeout_s=60)  # what could not be recorded
    []

    The MLflow run is named `config.name`. The one in the run directory's mlflow.json is continued if this store still
    has it; a restart then gets a child run. With `tracking.mlflow = false` every method does nothing.

    Args:
        config: the resolved configuration.
        run_directory: of the files that are followed, of previews/ and of mlflow.json.
        warn: called, from the thread, with one line at the first failure.
        kind: of the MLflow run: `described.RUN`, `SWEEP` or `LESSON`.
        settings: the run's parameters, if they are not those of the configuration.
        on_page: called, from the thread, with the run's page once an MLflow server has answered.
        plan: of a run that is trained; the data that it learns from are then recorded too.
    """

    def __init__(
        self,
        config: Config,
        run_directory: Path,
        warn: Callable[[str], None],
        kind: str = described.RUN,
        settings: Mapping[str, Any] | None = None,
        on_page: Callable[[str], None] = lambda page: None,
        plan: Plan | None = None,
    ) -> None:
        self._plan = plan
        self._config, self._warn, self._kind, self._on_page = config, warn, kind, on_page
        self._run, self._uri = RunDirectory(run_directory), mlflow_store.address(config)
        self._params = described.parameters(config if settings is None else settings)
        self._resumes = kind == described.RUN and self._run.metrics.exists() and not self._run.report.exists()
        self._restart: Restart | None = None
        self._export: Path | None = None
        self._shown: set[int] = set()
        self._artifacts: deque[tuple[Path, str | None]] = deque()
        self._lost: list[str] = []
        self._summary: dict[str, float] = {}
        self._final: dict[str, str] = {}
        self._status = "FINISHED"
        self._page = self._error = ""
        self._recorded: dict[str, int] = {}  # the `_position` of the last value that MLflow has of each metric
        self._last_step = 0
        self._delay_s = 1.0
        self._warned = self._complete = False
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="genray-mlflow", daemon=True)
        if config.tracking.mlflow:
            self._thread.start()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Queue a file, or all files of a directory, as artifacts under `folder`. They are read when they are sent."""
        self._artifacts.append((path, folder))

    def model(self, export: Path) -> None:
        """Queue an export of the run's backbone, to be registered as `tracking.model` on close."""
        self._export = export

    def summary(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Queue final metrics and tags, to be recorded on close; the metrics at the run's last step."""
        self._summary.update(metrics)
        self._final.update(tags)

    def url(self) -> str:
        """How to open the run: its page on the server, or the command that serves a local store."""
        if not self._config.tracking.mlflow:
            return ""
        if self._on_a_server:
            return redacted(self._uri.rstrip("/") + self._page)
        return f"mlflow ui --backend-store-uri {redacted(self._uri)}"

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"], timeout_s: float) -> list[str]:
        """Send what is left, end the MLflow run with this status, and return a line for each thing that is missing.

        Call it once nothing writes to the run's files any more. Returns within `timeout_s` seconds.
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
            for count, what in ((self._count_unrecorded(), "metric records"), (len(self._artifacts), "artifacts"))
            if count
        ]
        return [
            *self._lost,
            f"MLflow at {redacted(self._uri)} did not accept everything ({self._error or 'no answer yet'}): "
            f"{' and '.join(missing) or 'the end of the run'} may be missing there; "
            f"everything is in {self._run.path}, and its {self._run.metrics.name} is sent when the run is resumed",
        ]

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], timeout_s: float, undelivered: Path) -> list[str]:
        """`close`, and create the file `undelivered` if something is missing, or remove it."""
        missing = self.close(status, timeout_s)
        if missing:
            undelivered.touch()
        else:
            undelivered.unlink(missing_ok=True)
        return missing

    def _work(self) -> None:
        tries = CLOSING_TRIES
        while tries and not self._abandoned.is_set():
            try:
                self._record()
                self._complete = True
                return
            except Exception as error:  # MLflow may raise anything, which must not reach the training
                self._error = _line(error)
                if not self._warned:
                    self._warned = True
                    self._warn(
                        f"MLflow at {redacted(self._uri)} does not record ({self._error}); training continues, "
                        f"and {self._run.metrics.name} will be sent once it does"
                    )
            if self._closing.is_set():
                tries, self._delay_s = tries - 1, min(1.0, self._delay_s)
            (self._abandoned if self._closing.is_set() else self._closing).wait(self._delay_s)
            self._delay_s = min(2 * self._delay_s, MAX_RETRY_DELAY_S)

    def _record(self) -> None:
        """Record over one connection: returns once the run is closed, raises when MLflow fails."""
        client, run_id = self._connect()
        self._delay_s = 1.0
        others = [Follower(file) for file in (self._run.probes, self._run.system)]
        for records in tail(self._run.metrics, self._closing):
            if records or self._recorded:  # after the loss: MLflow's pages show first what was recorded first
                records = [*records, *(record for file in others for record in file.new())]
            self._log(client, run_id, records)
            if not self._closing.is_set():
                self._send_artifacts(client, run_id)
            if records:
                self._send_previews(client, run_id)
        self._log(client, run_id, [{"step": self._last_step, "time": time.time(), **self._summary}])
        for key, value in self._final.items():
            client.set_tag(run_id, key, value)
        if self._restart:
            self._restart.end(client, self._last_step, self._status)
        client.set_terminated(run_id, self._status)
        self._send_artifacts(client, run_id)  # last, so that the run ends even if the artifact store fails
        self._send_previews(client, run_id)
        self._register(client, run_id)

    def _connect(self) -> tuple[MlflowClient, str]:
        self._run.path.mkdir(parents=True, exist_ok=True)
        client = mlflow_store.connect(self._uri)
        known = mlflow_store.remembered_run(client, self._run, self._uri)
        run = known or self._create(client)
        run_id = run.info.run_id
        page, before = f"/#/experiments/{run.info.experiment_id}/runs/{run_id}", self._page
        self._page = page
        if self._on_a_server and page != before:
            self._on_page(self.url())
        self._describe(client, run)
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        # A run comes with the last value of each metric; asking for histories would load all of them.
        latest = run.data.to_proto().metrics
        self._recorded = {metric.key: _position(metric.key, metric.step, metric.timestamp) for metric in latest}
        self._shown = preview_images.logged_steps(client, run_id)
        if known and self._resumes and self._restart is None:
            self._restart = Restart.begin(client, run, self._params, self._tags())
        return client, run_id

    def _create(self, client: MlflowClient) -> Run:
        name = self._config.tracking.experiment
        if experiment := client.get_experiment_by_name(name):
            experiment_id = experiment.experiment_id
        else:
            # By default a SQLite store keeps artifacts in the directory that the command was started in.
            artifacts = str(store.local_directory(self._config.storage_path) / "mlartifacts")
            location = artifacts if self._uri == mlflow_store.default_address(self._config) else None
            experiment_id = client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS)
        run = client.create_run(experiment_id, run_name=self._config.name)
        mlflow_store.remember_run(self._run, run.info.run_id, self._uri)
        return run

    def _describe(self, client: MlflowClient, run: Run) -> None:
        """Log parameters, tags and data. MLflow rejects changed parameters, so changes on resume become tags."""
        recorded = described.renamed_parameters(run.data.params)
        changed = {f"changed.{path}": b for path, a, b in differences(recorded, self._params) if a and b}
        git = {key for key in run.data.tags if key.startswith("mlflow.source.git.")}  # of the first; see `Restart`
        tags = {key: value for key, value in self._tags().items() if key not in git} | changed
        if sweep := self._config.tracking.sweep:
            directory = RunDirectory(self._run.path.parent / sweep)
            if parent := mlflow_store.remembered_run(client, directory, self._uri):
                tags["mlflow.parentRunId"] = parent.info.run_id
        new = {key: value for key, value in self._params.items() if key not in recorded}
        described.log_params_and_tags(client, run.info.run_id, new, tags)
        if self._plan is not None and not run.inputs.dataset_inputs:
            inputs = described.datasets(self._config, self._plan)
            client.log_inputs(run.info.run_id, [data.for_mlflow() for data in inputs])

    def _tags(self) -> dict[str, str]:
        return described.tags(self._config, self._kind)

    def _log(self, client: MlflowClient, run_id: str, records: list[Record]) -> None:
        from mlflow.entities import Metric

        reached, metrics = dict(self._recorded), []
        for record in records:
            step, at = record["step"], int(record["time"] * 1000)
            self._last_step = max(self._last_step, step)
            for key, value in _values(record):
                if (position := _position(key, step, at)) > reached.get(key, -1):
                    reached[key] = position
                    metrics.append(Metric(key, value, at, step))
        for first in range(0, len(metrics), 1000):
            batch = metrics[first : first + 1000]
            client.log_batch(run_id, metrics=batch)
            self._recorded.update((m.key, _position(m.key, m.step, m.timestamp)) for m in batch)

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
        for step, path in previews.existing(self._run.previews).items():
            if step not in self._shown:
                preview_images.log(client, run_id, step, path)
                self._shown.add(step)

    def _register(self, client: MlflowClient, run_id: str) -> None:
        name = self._config.tracking.model
        if self._export is None or name is None:
            return
        from genray.tracking import registry

        if missing := registry.register(client, run_id, name, self._export, self._summary):
            self._lost.append(missing)

    def _count_unrecorded(self) -> int:
        """Records that hold a value which MLflow may not have."""
        ended = threading.Event()
        ended.set()
        records = [*next(tail(self._run.metrics, ended)), {"step": self._last_step, **self._summary}]
        return sum(
            any(record["step"] > self._recorded.get(key, -1) for key, _ in _values(record)) for record in records
        )


def _position(key: str, step: int, at: int) -> int:
    """Where a value stands in its metric, to skip values that MLflow has: its step, since restarts repeat some steps.

    For metrics of the nodes it is the time: they are measured even while no step is made.
    """
    return at if key.startswith("system/") else step


def _values(record: Record) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if key not in _AXES and isinstance(value, int | float):
            yield key, float(value)


def _line(error: Exception) -> str:
    text = redacted(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
