"""Who may use a run's directory, and what is said of it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from genray.config.errors import ConfigError, UserError
from genray.config.load import build
from genray.config.run import Config
from genray.runs.directory import RunDirectory, list_runs


def make(storage: Path, name: str = "run", **values: Any) -> Config:
    return build({"name": name, "storage_path": str(storage), **values})


def claimed(config: Config) -> RunDirectory:
    run = RunDirectory.of(config)
    run.claim(config)
    return run


@contextmanager
def driven_elsewhere(run: RunDirectory) -> Iterator[None]:
    """Another process holds the run's lock, and is killed at the end."""
    code = (
        "import sys, time; from pathlib import Path; from genray.runs.directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).locked(): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            yield
        finally:
            other.kill()


def test_a_claim_writes_the_resolved_configuration(tmp_path: Path) -> None:
    config = make(tmp_path / "deep" / "runs", seed=3)
    run = claimed(config)
    assert run.path == tmp_path / "deep" / "runs" / "run"
    assert build(json.loads(run.config.read_text())) == config
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "run.lock"]


def test_the_same_configuration_may_come_back(tmp_path: Path) -> None:
    claimed(make(tmp_path))
    claimed(make(tmp_path))


def test_what_may_change_is_written_anew(tmp_path: Path) -> None:
    claimed(make(tmp_path))
    changed = make(
        tmp_path,
        render_on="learners",
        pool={"num": [1, 4], "look_ahead_mib": 2048},
        learners={"num_workers": 2, "keep": 5},
        tracking={"mlflow": False},
        training={"log_every": 5},
    )
    run = claimed(changed)
    assert build(json.loads(run.config.read_text())) == changed


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    run = claimed(make(tmp_path))
    assert claimed(make(tmp_path, seed=2)) == run  # nothing was trained yet, so the name is free
    claimed(make(tmp_path))
    run.metrics.touch()
    before = run.config.read_text()
    with pytest.raises(ConfigError) as error:
        claimed(make(tmp_path, seed=1, view={"std": 0.5}, training={"steps": 20, "log_every": 5}))
    told = str(error.value)
    assert told == (
        "name must be new for a run with other settings, got 'run', in which seed was 0, is 1; "
        "training.steps was 10000, is 20; view.std was 1.0, is 0.5. "
        "Choose another --name, or leave these fields as they were to resume it"
    )
    assert run.config.read_text() == before


def test_a_run_from_before_a_field_was_there_goes_on(tmp_path: Path) -> None:
    """It had what the field's default says."""
    config = make(tmp_path)
    run = claimed(config)
    run.metrics.touch()
    values = config.to_dict()
    del values["learners"]["hang_timeout_s"], values["stream"]["reuse_window"]
    run.config.write_text(json.dumps(values))
    run.claim(config)
    assert json.loads(run.config.read_text()) == config.to_dict()
    run.config.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"stream\.reuse_window was 64, is 32"):
        run.claim(make(tmp_path, stream={"reuse_window": 32}))


@pytest.mark.parametrize("inside", [".", "runs", "runs/more"])
def test_a_directory_that_cannot_be_made_is_refused(inside: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    storage = tmp_path / "file" / inside
    with pytest.raises(UserError, match=r"^storage_path must be a directory that can be written, got '.*' \(.+\)$"):
        claimed(make(storage))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    run = claimed(make(tmp_path))
    with driven_elsewhere(run):
        with pytest.raises(UserError, match=r"^name must not be that of a run in progress, got 'run'$"), run.locked():
            pass
        with pytest.raises(UserError, match=r"^name must not be that of a run in progress, got 'run'$"):
            claimed(make(tmp_path, learners={"keep": 9}))
        assert json.loads(run.config.read_text())["learners"]["keep"] == 2
        assert run.state()["state"] == "running"
    assert run.state()["state"] == "started"  # a killed driver leaves no lock behind
    with run.locked():
        pass


def test_looking_at_a_run_changes_nothing(tmp_path: Path) -> None:
    run = claimed(make(tmp_path))
    with run.lock.open() as looking:  # two who look do not take each other for the driver
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not run.in_progress()
    run.lock.unlink()
    assert not run.in_progress()
    assert [path.name for path in run.path.iterdir()] == ["config.json"]


def test_states(tmp_path: Path) -> None:
    run = claimed(make(tmp_path, training={"steps": 40}))
    fresh = {"name": "run", "state": "started", "step": 0, "steps": 40, "loss": None, "knn": None}
    assert run.state() == fresh
    run.metrics.write_text('{"step": 20, "loss": 3.5}\n{"step": 30, "lo')
    assert run.state() == {**fresh, "step": 20, "loss": 3.5}
    (run.path / "checkpoint_1").mkdir()
    assert run.state()["state"] == "started"  # it is not whole yet
    (run.path / "checkpoint_1" / "checkpoint.json").write_text("{}")
    assert run.state()["state"] == "resumable"
    run.report.write_text('{"probes": {"trained": {"knn": 0.9}}}')
    assert run.state() == {**fresh, "state": "finished", "step": 20, "loss": 3.5, "knn": 0.9}
    run.report.write_text('{"probes": {}}')
    assert run.state()["knn"] is None


def test_runs_are_listed_in_the_order_they_were_started(tmp_path: Path) -> None:
    for age, name in enumerate(["b", "c", "a"]):
        run = claimed(make(tmp_path, name))
        os.utime(run.config, (1.7e9 - age, 1.7e9 - age))
    (tmp_path / "empty").mkdir()
    for name, text in {"model": '{"z_dim": 3}', "list": "[]", "cut": '{"name":'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    assert [run.path.name for run in list_runs(str(tmp_path))] == ["a", "c", "b"]
