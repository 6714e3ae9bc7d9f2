"""How far clusters can grow, read from what their autoscalers go by; no cluster is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from ray.autoscaler._private.kuberay import node_provider

from genray.cluster import node_types
from genray.cluster.placement import GENERATOR_NODE, LEARNER_NODE, Fleet, NodeKind
from genray.config.errors import UserError

UP: dict[str, Any] = {
    "cluster_name": "x",
    "max_workers": 5,
    "provider": {"type": "aws", "region": "us-west-2"},
    "head_node_type": "first",
    "available_node_types": {
        "first": {"resources": {"CPU": 0}, "node_config": {}},
        "painter": {
            "resources": {"CPU": 4, "GPU": 1},
            "labels": GENERATOR_NODE,
            "node_config": {},
            "max_workers": 3,
        },
        "other": {"resources": {"CPU": 4}, "node_config": {}},
    },
}
CONTAINER = {"name": "ray", "image": "ray:1", "resources": {"limits": {"cpu": "7500m", "nvidia.com/gpu": 2}}}
GROUP: dict[str, Any] = {
    "groupName": "trainer",
    "labels": LEARNER_NODE,
    "replicas": 1,
    "minReplicas": 0,
    "maxReplicas": 4,
    "rayStartParams": {},
    "template": {"spec": {"containers": [CONTAINER]}},
}
SPEC: dict[str, Any] = {
    "enableInTreeAutoscaling": True,
    "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": {"containers": [CONTAINER]}}},
    "workerGroupSpecs": [GROUP],
}
TRAINER = NodeKind("trainer", 8, 2, LEARNER_NODE, 0, 4)


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(node_types, "BOOTSTRAP_FILE", tmp_path / "bootstrap.yaml")
    for name in ("RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)


def written(path: Path, *documents: Any) -> Path:
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return path


def test_what_ray_up_reads_is_read_with_its_defaults(tmp_path: Path) -> None:
    assert node_types.fleet_from_file(written(tmp_path / "up.yaml", UP)) == Fleet(
        [
            NodeKind("first", 0, 0, {}, 0, 1, head=True),
            NodeKind("painter", 4, 1, GENERATOR_NODE, 0, 3),
            NodeKind("other", 4, 0, {}, 0, 5),  # Ray's default is the limit of all together
        ],
        max_workers=5,
    )


def test_rays_default_limit_is_known() -> None:
    from ray.autoscaler._private.util import prepare_config

    bare = {key: value for key, value in UP.items() if key != "max_workers"}
    assert node_types.fleet_from_ray_up(prepare_config(bare)) == node_types.fleet_from_ray_up(bare)


@pytest.mark.parametrize(
    "manifest", [{"kind": "RayCluster", "spec": SPEC}, {"kind": "RayJob", "spec": {"rayClusterSpec": SPEC}}]
)
def test_manifests_for_kuberay_are_read(tmp_path: Path, manifest: dict[str, Any]) -> None:
    found = node_types.fleet_from_file(written(tmp_path / "k.yaml", {"kind": "Secret"}, manifest))
    assert [kind.head for kind in found.kinds] == [True, False]
    assert found.kinds[0].cpus == 0
    assert found.kinds[1] == TRAINER
    assert found.max_workers == 4


def test_without_an_autoscaler_there_are_only_the_replicas() -> None:
    fixed = node_types.fleet_from_ray_cluster({**SPEC, "enableInTreeAutoscaling": False})
    assert fixed.kinds[1].limit == fixed.max_workers == 1


@pytest.mark.parametrize("text", ["", "a: [", "kind: Pod\n", "- 1\n"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    with pytest.raises(UserError, match=r"^--cluster must be a YAML file that can be read"):
        node_types.fleet_from_file(file)
    file.write_text(text)
    with pytest.raises(UserError, match=r"^--cluster must be "):
        node_types.fleet_from_file(file)


def test_the_head_that_ray_up_made_has_its_file(tmp_path: Path) -> None:
    assert node_types.cluster_limits() is None
    written(node_types.BOOTSTRAP_FILE, UP)
    found = node_types.cluster_limits()
    assert found is not None
    assert found.max_workers == 5


def test_the_head_that_kuberay_made_asks_for_its_object(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Client:
        def __init__(self, namespace: str):
            asked.append(namespace)

        def get(self, path: str) -> dict[str, Any]:
            asked.append(path)
            if "denied" in path:
                raise requests.HTTPError("403")
            return {"spec": SPEC}

    monkeypatch.setattr(node_provider, "KubernetesHttpApiClient", Client)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "mine")
    monkeypatch.setenv("RAY_CLUSTER_NAMESPACE", "lab")
    found = node_types.cluster_limits()
    assert found is not None
    assert found.kinds[1] == TRAINER
    assert asked == ["lab", "rayclusters/mine"]
    monkeypatch.setenv("RAY_CLUSTER_NAME", "denied")
    assert node_types.cluster_limits() is None


def test_outside_of_kubernetes_there_is_nothing_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CLUSTER_NAME", "mine")
    monkeypatch.setenv("RAY_CLUSTER_NAMESPACE", "lab")
    assert node_types.cluster_limits() is None
