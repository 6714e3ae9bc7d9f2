"""The Ray job that a run is: its id, and what is added to its metadata; no Ray is started."""

from __future__ import annotations

import json
from typing import Any

import pytest
import ray._raylet
from ray.dashboard.modules.job.common import JobInfo, JobInfoStorageClient, JobStatus

from genray.cluster import ray_job
from genray.config.run import Config
from genray.tracking import described


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is what Ray makes of an entrypoint."""
    config = {"runtime_env": {}, "metadata": {"job_submission_id": "b128", "job_name": "b128"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, JobInfo]:
    """Ray's own records of jobs."""
    found = {"b128": JobInfo(status=JobStatus.RUNNING, entrypoint="python jobs/train.py", metadata={"team": "vision"})}

    async def get_info(self: Any, name: str) -> JobInfo | None:
        assert self._gcs_client == "head:6379"
        return found.get(name)

    async def put_info(self: Any, name: str, info: JobInfo) -> None:
        found[name] = info

    monkeypatch.setattr(ray._raylet, "GcsClient", lambda address: address)
    monkeypatch.setattr(JobInfoStorageClient, "get_info", get_info)
    monkeypatch.setattr(JobInfoStorageClient, "put_info", put_info)
    return found


@pytest.mark.usefixtures("submitted")
def test_the_metadata_of_the_job_gets_what_is_noted_and_keeps_the_rest(kept: dict[str, JobInfo]) -> None:
    assert ray_job.submission_id() == "b128"
    ray_job.add_metadata(mlflow="http://mlflow:5000/#/1")
    assert kept["b128"].metadata == {"team": "vision", "mlflow": "http://mlflow:5000/#/1"}
    assert (kept["b128"].status, kept["b128"].entrypoint) == (JobStatus.RUNNING, "python jobs/train.py")
    del kept["b128"]  # somebody deleted it
    ray_job.add_metadata(mlflow="http://mlflow:5000/#/2")
    assert kept == {}


def test_what_is_no_job_has_nothing_to_note(kept: dict[str, JobInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    before = dict(kept)
    ray_job.add_metadata(mlflow="x")
    assert ray_job.submission_id() is None
    assert kept == before


@pytest.mark.usefixtures("submitted", "kept")
def test_a_run_goes_on_where_its_job_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    ray_job.report_page("http://mlflow:5000/#/1", said.append)
    assert said == ["MLflow  http://mlflow:5000/#/1"]

    def unreachable(address: str) -> Any:
        raise ConnectionError("no answer")

    monkeypatch.setattr(ray._raylet, "GcsClient", unreachable)
    ray_job.report_page("http://mlflow:5000/#/2", said.append)
    assert said[2:] == ["the metadata of the Ray job does not name the MLflow run (no answer)"]


@pytest.mark.usefixtures("submitted")
def test_mlflow_names_the_job() -> None:
    assert described.tags(Config(name="x"))["ray.submission_id"] == "b128"
