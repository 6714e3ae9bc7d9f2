"""The Ray job that this process is the driver of, where it is one."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace


def submission_id() -> str | None:
    """The job's id, as it was given to `ray job submit --submission-id` or made by it."""
    found = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    metadata = found.get("metadata") or {}
    return metadata.get("job_submission_id")


def note(**facts: str) -> None:
    """Add to the job's metadata, which `ray job list` and the dashboard show; nothing to do where this is no job.

    Ray takes metadata when a job is submitted and has no call to add to it; this replaces its record of the job, as Ray
    itself does when the job starts and when it ends.

    Raises:
        Exception: whatever Ray raises where it does not answer, or keeps its record in another way.
    """
    if not (job := submission_id()):
        return
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    async def add() -> None:
        jobs = JobInfoStorageClient(GcsClient(address=os.environ["RAY_ADDRESS"]))
        if info := await jobs.get_info(job):
            await jobs.put_info(job, replace(info, metadata={**(info.metadata or {}), **facts}))

    asyncio.run(add())
