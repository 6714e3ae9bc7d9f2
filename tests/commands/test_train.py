"""Whole runs on a Ray of this machine: stream, learners, checkpoints, probes, export and MLflow together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from fakes import small
from harness import COMPARABLE, COMPARABLE_RTOL, SETTINGS, alone, changed
from mlflow import MlflowClient
from paths import ROOT

from genray.cluster import ray_cluster
from genray.commands.bench.bench import bench
from genray.commands.train import train
from genray.config.errors import ConfigError, RunFailed, UserError
from genray.config.load import build, load
from genray.config.view import Steered
from genray.runs import checkpoint, jsonl, previews
from genray.runs.directory import RunDirectory
from genray.views import walk_files
from genray.views.pin import pinned

pytestmark = pytest.mark.ray

STEPS = 12
SMALL: dict[str, Any] = SETTINGS | {
    "generator": {"kind": "biggan", "micro_batch": 16},
    "optimizer": {"kind": "adamw", "lr": 1e-3},
    "training": {"steps": STEPS, "checkpoint_every": 4, "log_every": 1},
    "probe": {"data": "digit-scenes", "every": 6, "images": 400},
    "pool": {"num": 1, "num_gpus": 0, "num_cpus": 0.25},
    "learners": {"num_workers": 1, "num_gpus": 0, "num_cpus": 0.25},
    "tracking": {},
}


def settings(storage: Path, name: str, **changes: Any) -> dict[str, Any]:
    merged = changed(SMALL, changes)
    for section in ("generator", "optimizer"):  # another kind has other numbers
        merged[section] = changes.get(section, merged[section])
    return {"name": name, "storage_path": str(storage), **merged}


def records(storage: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (storage / name / "metrics.jsonl").read_text().splitlines()]


def losses(storage: Path, name: str) -> list[float]:
    found = records(storage, name)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    return [record["loss"] for record in found]


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """A Ray that the runs of this process join as they would a cluster; those that are commands start their own."""
    with ray_cluster.joined():
        yield


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def inline(storage: Path) -> list[float]:
    """The losses of a run whose learner renders its own tickets: the reference that nothing may deviate from."""
    train(build(settings(storage, "inline", render_on="learners", tracking={"mlflow": False})))
    return losses(storage, "inline")


def test_a_run_leaves_everything_it_promises(storage: Path, inline: list[float]) -> None:
    config = build(settings(storage, "pool", pool={"num": [1, 2]}))
    report = train(config)
    directory = storage / "pool"

    assert losses(storage, "pool") == pytest.approx(inline, rel=1e-4)  # the stream shows what the learner would render

    assert report == json.loads((directory / "report.json").read_text())
    assert set(report["probes"]) == {"trained", "untrained", "raw_pixels"}
    assert all(0 < value < 1 for probes in report["probes"].values() for value in probes.values())
    parts = report["seconds_to_first_step"]
    assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"], abs=0.5)
    assert report["seconds_total"] > parts["total"] > 0
    assert report["versions"]["ray"]
    assert 0 <= report["data_wait"] <= 1
    assert 0 < report["generator_busy"] <= 1

    assert list(previews.existing(directory / "previews")) == [0]
    assert (directory / "report.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(directory.glob("checkpoint_*/checkpoint.json"))) == 2  # learners.keep
    backbone = timm.create_model(f"local-dir:{directory / 'export'}", pretrained=True).eval()
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 16)

    noted = json.loads((directory / "mlflow.json").read_text())
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    run = client.get_run(noted["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.backbone"] == "resnet18"
    history = client.get_metric_history(noted["run_id"], "loss")
    assert [(metric.step, metric.value) for metric in history] == list(enumerate(losses(storage, "pool"), start=1))
    expected = {"alignment", "uniformity", "lr", "images_per_s", "data_wait", "generator_busy", "view_age_s", "knn"}
    assert expected | {"final.trained.knn", "final.raw_pixels.linear", "seconds.total"} <= set(run.data.metrics)
    kept = {found.path for found in client.list_artifacts(noted["run_id"])}
    assert kept == {"config.json", "report.json", "report.png", "images", "export"}
    [version] = client.search_model_versions(f"run_id = '{noted['run_id']}'")
    assert version.tags["final.trained.knn"] == f"{report['probes']['trained']['knn']:.4f}"

    said: list[str] = []
    assert train(config, say=said.append) == report
    assert "finished" in said[0]

    (directory / "report.json").unlink()  # as if it had been killed while it was judged
    again = train(config)
    assert again["probes"] == report["probes"]
    assert losses(storage, "pool") == pytest.approx(inline, rel=1e-4)


def test_a_killed_run_goes_on_where_its_checkpoint_ends(storage: Path, inline: list[float]) -> None:
    values = settings(storage, "killed", tracking={"uri": "http://127.0.0.1:9"})  # and no MLflow answers
    file = storage / "killed.json"
    file.write_text(json.dumps(values))
    command = [sys.executable, "-m", "genray.cli", "train", str(file)]
    run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 180
    while not list((storage / "killed").glob("checkpoint_*/checkpoint.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (storage / "killed" / "report.json").exists()

    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert losses(storage, "killed") == pytest.approx(inline, rel=1e-4)
    assert (storage / "killed" / "mlflow.undelivered").exists()
    assert "does not record" in again.stderr
    assert "Traceback" not in again.stderr + again.stdout


def test_a_run_that_version_0_1_began_is_resumed_exactly(tmp_path: Path) -> None:
    """Its configuration has the section `generators`; `whole` is what that version made of the same run."""
    data = ROOT / "tests" / "data" / "run-of-0.1"
    run = tmp_path / "half"
    shutil.copytree(data / "half", run)
    former: list[str] = []
    config = load(str(run), say=former.append)
    assert len(former) == 2  # for `generators` and its `mode`
    train(config)
    assert (run / "batches.jsonl").read_text() == (data / "whole" / "batches.jsonl").read_text()
    expected = [record["loss"] for record in jsonl.read(data / "whole" / "metrics.jsonl")]
    assert [record["loss"] for record in jsonl.read(run / "metrics.jsonl")] == pytest.approx(expected, rel=1e-3)
    assert "generators" not in json.loads((run / "config.json").read_text())


def test_an_interrupted_run_has_its_checkpoint_and_says_how_to_resume(storage: Path) -> None:
    training = {"steps": 10_000, "checkpoint_every": 10_000}
    values = settings(storage, "interrupted", training=training, render_on="learners")
    file = storage / "interrupted.json"
    file.write_text(json.dumps(values))
    command = [sys.executable, "-m", "genray.cli", "train", str(file)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (storage / "interrupted" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 130
    last = checkpoint.last(storage / "interrupted")
    assert last is not None
    step = checkpoint.read_step(last)
    told = f"genray: interrupted was stopped and is resumable from step {step}: genray train {storage / 'interrupted'}"
    assert told in said
    noted = json.loads((storage / "interrupted" / "mlflow.json").read_text())
    assert MlflowClient(f"sqlite:///{storage / 'mlflow.db'}").get_run(noted["run_id"]).info.status == "KILLED"


def test_a_loss_that_is_not_finite_ends_the_run_at_once(storage: Path) -> None:
    steep = {"optimizer": {"kind": "sgd", "lr": 1e30}}
    values = settings(storage, "diverged", **steep, render_on="learners", tracking={"mlflow": False})
    with pytest.raises(RunFailed, match=r"^the loss was not finite in step \d+"):
        train(build(values))


def test_two_learners_share_the_tickets(storage: Path) -> None:
    values = settings(storage, "two", learners={"num_workers": 2}, tracking={"mlflow": False}, **COMPARABLE)
    train(build(values))
    found = losses(storage, "two")
    assert found == pytest.approx([record["loss"] for record in alone(values, STEPS)], rel=COMPARABLE_RTOL)
    assert len(set(found)) == STEPS


@pytest.mark.parametrize(
    ("generators", "learners"), [(1, 1), pytest.param([1, 2], 2, marks=pytest.mark.slow)], ids=["one", "two"]
)
def test_bench_measures_both_sides_alone_and_together(storage: Path, generators: Any, learners: int) -> None:
    sections = {"pool": {"num": generators}, "learners": {"num_workers": learners}}
    found = bench(build(settings(storage, "measured", **sections)), repeats=2, seconds=0.2, say=lambda line: None)
    assert len(found["measured"]) == 2
    assert found["name"] == "measured"
    for key, value in found["median"].items():
        assert 0 < found["least"][key] <= value <= found["most"][key]
    assert found["median"]["generators"] in (1, learners)
    assert found["empty_stream"]["blocks_per_s"] > 0
    assert not list(storage.glob("*measured*"))


def test_checkpoints_are_judged_beside_the_training(storage: Path) -> None:
    probe = {"beside": ["knn", "few"], "num_cpus": 0.25}
    train(build(settings(storage, "beside", probe=probe, render_on="learners")))
    found = [json.loads(line) for line in (storage / "beside" / "probes.jsonl").read_text().splitlines()]
    assert {line["step"] for line in found} <= {4, 8}  # not the last, which is judged for the report
    assert found[0]["step"] == 4
    metrics = {name: value for name, value in found[0].items() if name not in ("step", "time")}
    shots = {f"few.{shot}{what}" for shot in (1, 5, 10) for what in ("", ".std")}
    assert set(metrics) == {f"probe.digit-scenes-val.{name}" for name in shots | {"knn"}}
    assert all(0 < value < 1 for value in metrics.values())
    assert not (storage / "beside" / "faults.jsonl").exists()
    run = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}").get_run(
        json.loads((storage / "beside" / "mlflow.json").read_text())["run_id"]
    )
    assert set(metrics) <= set(run.data.metrics)


def test_a_run_with_other_settings_is_refused(storage: Path, inline: list[float]) -> None:
    with pytest.raises(UserError, match=r"view\.std was 1\.0, is 0\.5"):
        train(build(settings(storage, "inline", view={"kind": "gaussian", "std": 0.5})))


def test_the_file_of_a_latent_view_is_pinned_by_its_content(tmp_path: Path) -> None:
    """A run that has finished is not begun again, and not taken for one with other walks under the same name."""

    def write(walk: np.ndarray) -> None:
        walk_files.WALKS.write(tmp_path / "w.safetensors", {"zoom": walk}, {"generator": "x", "latent_dim": 4})

    write(np.ones(4))
    config = small(storage_path=str(tmp_path), view={"kind": "steered", "walks": str(tmp_path / "w.safetensors")})
    assert isinstance(config.view, Steered)
    assert config.view.sha256 is None
    run = RunDirectory.of(config)
    run.claim(pinned(config))
    run.metrics.touch()
    run.report.write_text("{}")
    assert train(config, say=lambda line: None) == {}
    write(np.zeros(4))
    with pytest.raises(ConfigError, match=r"view.sha256 was '[0-9a-f]{64}', is '[0-9a-f]{64}'"):
        train(config)


@pytest.mark.parametrize("where", ["pool", "learners"])
def test_a_generator_that_cannot_be_made_is_refused_at_once(storage: Path, where: str) -> None:
    generator = {"kind": "custom", "target": "faulty:Missing", "latent_dim": 4, "image_size": 32}
    config = build(
        settings(storage, f"missing-{where}", generator=generator, render_on=where, tracking={"mlflow": False})
    )
    with pytest.raises(UserError, match=r"^generator\.target must be importable.*faulty:Missing"):
        train(config)
    assert not (storage / f"missing-{where}" / "metrics.jsonl").exists()
