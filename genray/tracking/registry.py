"""Registers a run's encoder as an MLflow model with a signature, which loads without genray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from genray.learner.export import PROGRAM
from genray.probes.backbones import TIMM_CONFIG
from genray.tracking.compare import FINAL

if TYPE_CHECKING:
    from mlflow import MlflowClient

CODE = Path(__file__).with_name("served_encoder.py")
"""The model's code, which is copied into it."""
MODULE = "genray_encoder"
"""Name of the code's module within the model."""
REQUIREMENTS = ("mlflow", "torch", "numpy")
"""Packages that the model needs."""


def register(client: MlflowClient, run_id: str, name: str, export: Path, metrics: Mapping[str, float]) -> str | None:
    """Log an export as the model of its run, and as a version of the registered model `name`, unless that is done.

    Args:
        client: of the store that has the run.
        run_id: of the MLflow run.
        name: of the registered model, which is created if need be.
        export: the directory that `genray.learner.export.export_encoder` wrote.
        metrics: of the encoder; the final probes become tags of the version.

    Returns:
        None, or why there is no model.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    if not (export / PROGRAM).exists():
        return f"no model was registered: torch cannot export this backbone, there is no {export / PROGRAM}"
    if any(version.name == name for version in client.search_model_versions(f"run_id = '{run_id}'")):
        return None
    with suppress(MlflowException):  # it exists already
        client.create_registered_model(name)
    run = client.get_run(run_id)
    model = client.create_logged_model(run.info.experiment_id, name, run_id, model_type="encoder")
    try:
        with TemporaryDirectory() as directory:
            save_model(export, Path(directory) / "model", model_id=model.model_id, run_id=run_id)
            client.log_model_artifacts(model.model_id, str(Path(directory) / "model"))
    except BaseException:
        with suppress(Exception):
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    probes = {key: f"{value:.4f}" for key, value in metrics.items() if key.startswith(FINAL)}
    client.create_model_version(
        name, model.artifact_location, run_id, tags=probes, await_creation_for=0, model_id=model.model_id
    )
    return None


def save_model(export: Path, directory: Path, **attributes: Any) -> None:
    """Write the encoder as an MLflow model.

    >>> mlflow.pyfunc.load_model(directory).predict(images)  # uint8 [n, H, W, 3] -> float32 [n, d]

    Args:
        export: see `register`.
        directory: to create.
        attributes: of the `mlflow.models.Model`.
    """
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    with TemporaryDirectory() as parts:
        code, data = Path(parts) / f"{MODULE}.py", Path(parts) / "encoder"
        shutil.copy(CODE, code)
        data.mkdir()
        for name in (TIMM_CONFIG, PROGRAM):
            shutil.copy(export / name, data)
        width = json.loads((data / TIMM_CONFIG).read_text())["num_features"]
        mlflow.pyfunc.save_model(
            directory,
            loader_module=MODULE,
            data_path=str(data),
            code_paths=[str(code)],
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))]),
                Schema([TensorSpec(np.dtype("float32"), (-1, width))]),
            ),
            input_example=np.zeros((1, 8, 8, 3), dtype=np.uint8),
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS],
            mlflow_model=Model(**attributes),
        )
