"""What a cluster has as Ray tells it, and what is said of a run on it; no Ray is started."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from fakes import small

from genray.cli.training import Train
from genray.cluster import node_types, ray_cluster
from genray.cluster.placement import GENERATOR_NODE, HEAD_NODE, LEARNER_NODE, Fleet, NodeKind
from genray.commands.train import dry_run
from genray.config.errors import ConfigError, UserError
from genray.config.load import load

ON_CPUS = {"learners": {"num_gpus": 0}, "pool": {"num_gpus": 0}}


def node(cpus: float, gpus: float = 0, head: bool = False, alive: bool = True, **labels: str) -> dict[str, Any]:
    """A node as `ray.nodes` tells it."""
    resources = {"CPU": cpus, "GPU": gpus, "memory": 1e9} | ({ray_cluster.HEAD_RESOURCE: 1.0} if head else {})
    labels = {"ray.io/node-id": "x", **labels}
    return {"NodeID": "head" if head else "x", "Alive": alive, "Resources": resources, "Labels": labels}


def given(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, Any]) -> None:
    """Let Ray tell of these nodes, on the first of which this process is."""
    monkeypatch.setattr(ray, "nodes", lambda: list(nodes))
    context = SimpleNamespace(get_node_id=lambda: nodes[0]["NodeID"])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 4 CPUs and no GPU."""
    given(monkeypatch, node(4, head=True))


@pytest.mark.usefixtures("machine")
def test_a_run_that_fits_is_told_so() -> None:
    found = ray_cluster.check_placement(small(**ON_CPUS), autoscaling=False)
    assert found.fits
    assert found.line == "fits: the run needs 3 CPUs and 0 GPUs, this machine has 4 CPUs and 0 GPUs"
    assert ray_cluster.fits(small(**ON_CPUS))
    assert not ray_cluster.by_labels(small())


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("sections", "ask", "remedy"),
    [
        ({}, "3 CPUs and 2 GPUs", "set learners.num_gpus and pool.num_gpus to 0 to run on CPUs"),
        (
            {**ON_CPUS, "pool": {"num_gpus": 0, "num": [5, 6]}},
            "7 CPUs and 0 GPUs",
            "lower pool.num, pool.num_cpus, learners.num_workers or learners.num_cpus (Ray Data itself needs 1)",
        ),
    ],
)
def test_a_machine_alone_refuses_what_it_cannot_hold_and_a_cluster_waits(
    sections: dict[str, Any], ask: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as error:
        ray_cluster.check_placement(small(**sections), autoscaling=False)
    assert str(error.value) == (
        f"generators and learners must fit this machine (4 CPUs and 0 GPUs), got a request of {ask}; {remedy}"
    )
    assert not ray_cluster.fits(small(**sections))
    said = ray_cluster.check_placement(small(**sections), autoscaling=True).line
    assert said.startswith(f"does not fit yet: the run needs {ask}, ")


def test_nodes_are_counted_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    given(
        monkeypatch,
        node(0, head=True, **HEAD_NODE),
        *[node(4, 1, **GENERATOR_NODE)] * 2,
        node(8, 2, **GENERATOR_NODE),
        node(8, 1, **LEARNER_NODE, **{ray_cluster.NODE_TYPE_LABEL: "trainer"}),
        node(8, 1, alive=False, **LEARNER_NODE),
    )
    assert ray_cluster.fleet(autoscaling=True) == Fleet(
        [
            NodeKind("head", 0, 0, HEAD_NODE, 1, 1, head=True),
            NodeKind("generator", 4, 1, GENERATOR_NODE, 2, 2),
            NodeKind("generator of 8 CPUs and 2 GPUs", 8, 2, GENERATOR_NODE, 1, 1),
            NodeKind("trainer", 8, 1, LEARNER_NODE, 1, 1),
        ],
        limits_known=False,
    )
    assert ray_cluster.by_labels(small())


def test_on_the_head_of_an_autoscaled_cluster_it_is_known_how_far_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Fleet(
        [
            NodeKind("head", 0, 0, HEAD_NODE, 0, 1, head=True),
            NodeKind("trainer", 8, 1, LEARNER_NODE, 0, 2),
            NodeKind("painter", 4, 1, GENERATOR_NODE, 0, 3),
        ]
    )
    monkeypatch.setattr(node_types, "cluster_limits", lambda: limits)
    head = node(0, head=True, **HEAD_NODE, **{ray_cluster.NODE_TYPE_LABEL: "head"})
    painter = node(4, 1, **GENERATOR_NODE, **{ray_cluster.NODE_TYPE_LABEL: "painter"})
    given(monkeypatch, head, painter)
    assert [(kind.count, kind.limit) for kind in ray_cluster.fleet(autoscaling=True).kinds] == [(1, 1), (0, 2), (1, 3)]
    assert ray_cluster.check_placement(small(), autoscaling=True).line.startswith("fits once it has grown: ")
    with pytest.raises(ConfigError, match=r"^learners\.num_workers must fit the nodes of the cluster with "):
        ray_cluster.check_placement(small(learners={"num_workers": 2, "num_gpus": 2}), autoscaling=True)
    given(monkeypatch, painter, head)  # from another node nothing of it can be seen
    assert not ray_cluster.fleet(autoscaling=True).limits_known
    given(monkeypatch, head, painter)  # a Ray of its own is not that cluster
    assert ray_cluster.fleet(autoscaling=False).limits_known
    assert [kind.limit for kind in ray_cluster.fleet(autoscaling=False).kinds] == [1, 1]


@pytest.mark.usefixtures("machine")
def test_a_dry_run_tells_what_follows_and_writes_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "joined", lambda address: nullcontext(False))
    said: list[str] = []
    config = load("demo", ["--name", "first", "--storage_path", str(tmp_path)])
    dry_run(config, say=said.append)
    told = {line[:14].strip(): line[15:] for line in said}
    assert {"generator", "views", "batch / step", "ticket", "run", "generators", "look-ahead"} <= told.keys()
    assert told["cluster"].startswith("fits: the run needs 2 CPUs")
    assert "nodes" not in told
    assert told["configuration"] == str(tmp_path / "first" / "config.json")
    assert load(str(tmp_path / "first")) == config
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["config.json", "run.lock"]


def test_a_dry_run_asks_a_described_cluster_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "joined", lambda address: pytest.fail("Ray is not needed"))
    fleet = Fleet([NodeKind("gpu", 8, 2, {}, 0, 3)])
    monkeypatch.setattr(node_types, "fleet_from_file", lambda path: fleet if path == Path("it.yaml") else None)
    said: list[str] = []
    config = load("biggan128-simclr", ["--name", "b", "--storage_path", str(tmp_path)])
    dry_run(config, say=said.append, cluster_file=Path("it.yaml"))
    told = {line[:14].strip(): line[15:] for line in said}
    assert told["cluster"].endswith("the cluster has 0 CPUs and 0 GPUs and can have 24 CPUs and 6 GPUs")
    assert told["nodes"].startswith("at least 1 x gpu")


@pytest.mark.parametrize("more", [{"dry_run": False}, {"dry_run": True, "address": "head:6379"}])
def test_a_described_cluster_is_for_a_dry_run_without_an_address(more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^--cluster must come with --dry-run and without --address, got 'it.yaml'$"):
        Train("demo", cluster=Path("it.yaml"), **more)([])
