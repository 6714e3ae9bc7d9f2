"""Nodes of a cluster that go, come, and give notice, while a run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Run
from ray.cluster_utils import Cluster

from genray import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WHOLE = {"num_gpus": 0, "num_cpus": 1}
"""A process of this kind fills a node of one CPU."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, for the driver and the controller, and three nodes of one CPU."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(3):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def start(run: Run, cluster: Cluster, *overrides: str) -> None:
    run.root = os.getpid()
    run.start("--address", cluster.address, *overrides, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5")


def node_of(run: Run, role: str, cluster: Cluster) -> Any:
    """The node that a part of the run is on."""
    (pid,) = run.wait_for(lambda: run.pids(role))
    parents = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        parents.add(pid)
    (found,) = [node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid in parents]
    return found


@pytest.mark.parametrize("role", ["generator", "learner"])
def test_a_node_that_is_lost_is_replaced(role: str, cluster: Cluster, tmp_path: Path) -> None:
    run = Run(tmp_path, f"lost-{role}", generators=WHOLE, learners=WHOLE)
    start(run, cluster)
    run.wait_for(lambda: run.step() >= 13)
    cluster.remove_node(node_of(run, role, cluster), allow_graceful=False)
    cluster.add_node(num_cpus=1)
    run.progress(40)
    assert run.stop() == 75
    run.assert_exact()


def test_a_node_that_gives_notice_costs_no_more_than_its_last_seconds(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(tmp_path, "notice", generators=WHOLE, learners=WHOLE, training={"checkpoint_every": 100_000})
    start(run, cluster)
    run.wait_for(lambda: run.step() >= 13)
    node = node_of(run, "learner", cluster)
    assert checkpoint.last(run.path) is None
    drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
    drain += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*drain, "--deadline-remaining-seconds", "12"], check=True, capture_output=True)
    saved = run.wait_for(lambda: checkpoint.last(run.path))
    place = checkpoint.read_place(saved)
    cluster.add_node(num_cpus=1)
    time.sleep(12)
    cluster.remove_node(node, allow_graceful=False)
    run.progress(40)
    assert run.stop() == 75
    assert place.step > 0
    run.assert_exact()


def test_learners_grow_and_shrink_with_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=2)  # a learner takes a node of two CPUs, which nothing else needs
    learners = {"num_gpus": 0, "num_cpus": 2, "num_workers": [1, 2], "resize_every_s": 5}
    run = Run(tmp_path, "elastic", generators=WHOLE, learners=learners)
    start(run, cluster)

    def working(number: int) -> bool:
        return bool(run.batches()) and run.batches()[-1]["learners"] == number

    run.wait_for(lambda: run.step() >= 13)
    assert working(1)
    another = cluster.add_node(num_cpus=2)
    run.wait_for(lambda: working(2))
    run.progress(20)
    cluster.remove_node(another, allow_graceful=False)
    run.wait_for(lambda: working(1))
    run.progress(20)
    assert run.stop() == 75
    found = run.batches()
    assert found == list(run.expected_of(found))
