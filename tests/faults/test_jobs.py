"""A Ray job that is stopped, on a head that leaves it the time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PATIENCE_S, Run
from paths import ROOT

from genray.runs import checkpoint
from genray.runs.processes import descendants

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.fixture
def dashboard() -> Iterator[str]:
    """A head of its own with the job server; its address."""
    session = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the paths of its sockets must be short
    environment = {**os.environ, "RAY_JOB_STOP_WAIT_TIME_S": "60", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    command = ["start", "--head", "--block", "--port=0", "--dashboard-port=28265", f"--temp-dir={session}"]
    head = subprocess.Popen(
        [*RAY, *command, "--num-cpus=2"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address, deadline = "http://127.0.0.1:28265", time.monotonic() + PATIENCE_S
    while job(address, "list").returncode and time.monotonic() < deadline:
        time.sleep(0.5)
    yield address
    for pid in (*descendants(head.pid), head.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    head.wait()


def job(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*RAY, "job", arguments[0], "--address", address, *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def test_a_job_that_is_stopped_has_its_checkpoint(dashboard: str, tmp_path: Path) -> None:
    run = Run(tmp_path, "job", training={"checkpoint_every": 100_000})
    run.file.write_text(json.dumps(run.values))
    command = ["--submission-id", "stopped", "--no-wait", "--", sys.executable, str(ROOT / "jobs/train.py")]
    submitted = job(dashboard, "submit", *command, str(run.file))
    assert submitted.returncode == 0, submitted.stderr
    deadline = time.monotonic() + PATIENCE_S
    while run.step() < 13:
        assert time.monotonic() < deadline, job(dashboard, "logs", "stopped").stdout
        time.sleep(0.2)
    assert checkpoint.last(run.path) is None
    job(dashboard, "stop", "stopped")
    last = checkpoint.last(run.path)
    assert last is not None, job(dashboard, "logs", "stopped").stdout
    step = checkpoint.read_step(last)
    assert f"job was stopped and is resumable from step {step}" in job(dashboard, "logs", "stopped").stdout
    run.assert_exact()
