"""A run's encoder as a registered model of MLflow, with a signature, that loads without genray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from genray.export import DESCRIPTION, PROGRAM

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVED = Path(__file__).with_name("served.py")
MODULE = "genray_encoder"
"""Name of that program within the model."""
NEEDED = ("mlflow", "torch", "numpy")
"""Packages that the model needs."""


def register(client: MlflowClient, run_id: str, name: str, export: Path, metrics: Mapping[str, float]) -> str | None:
    """Make an export the model of its run, and a version of the registered model `name`; once, however often asked.

    Args:
        client: of the store that has the run.
        run_id: the MLflow run.
        name: of the registered model; made if need be.
        export: the directory that `genray.export.export_run` wrote.
        metrics: what was found of the encoder; those of probes become tags of the version.

    Returns:
        Why there is no model; None where there is one now.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    if not (export / PROGRAM).exists():
        return f"no model was registered: torch cannot export this backbone, there is no {export / PROGRAM}"
    if any(version.name == name for version in client.search_model_versions(f"run_id = '{run_id}'")):
        return None
    with suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    run = client.get_run(run_id)
    model = client.create_logged_model(run.info.experiment_id, name, run_id, model_type="encoder")
    try:
        with TemporaryDirectory() as directory:
            save(export, Path(directory) / "model", model_id=model.model_id, run_id=run_id)
            client.log_model_artifacts(model.model_id, str(Path(directory) / "model"))
    except BaseException:
        with suppress(Exception):
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    found = {key: f"{value:.4f}" for key, value in metrics.items() if key.startswith("final.trained.")}
    client.create_model_version(
        name, model.artifact_location, run_id, tags=found, await_creation_for=0, model_id=model.model_id
    )
    return None


def save(export: Path, directory: Path, **of_model: Any) -> None:
    """Write the encoder as a model directory of MLflow's: `mlflow.pyfunc.load_model(directory).predict(images)`.

    Images are uint8 `[n, height, width, 3]` of any size, features float32 `[n, d]`.
    """
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    with TemporaryDirectory() as parts:
        program, data = Path(parts) / f"{MODULE}.py", Path(parts) / "encoder"
        shutil.copy(SERVED, program)
        data.mkdir()
        for name in (DESCRIPTION, PROGRAM):
            shutil.copy(export / name, data)
        width = json.loads((data / DESCRIPTION).read_text())["num_features"]
        mlflow.pyfunc.save_model(
            directory,
            loader_module=MODULE,
            data_path=str(data),
            code_paths=[str(program)],
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))]),
                Schema([TensorSpec(np.dtype("float32"), (-1, width))]),
            ),
            input_example=np.zeros((1, 8, 8, 3), dtype=np.uint8),
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in NEEDED],
            mlflow_model=Model(**of_model),
        )
