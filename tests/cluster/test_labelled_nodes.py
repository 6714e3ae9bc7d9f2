"""A real cluster of labelled nodes on this machine, protected by a token; a job that is placed, stopped and resumed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import PATIENCE_S, TITLES, Run
from paths import ROOT

from genray.cluster.placement import GENERATOR_NODE, HEAD_NODE, LEARNER_NODE
from genray.runs import checkpoint, telemetry
from genray.runs.processes import descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
NODES: dict[str, tuple[dict[str, str], int, int]] = {
    "head": (HEAD_NODE, 0, 0),
    "other": ({}, 2, 2),  # has room for all, and no label
    "learner": (LEARNER_NODE, 2, 2),
    "generator": (GENERATOR_NODE, 2, 2),
}
"""Labels, CPUs and GPUs. The GPUs are only counted."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Labelled:
    """One node of each kind, each below a process of its own."""

    def __init__(self, home: Path):
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_metrics_report_interval_ms": "1000",
        }
        self.dashboard, gcs = free_port(), free_port()
        self.metrics = {name: free_port() for name in NODES}
        session = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the paths of its sockets must be short
        where = ["--head", f"--port={gcs}", f"--dashboard-port={self.dashboard}", f"--temp-dir={session}"]
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        for name, (labels, cpus, gpus) in NODES.items():
            command = [*RAY, "start", "--block", *where, f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
            command += [f"--metrics-export-port={self.metrics[name]}", f"--dashboard-agent-listen-port={free_port()}"]
            command += [f"--labels={key}={value}" for key, value in labels.items()]
            self.start(name, command, home / f"{name}.out")
            where = [f"--address=127.0.0.1:{gcs}"]
        wait_for(lambda: self.job("list").returncode == 0)

    def start(self, name: str, command: list[str], output: Path) -> None:
        """Start a node and wait for it; several at a time would choose the same ports."""
        with output.open("w") as file:
            self.nodes[name] = node = subprocess.Popen(
                command, env=self.environment, stdout=file, stderr=subprocess.STDOUT
            )
        wait_for(lambda: "Ray runtime started" in output.read_text() or node.poll() is not None)
        assert node.poll() is None, output.read_text()

    def job(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job …` against it."""
        command = [*RAY, "job", arguments[0], "--address", f"http://127.0.0.1:{self.dashboard}", *arguments[1:]]
        return subprocess.run(
            command,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def submit(self, name: str, *entrypoint: str, wait: bool = False) -> subprocess.CompletedProcess[str]:
        return self.job("submit", "--submission-id", name, *([] if wait else ["--no-wait"]), "--", *entrypoint)

    def hosts(self, role: str) -> set[str]:
        """The nodes that processes of this part are on."""
        processes = [(name, pid) for name, node in self.nodes.items() for pid in descendants(node.pid)]
        return {name for name, pid in processes if TITLES[role] in title(pid)}

    def exported(self, node: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics[node]}/metrics", timeout=10) as page:
            return str(page.read().decode())

    def end(self) -> None:
        for node in reversed(self.nodes.values()):
            for pid in (*descendants(node.pid), node.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            node.wait()


def title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def wait_for(what: Callable[[], Any], why: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, why()
        time.sleep(0.5)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Labelled]:
    """Its head has the file that `ray up` would have left there: one node of each kind is all that there can be."""
    home = tmp_path / "home"
    home.mkdir()
    types = {
        name: {"resources": {"CPU": cpus, "GPU": gpus}, "labels": labels, "node_config": {}, "max_workers": 1}
        for name, (labels, cpus, gpus) in NODES.items()
        if name != "other"
    }
    file = {"cluster_name": "x", "max_workers": 2, "head_node_type": "head", "available_node_types": types}
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(file))
    made = Labelled(home)
    yield made
    made.end()


def test_a_job_is_placed_by_labels_stopped_resumed_and_another_refused(cluster: Labelled, tmp_path: Path) -> None:
    pool = {"num": 2, "num_gpus": 1, "num_cpus": 0.25}
    learners = {"num_gpus": 0, "num_cpus": 1}
    run = Run(tmp_path, "placed", pool=pool, learners=learners, training={"checkpoint_every": 100_000})
    run.file.write_text(json.dumps(run.values))
    train = [sys.executable, str(ROOT / "jobs/train.py"), str(run.file)]

    for without in ({"RAY_AUTH_TOKEN": secrets.token_hex(32)}, {"RAY_AUTH_MODE": "disabled"}):  # a wrong one, and none
        assert cluster.job("list", **without).returncode != 0

    submitted = cluster.submit("placed", *train)
    assert submitted.returncode == 0, submitted.stderr
    wait_for(lambda: run.step() >= 13, lambda: cluster.job("logs", "placed").stdout)
    assert cluster.hosts("generator") == {"generator"}
    assert cluster.hosts("learner") == {"learner"}
    assert cluster.hosts("controller") == {"head"}

    refused = cluster.submit("refused", *train, "--name", "larger", "--pool.num", "6", wait=True)
    assert refused.returncode != 0
    told = cluster.job("logs", "refused").stdout
    assert "genray: pool.num must fit the nodes of the cluster with ray-subcluster=generator (at most 1 " in told
    assert "got 6 generators" in told
    assert "Traceback" not in told

    noting = "from genray.cluster import ray_job; ray_job.add_metadata(mlflow='http://mlflow:5000/#/1')"
    assert cluster.submit("noting", sys.executable, "-c", noting, wait=True).returncode == 0
    assert "'mlflow': 'http://mlflow:5000/#/1'" in cluster.job("list").stdout

    of_the_run = {"genray_step", "genray_loss", "genray_data_wait", "genray_view_age_s", "genray_steps_lost"}
    wait_for(lambda: all(f"ray_{name}{{" in cluster.exported("head") for name in of_the_run))
    of_generators = {name for name, metric in telemetry.METRICS.items() if metric.counter}
    wait_for(lambda: all(f"ray_genray_{name}_total{{" in cluster.exported("generator") for name in of_generators))

    cluster.job("stop", "placed")
    last = checkpoint.last(run.path)
    assert last is not None, cluster.job("logs", "placed").stdout
    stopped = checkpoint.read_step(last)
    cluster.submit("placed-2", *train)
    wait_for(lambda: run.step() >= stopped + 10, lambda: cluster.job("logs", "placed-2").stdout)
    assert cluster.hosts("generator") == {"generator"}
    cluster.job("stop", "placed-2")
    run.assert_exact()
