"""A lesson goes on where it was interrupted, to the last bit, and its files are its own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import blob

from genray.commands.lessons import lesson as lessons
from genray.commands.lessons.differentiable import DifferentiableGenerator
from genray.commands.lessons.lesson import RECORD_EVERY, Lesson
from genray.commands.lessons.steer import SteerOptions, Walks
from genray.config.errors import ConfigError, RunFailed, RunStopped, UserError
from genray.config.load import build
from genray.config.run import Config
from genray.runs import jsonl
from genray.views import walk_files

OPTIONS = SteerOptions(walks=("zoom", "red"), steps=3 * RECORD_EVERY - 5, batch=2)


class Interrupted(Walks):
    """Is asked to stop in the middle of this step."""

    def __init__(self, source: DifferentiableGenerator, options: SteerOptions, at: int, lesson: Path):
        super().__init__(source, options)
        self.at, self.lesson = at, lesson

    def step(self, number: int) -> dict[str, float]:
        if number == self.at:
            (self.lesson / "stop").touch()
        return super().step(number)


def lesson(directory: Path, config: Config | None = None, stop_at: int = -1, options: SteerOptions = OPTIONS) -> Lesson:
    out = directory / "walks.safetensors"
    place = directory / "walks.steer"
    make_student = lambda source: Interrupted(source, options, stop_at, place)  # noqa: E731
    return Lesson(walk_files.WALKS, config or blob(), options, out, make_student)


def curve(directory: Path) -> list[dict[str, Any]]:
    return [{**line, "time": 0} for line in jsonl.read(directory / "walks.steer" / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lesson that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    assert lesson(directory).learn(lambda line: None) == ""  # no MLflow
    return directory


def same(a: Path, b: Path) -> None:
    for name in ("walks.safetensors", "walks.png"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert curve(a) == curve(b)


def test_the_curve_is_the_mean_of_each_window(whole: Path) -> None:
    lines = curve(whole)
    assert [line["step"] for line in lines] == [RECORD_EVERY, 2 * RECORD_EVERY, 3 * RECORD_EVERY - 5]
    student = Walks(DifferentiableGenerator(blob()), OPTIONS)
    losses = [student.step(number)["loss"] for number in range(OPTIONS.steps)]
    windows = [losses[:RECORD_EVERY], losses[RECORD_EVERY : 2 * RECORD_EVERY], losses[2 * RECORD_EVERY :]]
    assert [line["loss"] for line in lines] == pytest.approx([sum(w) / len(w) for w in windows])
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("stops", [[0], [RECORD_EVERY - 1], [7, RECORD_EVERY, 2 * RECORD_EVERY + 3]])
def test_a_stopped_lesson_goes_on_exactly(tmp_path: Path, whole: Path, stops: list[int]) -> None:
    for at in stops:
        with pytest.raises(RunStopped, match=rf"is resumable from step {at + 1}: give the same command again"):
            lesson(tmp_path, stop_at=at).learn(lambda line: None)
        assert not (tmp_path / "walks.safetensors").exists()
        assert not (tmp_path / "walks.steer" / "stop").exists()
    lesson(tmp_path).learn(lambda line: None)
    same(tmp_path, whole)


def test_a_stop_in_the_last_step_comes_too_late(tmp_path: Path, whole: Path) -> None:
    lesson(tmp_path, stop_at=OPTIONS.steps - 1).learn(lambda line: None)
    same(tmp_path, whole)


def steered(directory: Path) -> subprocess.Popen[str]:
    (directory / "blob.json").write_text(json.dumps(blob().to_dict()))
    options = ["--walks", "zoom", "red", "--steps", "400", "--batch", "4"]
    command = [sys.executable, "-m", "genray.cli", "steer", "blob.json", *options]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_command_goes_on_exactly(tmp_path: Path) -> None:
    """One process is killed outright, one is told to end, and a third finishes."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, os.EX_TEMPFAIL)):
        process, before = steered(tmp_path / "a"), len(curve(tmp_path / "a"))
        while len(curve(tmp_path / "a")) < before + 2:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        if number == signal.SIGTERM:
            assert "genray: walks.safetensors was stopped and is resumable from step" in errors
        assert not (tmp_path / "a" / "walks.safetensors").exists()
    for directory in ("a", "b"):
        process = steered(tmp_path / directory)
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert said.split() == ["file", "walks.safetensors", "picture", "walks.png"]
        assert "step 400/400" in errors
    same(tmp_path / "a", tmp_path / "b")


def test_a_finished_lesson_stays(tmp_path: Path) -> None:
    said: list[str] = []
    few = SteerOptions(walks=("red",), steps=2, batch=1)
    lesson(tmp_path, options=few).learn(said.append)
    before = (tmp_path / "walks.safetensors").stat().st_mtime_ns
    lesson(tmp_path, options=few).learn(said.append)
    assert said == [f"{tmp_path}/walks.safetensors is finished; choose another --out to learn again"]
    assert (tmp_path / "walks.safetensors").stat().st_mtime_ns == before


def test_other_settings_need_another_file(tmp_path: Path) -> None:
    with pytest.raises(RunStopped):
        lesson(tmp_path, stop_at=3).learn(lambda line: None)
    with pytest.raises(UserError) as error:
        lesson(tmp_path, config=blob(seed=1), options=SteerOptions(walks=("red",), steps=9)).learn()
    assert str(error.value).startswith("--out must be new for other settings, got '")
    for change in ("seed was 0, is 1", "steer.steps was 55, is 9", "steer.walks was ['zoom', 'red'], is ['red']"):
        assert change in str(error.value)
    assert "remove walks.steer and the file" in str(error.value)
    lesson(tmp_path, config=blob(training={"steps": 7}, view={"std": 0.3})).learn(lambda line: None)  # not its own


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("nowhere/walks.safetensors", "--out must be a .safetensors file in a directory that exists, got '.*'"),
        ("walks.pt", "--out must be a .safetensors file in a directory that exists, got '.*'"),
        ("theirs.safetensors", "--out must be a new file, got '.*', which this command did not write"),
    ],
)
def test_the_file_must_be_one_that_can_be_written(tmp_path: Path, out: str, told: str) -> None:
    (tmp_path / "theirs.safetensors").write_text("mine")
    made = Lesson(walk_files.WALKS, blob(), OPTIONS, tmp_path / out, lambda source: Walks(source, OPTIONS))
    with pytest.raises(UserError, match=f"^{told}$"):
        made.learn()
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.safetensors"]


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    class Second(Walks):
        def step(self, number: int) -> dict[str, float]:
            with pytest.raises(UserError, match=r"^--out must not be that of a job in progress, got "):
                lesson(tmp_path).learn()
            return super().step(number)

    few = SteerOptions(walks=("red",), steps=1, batch=1)
    out = tmp_path / "walks.safetensors"
    Lesson(walk_files.WALKS, blob(), few, out, lambda source: Second(source, few)).learn(lambda line: None)
    assert out.exists()


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    class Lost(Walks):
        def step(self, number: int) -> dict[str, float]:
            return {**super().step(number), **({"loss": math.nan} if number == 3 else {})}

    out = tmp_path / "walks.safetensors"
    with pytest.raises(RunFailed, match=r"^the loss of step 4 is not finite; lower --lr, or check the generator$"):
        Lesson(walk_files.WALKS, blob(), OPTIONS, out, lambda source: Lost(source, OPTIONS)).learn(lambda line: None)
    assert not out.exists()
    options = SteerOptions(walks=("red",), steps=2, batch=1)
    lesson(tmp_path, options=options).learn(lambda line: None)  # the name is free


def test_classes_must_be_the_generators(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^stream.classes must be of the classes of fakes:Blob, 0 to 1, got 2$"):
        lesson(tmp_path, config=blob(stream={"classes": [2]})).learn()


def test_a_generator_without_latents_is_refused() -> None:
    generator = {"kind": "diffusers", "model": "a/pipeline", "prompts": ["a cat"]}
    config = build({"name": "x", "view": {"kind": "independent"}, "generator": generator})
    with pytest.raises(ConfigError, match=r"^generator.kind must be one that has latents, got 'diffusers'$"):
        DifferentiableGenerator(config)


def test_what_mlflow_missed_is_delivered_by_the_same_command_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)  # MLflow keeps the artifacts of a store that is not the run's own there
    monkeypatch.setattr(lessons, "CLOSE_TIMEOUT_S", 3.0)
    away = tmp_path / "away"
    away.write_text("no directory")
    config = blob(storage_path=str(tmp_path), tracking={"mlflow": True, "uri": f"sqlite:///{away}/mlflow.db"})
    lesson(tmp_path, config=config).learn(lambda line: None)
    assert (tmp_path / "walks.steer" / "mlflow.undelivered").exists()
    away.unlink()
    away.mkdir()
    monkeypatch.setattr(lessons, "CLOSE_TIMEOUT_S", 60.0)
    lesson(tmp_path, config=config).learn(lambda line: None)
    assert not (tmp_path / "walks.steer" / "mlflow.undelivered").exists()
    client = MlflowClient(tracking_uri=config.tracking.uri)
    [run] = client.search_runs([client.get_experiment_by_name("genray").experiment_id])
    assert run.info.status == "FINISHED"
    assert {found.path for found in client.list_artifacts(run.info.run_id)} == {"walks.png", "walks.safetensors"}


def test_a_lesson_is_an_mlflow_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = blob(storage_path=str(tmp_path / "runs"), tracking={"mlflow": True})
    page = lesson(tmp_path, config=config).learn(lambda line: None)
    store = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert page == f"mlflow ui --backend-store-uri {store}"
    client = MlflowClient(tracking_uri=store)
    [run] = client.search_runs([client.get_experiment_by_name("genray").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "steer walks"
    params = run.data.params
    assert (params["steer.steps"], params["generator.target"], params["seed"]) == ("55", "fakes:Blob", "0")
    assert not [name for name in params if name.startswith(("training", "optimizer", "learners"))]
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "zoom")]
    assert steps == [line["step"] for line in curve(tmp_path)]
    assert {found.path for found in client.list_artifacts(run.info.run_id)} == {"walks.png", "walks.safetensors"}
