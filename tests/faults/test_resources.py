"""Disks, memory, services and Ray's own processes that run full or go away while a run goes on."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from harness import Run
from mlflow import MlflowClient

from genray.runs import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("render_on", ["pool", "learners"])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(render_on: str, tmp_path: Path) -> None:
    run = Run(tmp_path, "disk", render_on=render_on)
    run.start()
    run.wait_for(lambda: checkpoint.last(run.path))
    run.fill_the_disk("learner")
    run.wait_for(run.faults)
    assert run.faults()[0]["fault"] == "learners failed"
    run.progress(24)
    assert run.stop() == 75
    run.assert_exact()


def test_a_disk_too_full_for_a_record_ends_the_run_which_can_be_resumed(tmp_path: Path) -> None:
    run = Run(tmp_path, "records", render_on="learners")
    run.start()
    run.wait_for(lambda: checkpoint.last(run.path))
    run.fill_the_disk("controller", left=(run.path / "metrics.jsonl").stat().st_size + 10)
    assert re.search(r"^genray: .*(File too large|No space left on device).*\.jsonl", run.end(), re.M), run.said
    assert run.process is not None
    assert run.process.returncode == 1
    assert "Traceback" not in run.said
    run.start()
    run.progress(24)
    assert run.stop() == 75
    run.assert_exact()


@pytest.mark.parametrize("render_on", ["pool", "learners"])
def test_memory_that_runs_out_costs_a_process(render_on: str, tmp_path: Path) -> None:
    memory = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    threshold = 1 - (memory["MemAvailable"] - 5 * 2**20) / memory["MemTotal"]  # 5 GiB from here
    run = Run(tmp_path, "memory", render_on=render_on, pool={"ticket_timeout_s": 60})
    run.start(RAY_memory_usage_threshold=f"{threshold:.3f}", RAY_memory_monitor_refresh_ms="100")
    run.wait_for(lambda: run.step() >= 13)
    run.order("fill the memory")
    run.wait_for(run.faults)
    run.progress(24)
    assert run.stop() == 75
    run.assert_exact()


def test_learners_that_always_fail_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, "crashes", render_on="learners", learners={"max_failures": 1})
    run.order("exit", times=1000)
    assert "genray: the learners failed 2 times without a new checkpoint; the last error: " in run.failed()
    assert len(run.faults()) == 2


def test_a_generator_that_dies_while_it_loads_ends_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, "unloadable")
    run.order("die at start", times=1000)
    assert "genray: a generator died in each of its last 3 starts, without an error message" in run.failed()


def test_the_head_of_the_cluster_is_killed_and_the_next_start_resumes(tmp_path: Path) -> None:
    run = Run(tmp_path, "head")
    run.start()
    run.wait_for(lambda: run.step() >= 13)
    run.hurt("head")
    run.end(240)
    assert run.process is not None
    assert run.process.returncode != 0
    assert "Traceback" not in run.said
    run.start()
    run.wait_for(lambda: run.step() >= 33)
    assert run.stop() == 75
    run.assert_exact()


def test_a_full_object_store_holds_the_generators_back(tmp_path: Path) -> None:
    store = 100 * 2**20
    wide = {"batch_size": 128, "ticket_batches": 8}  # tickets of 6 MiB
    run = Run(
        tmp_path,
        "store",
        slow_s=0.0,
        stream=wide,
        training={"log_every": 1, "checkpoint_every": 1000},
        pool={"look_ahead_mib": 4096},
    )
    # A report at every step, taken only every second: the generator is far ahead of the learner all the time.
    run.start(RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=str(store), RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="1")
    run.wait_for(lambda: run.step() >= 40)
    (session,) = {
        match.group(1) for title in run.tree().values() if (match := re.search(r"(/tmp/ray/session_[\w-]+)", title))
    }
    spilled: set[Path] = set()
    while run.step() < 60:  # what is read again is deleted, so it has to be looked for all the time
        spilled |= set(Path(session).glob("ray_spilled_objects*/*"))
        run.wait_for(lambda: True)
        time.sleep(0.05)
    assert run.stop() == 75
    assert not spilled
    assert not run.faults()
    run.assert_exact()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def serve(port: int, directory: Path) -> subprocess.Popen[bytes]:
    """An MLflow server that answers."""
    store = f"sqlite:///{directory}/server.db"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--backend-store-uri", store]
    command += ["--artifacts-destination", str(directory / "artifacts"), "--workers", "1"]
    server = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return server
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert time.monotonic() < deadline, "MLflow did not start"
            time.sleep(0.5)


def test_an_mlflow_server_that_was_away_gets_what_it_missed(tmp_path: Path) -> None:
    port = free_port()
    server = serve(port, tmp_path)
    run = Run(tmp_path, "tracked", tracking={"mlflow": True, "uri": f"http://127.0.0.1:{port}"})
    run.start()
    run.wait_for(lambda: run.step() >= 13)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    run.progress(40)
    server = serve(port, tmp_path)
    run.progress(40)
    assert run.stop() == 75
    client = MlflowClient(f"http://127.0.0.1:{port}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "genray"]
    (record,) = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
    history = client.get_metric_history(record.info.run_id, "loss")
    os.killpg(server.pid, signal.SIGKILL)
    assert [(metric.step, metric.value) for metric in history] == [(r["step"], r["loss"]) for r in run.metrics()]
    run.assert_exact()
