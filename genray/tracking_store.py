"""Where runs are recorded: an MLflow server, or a store beside the runs."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from genray import storage
from genray.about import public
from genray.config import Config
from genray.rundir import RunDirectory, write_atomically

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DATABASE = "mlflow.db"
"""Name of the store beside the runs."""

_ENVIRONMENT = {  # read by MLflow at each call; its own defaults would block a call to a dead server for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


def address(config: Config) -> str:
    """Of the tracking server or store of a run."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or own(config)


def own(config: Config) -> str:
    """Address of the store beside a run, which is used where no other is given."""
    return beside(storage.directory(config.storage_path))


def beside(runs: Path) -> str:
    """Address of the store that lies beside the runs of a directory."""
    return f"sqlite:///{runs.absolute() / DATABASE}"


def connect(uri: str) -> MlflowClient:
    """A client that fails soon and quietly where the store does not answer."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # seconds; the training must not wait for them

    for library in ("mlflow", "alembic", "urllib3"):  # what goes wrong is raised, and said once by who called
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def note(run: RunDirectory, run_id: str, uri: str) -> None:
    """Keep with a run which one of MLflow it is, for `continued`."""
    write_atomically(run.mlflow, json.dumps({"run_id": run_id, "uri": public(uri)}))


def continued(client: MlflowClient, run: RunDirectory, uri: str) -> Run | None:
    """The MLflow run that was noted, where it still exists in this store."""
    from mlflow.exceptions import MlflowException

    noted = json.loads(run.mlflow.read_text()) if run.mlflow.exists() else {}
    if noted.get("uri") != public(uri):
        return None
    try:
        found = client.get_run(noted["run_id"])
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return found if found.info.lifecycle_stage == "active" else None
