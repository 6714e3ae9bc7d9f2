"""MLflow beside the training, never in its way: a thread that follows the run's metrics.jsonl and probes.jsonl.

The files are the spool. After an outage, a restart or a kill they are read again from their start, and MLflow itself
says which steps it already has, so nothing is lost and nothing is recorded twice.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genray import sources
from genray.config import Config
from genray.configure import differences
from genray.job import submission_id
from genray.records import Follower

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

METRICS, PROBES = "metrics.jsonl", "probes.jsonl"
"""Names of the files of records in a run directory: of the training, and of the probes beside and after it."""

MAX_DELAY_S = 30.0
"""Longest pause, in seconds, between two attempts to reach MLflow."""

LAST_TRIES = 3
"""Failures in a row, once the run has ended, after which its user is told what is missing."""

_AXES = ("step", "anchors", "time")
_MAX_VALUE = 6000  # characters of a parameter or tag that every MLflow store takes
_ENVIRONMENT = {  # read by MLflow at each call; its own defaults would block a call to a dead server for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}

Record = dict[str, Any]


def tail(path: Path, stop: threading.Event, start: int = 0, poll_s: float = 0.25) -> Iterator[list[Record]]:
    """Follow a file of JSON lines: at each poll the records that are new, an empty list where there are none.

    Each record comes once, and only when its line is complete; a file that does not exist yet is waited for. Lines
    that are no record with a step and a time (a writer was killed within one) are left out. Ends with what the file
    holds after `stop` was set. `start` is the byte to begin at.
    """
    follower = Follower(path, start)
    while True:
        last = stop.is_set()  # asked before reading: what was written before the stop is still seen
        yield [record for record in follower.new() if {"step", "time"} <= record.keys()]
        if last:
            return
        stop.wait(poll_s)


def parameters(settings: Config | Mapping[str, Any]) -> dict[str, str]:
    """Every setting of a run under its dotted path, as MLflow takes it; text as it is, other values as JSON."""
    return {
        re.sub(r"[^\w\-. /]", "_", path): _shorten(value if isinstance(value, str) else json.dumps(value))
        for path, value in _flatten(settings.to_dict() if isinstance(settings, Config) else settings)
    }


def store(config: Config) -> str:
    """Address of the tracking server or store of a run."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or _own_store(config)


def connect(uri: str) -> MlflowClient:
    """A client that fails soon and quietly where the store does not answer."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # seconds; the training must not wait for them

    for library in ("mlflow", "alembic", "urllib3"):  # what goes wrong is raised, and said once by who called
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def continued(client: MlflowClient, run_directory: Path, uri: str) -> Run | None:
    """The MLflow run whose id stands in `mlflow.json`, where it still exists in this store."""
    from mlflow.exceptions import MlflowException

    file = run_directory / "mlflow.json"
    noted = json.loads(file.read_text()) if file.exists() else {}
    if noted.get("uri") != _public(uri):
        return None
    try:
        run = client.get_run(noted["run_id"])
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


class Tracker:
    """Records a run in MLflow from a thread of its own; a failure is a warning and never stops the training.

    The run is named `config.name`. The run whose id stands in `<run directory>/mlflow.json` is continued, where it
    still exists in this store. With `tracking.mlflow = false` every method does nothing.

    Args:
        config: the resolved configuration.
        run_directory: holds metrics.jsonl and probes.jsonl, and mlflow.json from now on.
        warn: called, from the thread, with one line at the first failure.
        settings: what the run's parameters are, where the configuration does not decide all of it or not all of the
            configuration decides it.
        found: called, from the thread, with the run's page on the server once that has answered, if there is a server.
    """

    def __init__(
        self,
        config: Config,
        run_directory: Path,
        warn: Callable[[str], None],
        settings: Mapping[str, Any] | None = None,
        found: Callable[[str], None] = lambda page: None,
    ) -> None:
        self._config, self._directory, self._warn, self._found = config, run_directory, warn, found
        self._parameters = parameters(config if settings is None else settings)
        self._tags = _tags(config) if settings is None else _versions()
        self._uri = store(config)
        self._artifacts: deque[tuple[Path, str | None]] = deque()
        self._lost: list[str] = []
        self._summary: dict[str, float] = {}
        self._final: dict[str, str] = {}
        self._status = "FINISHED"
        self._page = ""
        self._recorded: dict[str, int] = {}  # the last step MLflow has of each metric
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

    def summary(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Queue final metrics and tags; when the run is closed they are recorded, the metrics at its last step."""
        self._summary.update(metrics)
        self._final.update(tags)

    def url(self) -> str:
        """How to open the run: the page on the server, or the command that shows the store."""
        if not self._config.tracking.mlflow:
            return ""
        if self._on_a_server:
            return _public(self._uri.rstrip("/") + self._page)
        return f"mlflow ui --backend-store-uri {_public(self._uri)}"

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"], timeout_s: float) -> list[str]:
        """Write what is left, end the run with this status, and say what could not be written, if anything.

        Call it when nothing writes to metrics.jsonl any more. Returns within `timeout_s` seconds.
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
            f"MLflow at {_public(self._uri)} did not answer: "
            f"{' and '.join(missing) or 'the end of the run'} may be missing there; "
            f"everything is in {self._directory}, and its {METRICS} is sent when the run is resumed",
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
                if not self._warned:
                    self._warned = True
                    self._warn(
                        f"MLflow at {_public(self._uri)} does not record ({_line(error)}); training goes on, "
                        f"{METRICS} is sent when it does"
                    )
            if self._closing.is_set():
                tries, self._delay_s = tries - 1, min(1.0, self._delay_s)
            (self._abandoned if self._closing.is_set() else self._closing).wait(self._delay_s)
            self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)

    def _record(self) -> None:
        """One connection's life: ends when the run is closed, raises when MLflow fails."""
        client, run_id = self._connect()
        self._delay_s = 1.0
        probes = Follower(self._directory / PROBES)
        for records in tail(self._directory / METRICS, self._closing):
            self._log(client, run_id, [*records, *probes.new()])
            if not self._closing.is_set():
                self._send_artifacts(client, run_id)
        self._log(client, run_id, [{"step": self._last_step, "time": time.time(), **self._summary}])
        for key, value in self._final.items():
            client.set_tag(run_id, key, value)
        client.set_terminated(run_id, self._status)
        self._send_artifacts(client, run_id)  # last: an artifact store that fails must not keep the run from ending

    def _connect(self) -> tuple[MlflowClient, str]:
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._uri == _own_store(self._config):
            Path(self._config.storage_path).mkdir(parents=True, exist_ok=True)
        client = connect(self._uri)
        run = continued(client, self._directory, self._uri) or self._create(client)
        run_id = run.info.run_id
        page, before = f"/#/experiments/{run.info.experiment_id}/runs/{run_id}", self._page
        self._page = page
        if self._on_a_server and page != before:
            self._found(self.url())
        self._describe(client, run)
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        self._recorded = {
            key: max(metric.step for metric in client.get_metric_history(run_id, key)) for key in run.data.metrics
        }
        return client, run_id

    def _create(self, client: MlflowClient) -> Run:
        name = self._config.tracking.experiment
        if experiment := client.get_experiment_by_name(name):
            experiment_id = experiment.experiment_id
        else:
            # A bare SQLite store would put artifacts into the directory the command happened to be run in.
            artifacts = str(Path(self._config.storage_path).absolute() / "mlartifacts")
            beside = artifacts if self._uri == _own_store(self._config) else None
            experiment_id = client.create_experiment(name, artifact_location=beside)
        run = client.create_run(experiment_id, run_name=self._config.name)
        file = self._directory / "mlflow.json"
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps({"run_id": run.info.run_id, "uri": _public(self._uri)}))
        draft.replace(file)
        return run

    def _describe(self, client: MlflowClient, run: Run) -> None:
        """Parameters and tags; MLflow refuses a parameter that changed, so what a resumed run changed is a tag."""
        from mlflow.entities import Param, RunTag

        wanted = self._parameters
        changed = {f"changed.{path}": b for path, a, b in differences(run.data.params, wanted) if a and b}
        tags = [RunTag(key, value) for key, value in {**self._tags, **changed}.items()]
        params = [Param(key, value) for key, value in wanted.items() if key not in run.data.params]
        for first in range(0, len(params), 100):
            client.log_batch(run.info.run_id, params=params[first : first + 100])
        client.log_batch(run.info.run_id, tags=tags)

    def _log(self, client: MlflowClient, run_id: str, records: list[Record]) -> None:
        from mlflow.entities import Metric

        reached, metrics = dict(self._recorded), []
        for record in records:
            step = record["step"]
            self._last_step = max(self._last_step, step)
            for key, value in _values(record):
                if step > reached.get(key, -1):  # learners that restart from a checkpoint repeat some steps
                    reached[key] = step
                    metrics.append(Metric(key, value, int(record["time"] * 1000), step))
        for first in range(0, len(metrics), 1000):
            batch = metrics[first : first + 1000]
            client.log_batch(run_id, metrics=batch)
            self._recorded.update((metric.key, metric.step) for metric in batch)

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

    def _unrecorded(self) -> int:
        ended = threading.Event()
        ended.set()
        records = [*next(tail(self._directory / METRICS, ended)), {"step": self._last_step, **self._summary}]
        return sum(
            any(record["step"] > self._recorded.get(key, -1) for key, _ in _values(record)) for record in records
        )


def _own_store(config: Config) -> str:
    return f"sqlite:///{Path(config.storage_path).absolute() / 'mlflow.db'}"


def _values(record: Record) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if key not in _AXES and isinstance(value, int | float):
            yield key, float(value)


def _flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{path}{key}.")
        else:
            yield path + key, value


def _tags(config: Config) -> dict[str, str]:
    return {
        **_versions(),
        "source": config.source.kind,
        "generator": sources.describe(config).name,
        "view": config.view.kind,
        "objective": config.objective.kind,
        **({"ray.submission_id": job} if (job := submission_id()) else {}),
    }


def _versions() -> dict[str, str]:
    return {f"{package}.version": _version(package) for package in ("genray", "ray", "torch")}


def _version(package: str) -> str:
    try:
        return version(package)  # asks the installation, without importing torch or ray
    except PackageNotFoundError:
        return "not installed"


def _shorten(value: str) -> str:
    value = _public(value)
    return value if len(value) <= _MAX_VALUE else value[: _MAX_VALUE - 1] + "…"


def _public(text: str) -> str:
    """Without the user and password that an address may hold."""
    return re.sub(r"://[^/\s]*@", "://", text)


def _line(error: Exception) -> str:
    text = _public(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
