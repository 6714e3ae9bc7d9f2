"""An encoder as a model of MLflow: it predicts what the export does, and needs nothing of genray for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import center_crop

from genray.config import sections
from genray.config.run import Config
from genray.learner import export, objectives
from genray.stream.plan import Plan
from genray.tracking import mlflow_store, registry
from genray.views.augment import MEAN, STD

TINY = sections.Model(backbone="resnet18", model_args={"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]})

FORBIDDEN = ("genray", "ray", "timm", "torchvision", "pytorch_pretrained_biggan", "sklearn", "safetensors")
ALONE = f"""
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {FORBIDDEN} else super().find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Without]
import mlflow, numpy
model = mlflow.pyfunc.load_model(sys.argv[1])
numpy.save(sys.argv[3], model.predict(numpy.load(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an encoder whose batch-norm statistics have moved, of 32-pixel images."""
    config = Config(name="run", model=TINY)
    encoder = objectives.build(config, Plan.of(config))
    encoder(torch.randn(8, 3, 32, 32))
    directory = tmp_path_factory.mktemp("run") / "export"
    said = export.export_encoder(encoder.state_dict(), config, directory, 32)
    assert said[2] == f"torch.export.load('{directory / 'encoder.pt2'}').module()"
    return directory


@torch.no_grad()
def expected(exported: Path, images: np.ndarray) -> np.ndarray:
    """What timm's model of the export makes of images, their centres resized and normalised as the probes do it."""
    backbone = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    height, width = pixels.shape[-2:]
    sides = (32, width * 32 // height) if height <= width else (height * 32 // width, 32)
    pixels = F.interpolate(pixels, size=sides, mode="bilinear", antialias=True)
    pixels = center_crop(pixels, [32, 32])
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return backbone((pixels - mean) / std).numpy()


def images(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_it_predicts_where_neither_genray_nor_ray_nor_timm_can_be_imported(exported: Path, tmp_path: Path) -> None:
    registry.save_model(exported, tmp_path / "model")
    shown = images(5, 40, 50)
    np.save(tmp_path / "images.npy", shown)
    command = [sys.executable, "-c", ALONE, *(str(tmp_path / name) for name in ("model", "images.npy", "found.npy"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(exported, shown), rtol=1e-4, atol=1e-5)
    needs = {line.partition("==")[0] for line in (tmp_path / "model" / "requirements.txt").read_text().split()}
    assert needs == {"mlflow", "torch", "numpy"}


def test_any_number_of_images_and_none(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    registry.save_model(exported, tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    monkeypatch.setattr(sys.modules["genray_encoder"], "BATCH_SIZE", 4)  # 9 images are three chunks
    np.testing.assert_allclose(model.predict(images(9)), expected(exported, images(9)), rtol=1e-4, atol=1e-5)
    assert model.predict(images(1)).shape == (1, 32)
    assert model.predict(np.zeros((0, 32, 32, 3), dtype=np.uint8)).shape == (0, 32)


def test_the_signature_refuses_what_are_no_images(exported: Path, tmp_path: Path) -> None:
    import mlflow

    registry.save_model(exported, tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert str(model.metadata.signature.outputs) == "[Tensor('float32', (-1, 32))]"
    for wrong in (images(2).astype(np.float32), images(2).transpose(0, 3, 1, 2)):
        with pytest.raises(mlflow.exceptions.MlflowException):
            model.predict(wrong)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    client = mlflow_store.connect(mlflow_store.address_in(tmp_path))
    run = client.create_run(client.create_experiment("a", artifact_location=str(tmp_path / "mlartifacts")))
    return client, run.info.run_id


def test_a_run_has_one_version_of_the_registered_model(exported: Path, store: Any, tmp_path: Path) -> None:
    import mlflow

    client, run_id = store
    found = {"final.trained.linear": 0.871, "seconds.total": 9.0}
    for _ in range(2):  # a run that is delivered again
        assert registry.register(client, run_id, "digits", exported, found) is None
    [version] = client.search_model_versions("name = 'digits'")
    assert (version.version, version.run_id, version.tags) == (1, run_id, {"final.trained.linear": "0.8710"})
    [output] = client.get_run(run_id).outputs.model_outputs
    assert client.get_logged_model(output.model_id).status == "READY"
    mlflow.set_tracking_uri(mlflow_store.address_in(tmp_path))
    try:
        model = mlflow.pyfunc.load_model("models:/digits/1")
        np.testing.assert_allclose(model.predict(images(3)), expected(exported, images(3)), rtol=1e-4, atol=1e-5)
    finally:
        mlflow.set_tracking_uri(None)
    assert registry.register(client, run_id, "others", exported, found) is None
    assert [version.name for version in client.search_model_versions(f"run_id = '{run_id}'")] == ["others", "digits"]


def test_a_model_that_cannot_be_stored_is_not_ready(
    exported: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = store
    with monkeypatch.context() as broken:
        broken.setattr(type(client), "log_model_artifacts", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            registry.register(client, run_id, "digits", exported, {})
    assert not client.search_model_versions("name = 'digits'")
    assert registry.register(client, run_id, "digits", exported, {}) is None
    [version] = client.search_model_versions("name = 'digits'")
    assert version.run_id == run_id


def test_a_backbone_that_torch_cannot_export_is_told(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("data-dependent\ncontrol flow")

    monkeypatch.setattr(torch.export, "export", fails)
    config = Config(name="run", model=TINY)
    encoder = objectives.build(config, Plan.of(config))
    said = export.export_encoder(encoder.state_dict(), config, tmp_path / "export", 32)
    assert said[2] == "torch.export cannot export resnet18: data-dependent control flow"
    client, run_id = store
    missing = registry.register(client, run_id, "digits", tmp_path / "export", {})
    assert missing is not None
    assert missing.startswith("no model was registered")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["architecture"] == "resnet18"
