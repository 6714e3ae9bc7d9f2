"""What is done with a run that is not finished: its last checkpoint is judged and exported."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from fakes import small
from PIL import Image

from genray.commands.evaluate import evaluate, evaluate_run
from genray.commands.export import export_run
from genray.config.errors import UserError
from genray.config.run import Config
from genray.learner.learner import Learner
from genray.probes.judge import ProbeSettings
from genray.probes.labelled_images import LabelledImages
from genray.runs import checkpoint, jsonl
from genray.runs.directory import RunDirectory
from genray.stream.run import Run

MODEL = {
    "backbone": "resnet18",
    "model_args": {"layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8], "stem_type": "deep", "stem_width": 8},
    "projection": [8, 4],
}


def unfinished(config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Learner]:
    """The directory of a run with one checkpoint, and the learner that wrote it, whose weights are no fresh ones."""
    run = RunDirectory.of(config)
    run.claim(config)
    learner = Learner(Run.of(config), 0, torch.device("cpu"))
    with torch.no_grad():
        for parameter in learner.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    written = run.path / "checkpoint_0"
    written.mkdir()
    learner.step = 8
    learner.save(written)
    monkeypatch.setattr(checkpoint, "last", lambda directory: written if directory == run.path else None)
    return run.path, learner


def test_the_last_checkpoint_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(storage_path=str(tmp_path), model=MODEL)
    path, learner = unfinished(config, monkeypatch)
    images = torch.randn(2, 3, 8, 8)
    for to in (None, tmp_path / "elsewhere"):
        lines = export_run(path, to)
        directory = to or path / "export"
        assert lines[0] == f"timm.create_model('local-dir:{directory}', pretrained=True)"
        assert "another network than torchvision's resnet18" in lines[1]
        loaded = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), learner.features(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"^probe\.data must name labelled images to judge on, got none"):
        evaluate_run(path)


def test_the_last_checkpoint_is_judged_beside_the_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(storage_path=str(tmp_path), model=MODEL, probe={"data": "digit-scenes", "images": 200})
    path, _ = unfinished(config, monkeypatch)
    said: list[str] = []
    found = evaluate_run(path, said.append)
    assert said == [f"recorded in {path / 'probes.jsonl'}"]  # it has no MLflow run yet
    kept = {"step": 8, **{f"probe.digit-scenes.{name}": value for name, value in found["trained"].items()}}
    assert kept.items() <= jsonl.last(path / "probes.jsonl").items()
    assert list(found) == ["trained", "untrained", "raw_pixels"]
    assert found["trained"] != found["untrained"]
    assert all(0 < value < 1 for probes in found.values() for value in probes.values())


def test_a_run_is_judged_with_others_and_its_figures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(storage_path=str(tmp_path), model=MODEL, probe={"data": "digit-scenes", "images": 200})
    path, _ = unfinished(config, monkeypatch)
    said: list[str] = []
    names = [str(path), f"untrained:{path}", "pixels"]
    found = evaluate(names, None, ("knn",), ProbeSettings(neighbors=5), say=said.append)
    assert list(found["backbones"]) == names
    assert found["data"]["name"] == "digit-scenes"  # the run's own
    assert found["backbones"][str(path)] != found["backbones"][f"untrained:{path}"]
    assert said[-1] == f"recorded in {path / 'probes.jsonl'}"
    [line] = jsonl.read(path / "probes.jsonl")
    assert (line["step"], line["probe.digit-scenes.knn"]) == (8, found["backbones"][str(path)]["knn"])
    assert json.loads(line["probe.digit-scenes.settings"])["neighbors"] == 5


@pytest.mark.parametrize(("given", "mirrored"), [({}, True), ({"mirror": False}, False)], ids=str)
def test_images_are_mirrored_unless_it_is_forbidden(
    given: dict[str, bool], mirrored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, name in itertools.product(("train", "val"), ("a", "b")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / name / "0.png")
    judged: list[bool] = []

    def judge(backbones: Any, images: LabelledImages, *rest: Any) -> dict[str, Any]:
        judged.append(images.may_mirror)
        return {"backbones": {}}

    monkeypatch.setattr("genray.probes.judge.judge", judge)
    monkeypatch.setattr("genray.cluster.ray_cluster.joined", lambda address: contextlib.nullcontext())
    evaluate(["pixels"], str(tmp_path), ("sgd",), ProbeSettings(), **given)
    assert judged == [mirrored]
