"""Where configurations come from: sources, overrides, and what neither of them costs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from genray.config.errors import ConfigError
from genray.config.load import load
from genray.config.run import Config

TOML = """
seed = 5

[view]
kind = "gaussian"
std = 0.5

[objective]
temperature = 0.3

[optimizer]
kind = "adamw"
lr = 2e-3

[pool]
num = [1, 4]
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    return str(path)


def loaded(source: str, line: str = "") -> Config:
    return load(source, line.split())


def told(source: str, line: str = "") -> str:
    with pytest.raises(ConfigError) as error:
        loaded(source, line)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_toml_file_is_read(source: str) -> None:
    config = loaded(source)
    assert (config.seed, config.view.kind, config.optimizer.lr, config.pool.num) == (5, "gaussian", 2e-3, (1, 4))
    assert config.name.startswith("mine-20")


def test_the_storage_path_becomes_absolute(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert loaded(source, "--storage_path here").storage_path == str(tmp_path / "here")
    assert loaded(source, "--storage_path ~/there").storage_path == str(tmp_path / "home" / "there")
    assert loaded(source, "--storage_path s3://bucket/runs").storage_path == "s3://bucket/runs"


def test_a_run_directory_gives_its_own_configuration(source: str, tmp_path: Path) -> None:
    config = loaded(source, f"--storage_path {tmp_path} --name first --pool.num none --pool.num 3")
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text(json.dumps(config.to_dict()))
    assert loaded(str(tmp_path / "first")) == config
    assert loaded(str(tmp_path / "first" / "config.json")) == config
    assert loaded(str(tmp_path / "first"), "--name second").name == "second"


@pytest.fixture
def moved(source: str, tmp_path: Path) -> Path:
    """The directory of a run that was begun in another place."""
    config = loaded(source, f"--storage_path {tmp_path / 'before'} --name first")
    directory = tmp_path / "after" / "first"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    return directory


def test_a_run_is_kept_where_its_directory_is_now(moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(str(moved)).storage_path == str(moved.parent)
    monkeypatch.chdir(moved.parent)
    assert loaded("first") == loaded("./first/") == loaded(str(moved))
    monkeypatch.chdir(moved)
    assert loaded(".") == loaded(str(moved))
    as_it_was_begun = loaded("config.json")
    assert as_it_was_begun.storage_path == str(tmp_path / "before")
    assert replace(as_it_was_begun, storage_path=str(moved.parent)) == loaded(".")


def test_a_storage_path_that_is_given_goes_before_that_of_the_directory(moved: Path, tmp_path: Path) -> None:
    assert load(str(moved), storage_path="s3://bucket/runs").storage_path == "s3://bucket/runs"
    assert loaded(str(moved), f"--storage_path {tmp_path}/other").storage_path == f"{tmp_path}/other"
    given = load(str(moved), ["--storage_path", f"{tmp_path}/other"], storage_path="s3://bucket/runs")
    assert given.storage_path == f"{tmp_path}/other"
    chosen = {"storage_path": f"{tmp_path}/chosen"}
    assert load(str(moved), ["--storage_path", "other"], chosen).storage_path == f"{tmp_path}/chosen"


def test_a_preset_goes_before_a_directory_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert loaded("demo").generator.model == "digit-scenes"
    assert "config.json must be a file that exists" in told("./demo")


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    assert told("demmo").endswith("or a TOML file, got 'demmo'; did you mean 'demo'?")
    assert told(str(tmp_path / "no.toml")) == f"{tmp_path}/no.toml must be a file that exists"
    assert told(str(tmp_path)) == f"{tmp_path}/config.json must be a file that exists"
    (tmp_path / "cut.toml").write_text("[view\nstd = 1")
    assert told(str(tmp_path / "cut.toml")).startswith(f"{tmp_path}/cut.toml must be readable TOML: ")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert told(str(tmp_path / "bytes.toml")).startswith(f"{tmp_path}/bytes.toml must be readable TOML: ")
    (tmp_path / "config.json").write_text('{"name": "x"')
    assert told(str(tmp_path)).startswith(f"{tmp_path}/config.json must be readable JSON: ")
    (tmp_path / "config.json").write_text("[1]")
    assert told(str(tmp_path)) == f"{tmp_path}/config.json must hold the sections of a configuration, got [1]"


def test_values_are_read_as_toml_and_else_as_text(source: str) -> None:
    line = "--stream.num_anchors 1000 --view.truncated false --augment.scale [0.1,1.0] --tracking.uri http://a:1/b"
    config = loaded(source, line + " --optimizer.lr=1e-2 --name 2024-05-06 --storage_path=a=b")
    assert config.stream.num_anchors == 1000
    assert config.to_dict()["view"]["truncated"] is False
    assert config.augment.scale == (0.1, 1.0)
    assert config.tracking.uri == "http://a:1/b"
    assert config.optimizer.lr == 0.01
    assert config.name == "2024-05-06"
    assert Path(config.storage_path).name == "a=b"


def test_dashes_stand_for_underscores(source: str) -> None:
    assert loaded(source, "--training.warmup-steps 7 --storage-path x").training.warmup_steps == 7


def test_the_last_of_two_wins(source: str) -> None:
    assert loaded(source, "--seed 1 --seed 2").seed == 2


@pytest.mark.parametrize("word", ["none", "None", "null"])
def test_none_takes_a_value_away(source: str, word: str) -> None:
    assert loaded(source, f"--stream.num_anchors 1000 --stream.num_anchors {word}").stream.num_anchors is None


def test_none_is_also_a_choice(source: str) -> None:
    config = loaded(source, "--view.kind none --augment.policy none")
    assert (config.view.kind, config.augment.policy) == ("none", "none")


def test_another_kind_takes_the_numbers_of_the_old_one_away(source: str) -> None:
    assert loaded(source, "--view.kind independent").to_dict()["view"] == {"kind": "independent"}
    assert loaded(source, "--optimizer.kind sgd").optimizer.lr == 0.03


def test_a_new_kinds_numbers_may_stand_before_it(source: str) -> None:
    for line in ("--optimizer.lr 0.5 --optimizer.kind lars", "--optimizer.kind lars --optimizer.lr 0.5"):
        config = loaded(source, line)
        assert (config.optimizer.kind, config.optimizer.lr) == ("lars", 0.5)


def test_a_section_of_a_section_may_be_of_several_kinds(source: str, tmp_path: Path) -> None:
    chunked = "--view.kind chunked --view.slices [[0,3],[5,6]]"
    view = loaded(source, chunked).to_dict()["view"]
    assert view == {
        "kind": "chunked",
        "slices": [[0, 3], [5, 6]],
        "noise": {"kind": "gaussian", "std": 1.0, "truncated": True},
    }
    assert loaded(source, f"{chunked} --view.noise.std 0.5").to_dict()["view"]["noise"]["std"] == 0.5
    for line in (f"--view.noise.kind angular {chunked}", f"{chunked} --view.noise.std 2 --view.noise.kind angular"):
        assert loaded(source, line).to_dict()["view"]["noise"]["kind"] == "angular"
    nested = tmp_path / "nested.toml"
    nested.write_text("[view]\nkind = 'chunked'\nslices = [[0, 1]]\n[view.noise]\nkind = 'uniform'\nstd = 0.1")
    assert loaded(str(nested), "").to_dict()["view"]["noise"] == {"kind": "uniform", "std": 0.1}
    another = loaded(str(nested), "--view.noise.kind gaussian").to_dict()["view"]["noise"]
    assert another == {"kind": "gaussian", "std": 1.0, "truncated": True}
    typo = told(source, f"{chunked} --view.noise.sdt 1")
    assert typo == "view.noise.sdt must be a field of view.noise; did you mean 'std'?"
    assert told(source, f"{chunked} --view.noise.kind chunked").startswith("view.noise.kind must be one of gaussian, ")
    assert told(source, "--view.kind chunked --view.slices [[0,1.5]]") == "view.slices.0.1 must be an integer, got 1.5"


def test_the_same_kind_again_changes_nothing(source: str, tmp_path: Path) -> None:
    assert loaded(source, "--optimizer.kind adamw").optimizer.lr == 2e-3
    (tmp_path / "bare.toml").write_text("[view]\nstd = 0.5")
    assert loaded(str(tmp_path / "bare.toml"), "--view.kind gaussian").to_dict()["view"]["std"] == 0.5


def test_another_objective_keeps_its_temperature(source: str) -> None:
    config = loaded(source, "--objective.kind supcon")
    assert (config.objective.kind, config.objective.temperature) == ("supcon", 0.3)


def test_an_objective_of_another_sort_does_not(source: str) -> None:
    config = loaded(source, "--objective.momentum 0.9 --objective.kind byol")
    assert config.to_dict()["objective"] == {
        "kind": "byol",
        "projection": [4096, 256],
        "prediction": 4096,
        "momentum": 0.9,
    }
    assert told(source, "--objective.kind simsiam --objective.temperature 1") == (
        "objective.temperature must be a field of objective; it has kind, projection, prediction"
    )


def test_overrides_reach_into_sections_that_are_not_there(source: str) -> None:
    config = loaded(source, "--model.model_args.layers [1,1] --probe.data digit-scenes --generator.micro_batch 8")
    assert config.model.model_args == {"layers": [1, 1]}
    assert config.probe.data == "digit-scenes"
    assert config.generator.micro_batch == 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--view.std", "--view.std must be followed by a value"),
        ("--view.std --seed 3", "--view.std must be followed by a value"),
        ("view.std 3", "an override must look like --path.to.field VALUE, got 'view.std'"),
        ("-v 3", "an override must look like --path.to.field VALUE, got '-v'"),
        ("-- 3", "an override must look like --path.to.field VALUE, got '--'"),
        ("--view.sdt 3", "view.sdt must be a field of view; did you mean 'std'?"),
        ("--vew.std 3", "vew must be a field of the configuration; did you mean 'view'?"),
        ("--seed.x 3", "seed.x must name a field, but seed holds the value 5"),
        ("--view 3", "view must be a section of fields, got 3"),
        ("--training.steps=", "training.steps must be an integer, got ''"),
    ],
)
def test_an_override_that_cannot_be(source: str, line: str, message: str) -> None:
    assert told(source, line) == message


def test_reading_a_configuration_needs_no_heavy_library() -> None:
    code = (
        "import sys; from genray.cli import main; from genray.commands.configured import configured;"
        "from genray.config.fields import reference; from genray.stream.plan import Plan;"
        "Plan.of(configured('demo')); reference();"
        "print([name for name in ('torch', 'ray', 'mlflow', 'timm', 'scipy', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
