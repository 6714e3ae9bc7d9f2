"""Keeps probe results with their run: a line of its probes.jsonl, and metrics of its MLflow run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genray.config.run import Config
from genray.probes.metrics import metrics_of, prefix
from genray.runs import jsonl, store
from genray.runs.directory import RunDirectory
from genray.tracking import mlflow_store


def record_results(
    config: Config,
    path: Path,
    step: int,
    data: str,
    results: Mapping[str, float],
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Keep the probe results of a run's checkpoint in its directory and in MLflow.

    Args:
        config: of the run.
        path: the run's directory.
        step: of the checkpoint.
        data: name of the images.
        results: by probe.
        settings: of the probes, if they were chosen; they are recorded with the metrics.

    Returns:
        Where the results are now, in a line; it is no error if MLflow is out of reach.
    """
    run = RunDirectory(path)
    metrics = metrics_of(data, results)
    tags = {f"{prefix(data)}.settings": json.dumps(settings)} if settings else {}
    jsonl.append(run.probes, {"step": step, "time": time.time(), **metrics, **tags})
    if (stored := store.of(path)) and not run.in_progress():
        stored.upload(run.probes, run.probes.name)
    if not config.tracking.mlflow:
        return f"recorded in {run.probes}"
    if run.in_progress():  # its driver follows the file and sends it
        return f"recorded in {run.probes}, and sent to MLflow by the run"
    try:
        sent = _send(config, run, step, metrics, tags)
    except Exception as error:  # MLflow may raise anything
        return f"recorded in {run.probes}; MLflow does not record it ({' '.join(str(error).split())[:160]})"
    return f"recorded in {run.probes}" + (" and in MLflow" if sent else "")


def _send(config: Config, run: RunDirectory, step: int, metrics: Mapping[str, float], tags: Mapping[str, str]) -> bool:
    """Add the metrics to the run's MLflow run, whose status is kept; False if it has none."""
    if not run.mlflow.exists():
        return False
    uri = mlflow_store.address(config)
    client = mlflow_store.connect(uri)
    if (recorded := mlflow_store.remembered_run(client, run, uri)) is None:
        return False
    from mlflow.entities import Metric, RunTag

    now = round(time.time() * 1000)
    values = [Metric(name, value, now, step) for name, value in metrics.items()]
    client.log_batch(recorded.info.run_id, values, tags=[RunTag(name, value) for name, value in tags.items()])
    return True
