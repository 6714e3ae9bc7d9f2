"""What MLflow is told of a run before it begins."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import small
from PIL import Image

from genray.config.generator import BigGANGenerator
from genray.config.load import build, load
from genray.config.run import Config
from genray.stream.plan import Plan
from genray.tracking import described
from genray.views import generators
from genray.views.generators.checkpoints import EMBEDDED_DIRECTORY


def data(config: Config) -> list[described.DatasetInfo]:
    return described.datasets(config, Plan.of(config))


def test_parameters_leave_out_the_name() -> None:
    found = described.parameters(build({"name": "first", "model": {"model_args": {"layers": [1, 1]}}}))
    assert "name" not in found
    assert found["model.model_args.layers"] == "[1, 1]"
    assert found["stream.num_anchors"] == "null"


def test_parameters_of_an_earlier_version_have_their_present_names() -> None:
    former = {"generators.mode": "inline", "generators.num": "[1, 2]", "generator.kind": "biggan", "seed": "0"}
    now = {"render_on": "learners", "pool.num": "[1, 2]", "generator.kind": "biggan", "seed": "0"}
    assert described.renamed_parameters(former) == now
    assert described.renamed_parameters(now) == now
    assert described.renamed_parameters({**former, "pool.num": "4"}) == {**now, "pool.num": "4"}  # recorded since
    of_a_sweep = {"sweep.generators.mode": "pool, inline", "sweep.generators.num": "1, [1, 2]", "sweep.seed": "0, 1"}
    assert described.renamed_parameters(of_a_sweep) == {
        "sweep.render_on": "pool, learners",
        "sweep.pool.num": "1, [1, 2]",
        "sweep.seed": "0, 1",
    }


def test_tags_tell_the_commit_and_whether_the_code_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        named = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *named, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    (tmp_path / "code.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(described, "__file__", str(tmp_path / "described.py"))
    found = described.tags(small())
    assert found["mlflow.source.git.commit"] == git("rev-parse", "HEAD").strip()
    assert found["mlflow.source.git.dirty"] == "false"
    (tmp_path / "code.py").write_text("2")
    assert described.tags(small())["mlflow.source.git.dirty"] == "true"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "__file__", str(tmp_path / "described.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "mlflow.source.git.commit" not in described.tags(small())
    monkeypatch.setenv("PATH", "")
    assert "mlflow.source.git.commit" not in described.tags(small())


def test_world_sizes_are_tags() -> None:
    found = described.tags(small(learners={"num_workers": [1, 2]}, pool={"num": [1, 4]}))
    assert (found["world.learners"], found["world.generators"]) == ("1 to 2", "1 to 4")
    assert described.tags(small(render_on="learners"))["world.generators"] == "inline"


CHANGES = {
    "seed": {"seed": 1},
    "view": {"view": {"kind": "gaussian", "std": 0.3}},
    "classes": {"stream": {"num_anchors": 999}},
    "length": {"training": {"steps": 20_000}},
    "truncation": {"generator": {"truncation": 0.5}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_views_have_another_digest_where_they_are_others(change: dict[str, object]) -> None:
    views, other = (data(small(**sections))[0] for sections in ({}, change))
    assert views.digest != other.digest


def test_views_have_the_same_digest_whoever_renders_and_learns() -> None:
    views, other = (
        data(small(**sections))[0]
        for sections in ({}, {"pool": {"num": 4}, "learners": {"num_gpus": 0}, "optimizer": {"lr": 1.0}})
    )
    assert views.digest == other.digest
    assert len(views.digest) <= 36


def test_images_to_judge_on_are_listed_beside_the_views() -> None:
    config = load("demo", ["--name=a"])
    views, judged = data(config)
    assert (judged.context, judged.source) == ("evaluation", {"data": "digit-scenes", "images": 4000})
    entity = views.for_mlflow()
    assert entity.dataset.source_type == "genray"
    assert entity.tags[0].value == "training"
    assert "[-1, 2, 3, 32, 32]" in entity.dataset.schema.replace("\\", "")
    assert len(data(replace(config, probe=replace(config.probe, data=None)))) == 1


def test_images_have_the_same_digest_wherever_they_lie(tmp_path: Path) -> None:
    def judged(place: str, names: tuple[str, ...] = ("a.png", "b.png")) -> described.DatasetInfo:
        for split, label, name in itertools.product(("train", "val"), "01", names):
            path = tmp_path / place / "shapes" / split / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
        return data(small(probe={"data": str(tmp_path / place / "shapes"), "images": 100}))[1]

    here = judged("here")
    assert here.place == str(tmp_path / "here" / "shapes")
    assert here.digest == judged("there").digest
    assert here.digest != judged("elsewhere", ("a.png", "c.png")).digest
    assert str(tmp_path) in here.for_mlflow().dataset.source


def test_a_fingerprint_is_that_of_the_files() -> None:
    directory = EMBEDDED_DIRECTORY
    parts = "".join(
        hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in ("config.json", "model.safetensors")
    )
    assert generators.fingerprint(BigGANGenerator()) == hashlib.sha256(parts.encode()).hexdigest()
    assert generators.fingerprint(small().generator) is None


def test_credentials_are_left_out() -> None:
    assert described.redacted("http://me:secret@host:5000/a") == "http://host:5000/a"
    assert len(described.shortened("x" * 7000)) == 6000
