"""A run is made once and passed down; another machine finds its own working directory in what it receives."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import small
from ray import cloudpickle

from genray.config.errors import ConfigError
from genray.runs import store
from genray.runs.directory import RunDirectory
from genray.stream.plan import Plan
from genray.stream.run import Run

BUCKET = "s3://bucket/runs"


def run_in(storage_path: Path | str, **sections: Any) -> Run:
    """A run of one to three learners."""
    sections = {"stream": {"batch_size": 12}, "learners": {"num_workers": [1, 3]}, **sections}
    return Run.of(small(storage_path=str(storage_path), **sections))


def test_the_run_of_a_configuration(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    assert run.plan == Plan.of(run.config)
    assert run.plan.num_workers == 3  # the most that there may be
    assert run.directory == RunDirectory.of(run.config) == RunDirectory(tmp_path / "small")
    assert not run.directory.path.exists()  # a value alone leaves nothing on the disk


def test_a_configuration_that_cannot_be_planned_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^pool\.look_ahead_mib must hold two tickets of every learner"):
        run_in(tmp_path, pool={"look_ahead_mib": 1}, stream={"batch_size": 1362})


@pytest.mark.parametrize("learners", [1, 2, 3])
def test_the_same_run_with_other_numbers_of_learners(tmp_path: Path, learners: int) -> None:
    run = run_in(tmp_path)
    found = run.with_learners(learners)
    assert (found.config, found.directory) == (run.config, run.directory)
    assert found.plan == Plan.of(run.config, learners)
    assert found.plan.num_workers == learners
    assert run.plan.num_workers == 3  # as it was
    assert found.with_learners(3) == run


def test_a_run_that_has_so_many_learners_is_not_planned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path).with_learners(2)
    monkeypatch.setattr(Plan, "of", None)
    assert run.with_learners(2) is run


@pytest.mark.parametrize("by", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
@pytest.mark.parametrize("learners", [1, 3])
def test_a_run_arrives_as_it_was_sent(tmp_path: Path, cache: Path, learners: int, by: Any) -> None:
    for storage_path in (tmp_path, BUCKET):
        run = run_in(storage_path).with_learners(learners)
        assert by.loads(by.dumps(run)) == run


@pytest.mark.parametrize("by", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_a_run_in_a_bucket_has_the_directory_of_who_receives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: Any
) -> None:
    monkeypatch.setenv("GENRAY_CACHE", str(tmp_path / "sender"))
    run = run_in(BUCKET).with_learners(2)
    sent = by.dumps({"run": run})
    monkeypatch.setenv("GENRAY_CACHE", str(tmp_path / "receiver"))
    received = by.loads(sent)["run"]
    assert (received.config, received.plan) == (run.config, run.plan)
    assert received.directory == RunDirectory.of(run.config) != run.directory
    for directory, place in ((run.directory.path, "sender"), (received.directory.path, "receiver")):
        assert directory.is_dir()
        assert directory.is_relative_to(tmp_path / place)
        assert directory.name == "small"
        stored = store.of(directory)
        assert stored is not None  # what is written there is carried to the bucket
        assert stored.storage_path == BUCKET
    assert received.with_learners(3).directory == received.directory


RECEIVE = """
import pickle, sys
run = pickle.load(sys.stdin.buffer)
print(run.plan.num_workers, run.directory.path, sep="\\n")
"""


@pytest.mark.parametrize("storage_path", [BUCKET, None], ids=["a bucket", "a directory that all see"])
def test_another_process_finds_its_own_directory(tmp_path: Path, cache: Path, storage_path: str | None) -> None:
    run = run_in(storage_path or tmp_path / "shared").with_learners(2)
    theirs = {**os.environ, "GENRAY_CACHE": str(tmp_path / "theirs")}
    command = [sys.executable, "-c", RECEIVE]
    told = subprocess.run(command, input=pickle.dumps(run), env=theirs, cwd=tmp_path, capture_output=True, check=True)
    learners, path = told.stdout.decode().splitlines()
    assert learners == "2"
    if storage_path is None:
        assert Path(path) == run.directory.path == tmp_path / "shared" / "small"
    else:
        assert Path(path) == tmp_path / "theirs" / run.directory.path.relative_to(cache)
        assert Path(path).is_dir()
