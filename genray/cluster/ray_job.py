"""The Ray job that this process drives, if there is one."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace


def submission_id() -> str | None:
    """The id that `ray job submit` gave the job, or was given with `--submission-id`; None if this is no job."""
    job_config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    metadata = job_config.get("metadata") or {}
    return metadata.get("job_submission_id")


def add_metadata(**metadata: str) -> None:
    """Add to the job's metadata, which `ray job list` and the dashboard show. Does nothing if this is no job.

    Ray accepts metadata only when a job is submitted. This replaces Ray's record of the job, as Ray itself does when
    the job starts and ends.

    Raises:
        Exception: whatever Ray raises if it does not answer, or stores its records in another way.
    """
    if not (job := submission_id()):
        return
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    async def add() -> None:
        jobs = JobInfoStorageClient(GcsClient(address=os.environ["RAY_ADDRESS"]))
        if info := await jobs.get_info(job):
            await jobs.put_info(job, replace(info, metadata={**(info.metadata or {}), **metadata}))

    asyncio.run(add())


def report_page(page: str, say: Callable[[str], None]) -> None:
    """Report the run's page in MLflow, to the user and in the metadata of the Ray job."""
    say(f"MLflow  {page}")
    try:
        add_metadata(mlflow=page)
    except Exception as error:  # the training must not notice
        say(f"the metadata of the Ray job does not name the MLflow run ({error})")
