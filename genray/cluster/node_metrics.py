"""The load on the nodes of a run and their GPUs, under the names of MLflow's own system metrics.

Every node of a Ray cluster already measures itself and exports the values in Prometheus' text format. Reading them
needs no process and no library on the nodes. (MLflow's own monitor sees only the node that it runs on, and ends when
the tracking server does not answer.)
"""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from genray.runs import jsonl

TIMEOUT_S = 5.0
"""Seconds in which a node must answer; one that does not is missing from the sample."""
PARALLEL_READS = 16
MB, MIB = 1e6, 2**20

_LINE = re.compile(r"^ray_node_(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_GPU = re.compile(r'GpuIndex="(\d+)"')


class Node(NamedTuple):
    """A node of the cluster."""

    name: str
    """Its host name, with the start of its id if several nodes have the same host name."""
    address: str
    """Address of its exported metrics."""


def nodes() -> list[Node]:
    """The live nodes of the cluster that this process has joined."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    hosts = [node["NodeManagerHostname"] for node in alive]
    return [
        Node(
            host if hosts.count(host) == 1 else f"{host}-{node['NodeID'][:6]}",
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics",
        )
        for host, node in zip(hosts, alive, strict=True)
    ]


def parse(text: str) -> dict[str, float]:
    """MLflow's system metrics of a node from the text that Ray exports, as far as it has them.

    >>> parse('ray_node_cpu_utilization{ip="10.0.0.2"} 42.5')
    {'cpu_utilization_percentage': 42.5}
    """
    exported = {
        (name, gpu[1] if (gpu := _GPU.search(labels)) else ""): float(value)
        for name, labels, value in _LINE.findall(text)
    }
    return dict(_named(exported))


def _named(exported: Mapping[tuple[str, str], float]) -> Iterator[tuple[str, float]]:
    def scaled(name: str, ray_name: str, scale: float, gpu: str = "") -> Iterator[tuple[str, float]]:
        if (value := exported.get((ray_name, gpu))) is not None:
            yield name, value * scale

    def percentage(name: str, used: str, total: float | None, gpu: str = "") -> Iterator[tuple[str, float]]:
        if (value := exported.get((used, gpu))) is not None and total:
            yield name, 100 * value / total

    yield from scaled("cpu_utilization_percentage", "cpu_utilization", 1)
    yield from scaled("system_memory_usage_megabytes", "mem_used", 1 / MB)
    yield from percentage("system_memory_usage_percentage", "mem_used", exported.get(("mem_total", "")))
    yield from scaled("disk_usage_percentage", "disk_utilization_percentage", 1)
    yield from scaled("network_receive_megabytes", "network_received", 1 / MB)
    yield from scaled("network_transmit_megabytes", "network_sent", 1 / MB)
    for gpu in sorted({gpu for _, gpu in exported if gpu}, key=int):
        used, free = (exported.get((name, gpu), 0.0) for name in ("gram_used", "gram_available"))
        yield from scaled(f"gpu_{gpu}_utilization_percentage", "gpus_utilization", 1, gpu)
        yield from scaled(f"gpu_{gpu}_memory_usage_megabytes", "gram_used", MIB / MB, gpu)  # Ray reports MiB
        yield from percentage(f"gpu_{gpu}_memory_usage_percentage", "gram_used", used + free, gpu)
        yield from scaled(f"gpu_{gpu}_power_usage_watts", "gpu_power_milliwatts", 1e-3, gpu)


def read_nodes(alone: bool) -> dict[str, float]:
    """The metrics of all nodes as `system/<node>/<metric>`, or as `system/<metric>` for a machine that is `alone`."""
    alive = nodes()
    with ThreadPoolExecutor(PARALLEL_READS) as readers:
        per_node = list(readers.map(_read_node, alive))
    return {
        f"system/{key}" if alone else f"system/{node.name}/{key}": value
        for node, metrics in zip(alive, per_node, strict=True)
        for key, value in metrics.items()
    }


def _read_node(node: Node) -> dict[str, float]:
    try:
        with urllib.request.urlopen(node.address, timeout=TIMEOUT_S) as answer:
            return parse(answer.read().decode())
    except (OSError, ValueError):  # it is just starting or being lost
        return {}


@contextmanager
def sampled(file: Path, steps: Path, every_s: float | None, read: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Append a sample to `file` every few seconds while the block runs, with the step that the run has reached.

    Args:
        file: the file to append to.
        steps: the run's metrics.jsonl, which has the step.
        every_s: seconds between two samples; None disables them.
        read: returns the metrics of one sample.
    """
    over = threading.Event()

    def sample() -> None:
        follower, step = jsonl.Follower(steps), 0
        while not over.wait(every_s):
            try:
                step = max([step, *(record["step"] for record in follower.new() if "step" in record)])
                if metrics := read():
                    jsonl.append(file, {"step": step, "time": time.time(), **metrics})
            except Exception:  # a run does not depend on it, and the next sample may succeed
                continue

    thread = threading.Thread(target=sample, name="genray-system", daemon=True)
    if every_s is not None:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if every_s is not None:
            thread.join(2 * TIMEOUT_S)
