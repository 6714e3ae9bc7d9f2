"""A cluster of several nodes on this machine, and a run on it whose nodes can be taken away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import Run
from ray.cluster_utils import Cluster

WHOLE = {"num_gpus": 0, "num_cpus": 1}
"""A process of this kind fills a node of one CPU."""
NOTICE_S = 12


class Nodes:
    """A head without CPUs, for the driver and the controller, and three nodes of one CPU."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(3):
            self.cluster.add_node(num_cpus=1)

    def start(self, run: Run) -> None:
        """Start a run in the cluster."""
        run.root = os.getpid()
        run.start("--address", self.cluster.address, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5")

    def lose(self, node: Any) -> None:
        """Take a node away at once, and give another one."""
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(num_cpus=1)

    def give_notice(self, node: Any, seconds: int = NOTICE_S) -> None:
        """Tell that a node will be taken away in so many seconds."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.cluster.address]
        command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], check=True, capture_output=True)

    def lose_after_notice(self, node: Any) -> None:
        """Give notice, wait until it is over, and take the node away."""
        self.give_notice(node)
        time.sleep(NOTICE_S)
        self.lose(node)

    def of(self, run: Run, role: str) -> Any:
        """A node that a part of the run is on."""
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in self.cluster.worker_nodes}
        for pid in run.wait_for(lambda: run.pids(role)):
            while pid > 1 and pid not in raylets:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if pid in raylets:
                return raylets[pid]
        raise AssertionError(f"no {role} is on a worker node")
