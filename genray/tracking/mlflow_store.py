"""Where runs are recorded: on an MLflow server, or in a database next to the runs."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from genray.config.files import write_atomically
from genray.config.run import Config
from genray.runs import store
from genray.runs.directory import RunDirectory
from genray.tracking.described import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DATABASE = "mlflow.db"
"""File name of the database next to the runs."""

_ENVIRONMENT = {  # MLflow reads it at each call; with its defaults a call to a dead server blocks for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


def address(config: Config) -> str:
    """Address of a run's tracking server or database."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_address(config)


def default_address(config: Config) -> str:
    """Address of the database next to a run, which is used if nothing else is configured."""
    return address_in(store.local_directory(config.storage_path))


def address_in(runs: Path) -> str:
    """Address of the database in a directory of runs."""
    return f"sqlite:///{runs.absolute() / DATABASE}"


def connect(uri: str) -> MlflowClient:
    """A client that fails within seconds, and without logging, if the store does not answer."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # takes seconds, which the training must not wait for

    for library in ("mlflow", "alembic", "urllib3"):  # errors are raised, and the caller reports them once
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def remember_run(run: RunDirectory, run_id: str, uri: str) -> None:
    """Write to a run's mlflow.json which MLflow run belongs to it, for `remembered_run`."""
    write_atomically(run.mlflow, json.dumps({"run_id": run_id, "uri": redacted(uri)}))


def remembered_run(client: MlflowClient, run: RunDirectory, uri: str) -> Run | None:
    """The MLflow run in a run's mlflow.json, if it still exists in this store."""
    from mlflow.exceptions import MlflowException

    remembered = json.loads(run.mlflow.read_text()) if run.mlflow.exists() else {}
    if remembered.get("uri") != redacted(uri):
        return None
    try:
        known = client.get_run(remembered["run_id"])
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return known if known.info.lifecycle_stage == "active" else None
