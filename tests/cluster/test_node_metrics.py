"""How busy nodes are: what Ray shows becomes MLflow's names, and nothing of it can hurt a run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from genray.cluster import node_metrics
from genray.runs import jsonl

HOST = 'IsHeadNode="true",ip="10.0.0.2"'
GPU = f'{HOST},GpuDeviceName="NVIDIA H200",GpuIndex="1"'
SHOWN = f"""
# HELP ray_node_cpu_utilization Total CPU usage on a ray node
# TYPE ray_node_cpu_utilization gauge
ray_node_cpu_utilization{{{HOST}}} 42.5
ray_node_mem_used{{{HOST}}} 4e+09
ray_node_mem_total{{{HOST}}} 1.6e+10
ray_node_network_sent{{{HOST}}} 3e+06
ray_node_gpus_utilization{{{GPU}}} 90.0
ray_node_gram_used{{{GPU}}} 1000.0
ray_node_gram_available{{{GPU}}} 3000.0
ray_node_gpu_power_milliwatts{{{GPU}}} 650000.0
ray_component_cpu_percentage{{Component="raylet"}} 7.0
"""


def test_what_ray_shows_gets_the_names_of_mlflow() -> None:
    assert node_metrics.parse(SHOWN) == pytest.approx(
        {
            "cpu_utilization_percentage": 42.5,
            "system_memory_usage_megabytes": 4000,
            "system_memory_usage_percentage": 25,
            "network_transmit_megabytes": 3,
            "gpu_1_utilization_percentage": 90,
            "gpu_1_memory_usage_megabytes": 1000 * 1.048576,
            "gpu_1_memory_usage_percentage": 25,
            "gpu_1_power_usage_watts": 650,
        }
    )
    assert node_metrics.parse("") == {}


@pytest.fixture
def node() -> Any:
    """A node that shows the metrics above."""

    class Shows(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SHOWN.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Shows)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def nodes(*described: tuple[str, int, bool]) -> list[dict[str, Any]]:
    return [
        {
            "Alive": alive,
            "NodeManagerHostname": host,
            "NodeManagerAddress": "127.0.0.1",
            "MetricsExportPort": port,
            "NodeID": f"{number}bcdef0123",
        }
        for number, (host, port, alive) in enumerate(described)
    ]


def test_every_node_that_lives_and_answers_is_looked_at(node: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(node_metrics, "TIMEOUT_S", 60.0)  # for a busy machine
    monkeypatch.setattr(ray, "nodes", lambda: nodes(("a", node, True), ("b", node, False), ("c", 9, True)))
    found = node_metrics.read_nodes(alone=False)
    assert found["system/a/gpu_1_utilization_percentage"] == 90
    assert {key.split("/")[1] for key in found} == {"a"}
    monkeypatch.setattr(ray, "nodes", lambda: nodes(("a", node, True), ("a", node, True)))
    assert {key.split("/")[1] for key in node_metrics.read_nodes(alone=False)} == {"a-0bcdef", "a-1bcdef"}
    monkeypatch.setattr(ray, "nodes", lambda: nodes(("a", node, True)))
    assert node_metrics.read_nodes(alone=True)["system/cpu_utilization_percentage"] == 42.5


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_looks_are_recorded_under_the_steps_of_the_run(tmp_path: Path) -> None:
    file, steps = tmp_path / "system.jsonl", tmp_path / "metrics.jsonl"
    looks = iter([{"system/a": 1.0}, OSError("a node is gone"), {}, *[{"system/a": 2.0}] * 10_000])

    def look() -> dict[str, float]:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    with node_metrics.sampled(file, steps, 0.02, look):
        until(file.exists)
        steps.write_text(json.dumps({"step": 7, "time": 0}) + "\n")
        until(lambda: jsonl.last(file)["step"] == 7)
    found = jsonl.read(file)
    assert (found[0]["step"], found[0]["system/a"]) == (0, 1.0)
    assert {line["system/a"] for line in found[1:]} == {2.0}
    after = len(found)
    time.sleep(0.1)
    assert len(jsonl.read(file)) == after


def test_a_run_need_not_be_watched(tmp_path: Path) -> None:
    with node_metrics.sampled(tmp_path / "system.jsonl", tmp_path / "metrics.jsonl", None, dict):
        pass
    assert not (tmp_path / "system.jsonl").exists()
