"""The job that trains the embedded generator, a few steps of it: what it writes is what it trained."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT

from genray.views.generators.biggan import load_biggan

JOB = ROOT / "jobs" / "train_embedded_generator.py"


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_embedded_generator", JOB)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def test_the_written_network_renders_what_the_trained_one_does(job: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = job.new_network(torch.device("cpu"))
    norms = job.with_trainable_norms(network)
    z, labels = torch.randn(20, job.Z_DIM), torch.arange(20) % 10
    for _ in range(20):  # the statistics move away from where they start
        network(z, job.one_hot(labels), 1.0)
    for norm in norms:
        norm.frozen = True
    (tmp_path / "config.json").write_text(json.dumps(job.NETWORK))
    job.save_file(job.package_weights(network), tmp_path / "model.safetensors")
    expected = (job.with_own_spectral_norms(network).eval()(z, job.one_hot(labels), 1.0) + 1) * 127.5
    assert expected.std() > 1
    for truncation in (1.0, 0.3):  # the statistics of every truncation are the same
        rendered = load_biggan(tmp_path, truncation, "cpu")(z, labels)
        assert (rendered - expected).abs().max() < 2


def test_a_few_steps_of_everything(job: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    scans, labels = job.digits("train")
    world = job.LatentScenes(scans, labels, job.train_digit_model(scans, labels, 3))
    (tmp_path / "config.json").write_text(json.dumps(job.NETWORK))
    job.train_generator(world, steps=4, batch=4, rate=2e-3, out=tmp_path)
    images = load_biggan(tmp_path, 1.0, "cpu")(torch.randn(2, job.Z_DIM), torch.tensor([3, 4]))
    assert images.shape == (2, 3, 32, 32)
    assert (tmp_path / "model.safetensors").stat().st_size <= 4_000_000
    job.write_report(tmp_path, "training", {"steps": 4})
    job.write_report(tmp_path, "quality", {"recognised_as_intended": 0.5})
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "training": {"steps": 4},
        "quality": {"recognised_as_intended": 0.5},
    }
