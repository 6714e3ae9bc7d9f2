"""How busy the nodes of a run and their GPUs are, under the names of MLflow's own system metrics.

Each node of a Ray cluster already measures itself and shows it at an address of its own, in the text format of
Prometheus. Reading that needs no process and no library on any node. (MLflow's monitor sees the node it runs on alone,
and writes to the server itself, which would end it when the server is away.)
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

from genray import records

TIMEOUT_S = 5.0
"""Seconds that a node has to answer; one that does not is left out of a look."""
READERS = 16
MB, MIB = 1e6, 2**20

_LINE = re.compile(r"^ray_node_(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_GPU = re.compile(r'GpuIndex="(\d+)"')


class Node(NamedTuple):
    """A node of the cluster."""

    name: str
    """Its host name; with the start of its id, where several nodes of the cluster have that."""
    address: str
    """Where it shows its metrics."""


def nodes() -> list[Node]:
    """The nodes that are alive, of the cluster that this process is in."""
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
    """MLflow's system metrics of a node from what Ray shows of it; what it does not show is left out.

    >>> parse('ray_node_cpu_utilization{ip="10.0.0.2"} 42.5')
    {'cpu_utilization_percentage': 42.5}
    """
    shown = {
        (name, gpu[1] if (gpu := _GPU.search(labels)) else ""): float(value)
        for name, labels, value in _LINE.findall(text)
    }
    return dict(_named(shown))


def _named(shown: Mapping[tuple[str, str], float]) -> Iterator[tuple[str, float]]:
    def scaled(name: str, ray_name: str, scale: float, gpu: str = "") -> Iterator[tuple[str, float]]:
        if (value := shown.get((ray_name, gpu))) is not None:
            yield name, value * scale

    def share(name: str, used: str, of: float | None, gpu: str = "") -> Iterator[tuple[str, float]]:
        if (value := shown.get((used, gpu))) is not None and of:
            yield name, 100 * value / of

    yield from scaled("cpu_utilization_percentage", "cpu_utilization", 1)
    yield from scaled("system_memory_usage_megabytes", "mem_used", 1 / MB)
    yield from share("system_memory_usage_percentage", "mem_used", shown.get(("mem_total", "")))
    yield from scaled("disk_usage_percentage", "disk_utilization_percentage", 1)
    yield from scaled("network_receive_megabytes", "network_received", 1 / MB)
    yield from scaled("network_transmit_megabytes", "network_sent", 1 / MB)
    for gpu in sorted({gpu for _, gpu in shown if gpu}, key=int):
        used, free = (shown.get((name, gpu), 0.0) for name in ("gram_used", "gram_available"))
        yield from scaled(f"gpu_{gpu}_utilization_percentage", "gpus_utilization", 1, gpu)
        yield from scaled(f"gpu_{gpu}_memory_usage_megabytes", "gram_used", MIB / MB, gpu)  # Ray counts it in MiB
        yield from share(f"gpu_{gpu}_memory_usage_percentage", "gram_used", used + free, gpu)
        yield from scaled(f"gpu_{gpu}_power_usage_watts", "gpu_power_milliwatts", 1e-3, gpu)


def look(alone: bool) -> dict[str, float]:
    """The metrics of all nodes, `system/<node>/<metric>`; of a machine that is `alone`, `system/<metric>`."""
    there = nodes()
    with ThreadPoolExecutor(READERS) as readers:
        found = list(readers.map(_of_node, there))
    return {
        f"system/{key}" if alone else f"system/{node.name}/{key}": value
        for node, of in zip(there, found, strict=True)
        for key, value in of.items()
    }


def _of_node(node: Node) -> dict[str, float]:
    try:
        with urllib.request.urlopen(node.address, timeout=TIMEOUT_S) as answer:
            return parse(answer.read().decode())
    except (OSError, ValueError):  # it starts, or it is about to be lost
        return {}


@contextmanager
def watched(file: Path, steps: Path, every_s: float | None, look: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Append a record to `file` every few seconds while the block runs, under the step that the run has reached.

    Args:
        file: takes the records.
        steps: the file of records of the run.
        every_s: seconds between two looks; None does nothing.
        look: gives the metrics of one look.
    """
    over = threading.Event()

    def watch() -> None:
        follower, step = records.Follower(steps), 0
        while not over.wait(every_s):
            try:
                step = max([step, *(record["step"] for record in follower.new() if "step" in record)])
                if found := look():
                    records.append(file, {"step": step, "time": time.time(), **found})
            except Exception:  # a run does not depend on being watched; the next look may succeed
                continue

    thread = threading.Thread(target=watch, name="genray-system", daemon=True)
    if every_s is not None:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if every_s is not None:
            thread.join(2 * TIMEOUT_S)
