"""What probes found of a run, kept with it: a line of its probes.jsonl, and metrics of its MLflow run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genray import records, storage, tracking_store
from genray.config import Config
from genray.rundir import RunDirectory


def metrics_of(data: str, found: Mapping[str, float]) -> dict[str, float]:
    """Metrics named `probe.<data>.<probe>`, as MLflow takes them."""
    return {f"{_beginning(data)}.{metric}": value for metric, value in found.items()}


def _beginning(data: str) -> str:
    name = re.sub(r"[^\w\-]", "_", data)
    return f"probe.{name}"


def record(
    config: Config, path: Path, step: int, data: str, found: Mapping[str, float], how: Mapping[str, Any] | None = None
) -> str:
    """Keep what was found of a run's encoder at a step, and tell MLflow.

    Args:
        config: the run.
        path: its directory.
        step: of the checkpoint.
        data: name of the images.
        found: the metrics.
        how: the numbers of the probes, where they were asked for; they go with the metrics.

    Returns:
        Where it is now, in a line; MLflow out of reach is no error.
    """
    run = RunDirectory(path)
    metrics = metrics_of(data, found)
    tags = {f"{_beginning(data)}.settings": json.dumps(how)} if how else {}
    records.append(run.probes, {"step": step, "time": time.time(), **metrics, **tags})
    if (stored := storage.of(path)) and not run.in_progress():
        stored.put(run.probes, run.probes.name)
    if not config.tracking.mlflow:
        return f"recorded in {run.probes}"
    if run.in_progress():  # its driver follows the file
        return f"recorded in {run.probes}, and sent to MLflow by the run"
    try:
        added = _sent(config, run, step, metrics, tags)
    except Exception as error:  # whatever MLflow raises
        return f"recorded in {run.probes}; MLflow does not record it ({' '.join(str(error).split())[:160]})"
    return f"recorded in {run.probes}" + (" and in MLflow" if added else "")


def _sent(config: Config, run: RunDirectory, step: int, metrics: Mapping[str, float], tags: Mapping[str, str]) -> bool:
    """Whether there is an MLflow run of this one, which has the metrics now; its state stays as it is."""
    if not run.mlflow.exists():
        return False
    uri = tracking_store.address(config)
    client = tracking_store.connect(uri)
    if (recorded := tracking_store.continued(client, run, uri)) is None:
        return False
    from mlflow.entities import Metric, RunTag

    now = round(time.time() * 1000)
    values = [Metric(name, value, now, step) for name, value in metrics.items()]
    client.log_batch(recorded.info.run_id, values, tags=[RunTag(name, value) for name, value in tags.items()])
    return True
