"""How many nodes of which kinds a cluster can have, read from its autoscaler's configuration.

Ray has no call for it. But a job runs on the head, which has a copy of the file that `ray up` was given, or may read
the RayCluster that KubeRay was given.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from genray.cluster.placement import Fleet, NodeKind
from genray.config.errors import UserError

BOOTSTRAP_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` puts its file on the head."""
DEFAULT_MAX_WORKERS = 2
"""Ray's default for a cluster. The default for a node type is the cluster's limit."""


def cluster_limits() -> Fleet | None:
    """The fleet that the cluster can have whose head this machine is; None if its configuration cannot be read."""
    if (file := BOOTSTRAP_FILE.expanduser()).exists():
        return fleet_from_file(file)
    name, namespace = os.environ.get("RAY_CLUSTER_NAME"), os.environ.get("RAY_CLUSTER_NAMESPACE")
    return _of_kuberay(name, namespace) if name and namespace else None


def fleet_from_file(path: Path) -> Fleet:
    """The fleet described by a file for `ray up`, or by a manifest with a RayCluster or a RayJob.

    Raises:
        UserError: the file is none of these.
    """
    try:
        documents = [content for content in yaml.safe_load_all(path.read_text()) if isinstance(content, dict)]
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--cluster must be a YAML file that can be read, got '{path}' ({error})") from None
    for document in documents:
        if document.get("kind") == "RayCluster":
            return fleet_from_ray_cluster(document["spec"])
        if document.get("kind") == "RayJob":
            return fleet_from_ray_cluster(document["spec"]["rayClusterSpec"])
        if "available_node_types" in document:
            return fleet_from_ray_up(document)
    raise UserError(f"--cluster must be a file for `ray up`, or a RayCluster or RayJob manifest, got '{path}'")


def fleet_from_ray_up(config: dict[str, Any]) -> Fleet:
    """The fleet described by the configuration of `ray up`."""
    max_workers = config.get("max_workers", DEFAULT_MAX_WORKERS)
    return _fleet(config["available_node_types"], config["head_node_type"], max_workers)


def fleet_from_ray_cluster(spec: dict[str, Any]) -> Fleet:
    """The fleet described by a RayCluster's specification; without an autoscaler each group keeps its `replicas`."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec

    types = _generate_available_node_types_from_ray_cr_spec(spec)
    if not spec.get("enableInTreeAutoscaling"):
        for group in spec.get("workerGroupSpecs", ()):
            types[group["groupName"]]["max_workers"] = group.get("replicas", 0) * group.get("numOfHosts", 1)
    head, *_ = types
    return _fleet(types, head, sum(kind["max_workers"] for kind in types.values()))


def _of_kuberay(name: str, namespace: str) -> Fleet | None:
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        return fleet_from_ray_cluster(KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")["spec"])
    except OSError:  # no service account, or one that may not read it
        return None


def _fleet(types: dict[str, Any], head: str, max_workers: int) -> Fleet:
    kinds = [
        NodeKind(
            name=name,
            cpus=float(node_type["resources"].get("CPU", 0)),
            gpus=float(node_type["resources"].get("GPU", 0)),
            labels=node_type.get("labels") or {},
            count=0,
            limit=1 if name == head else node_type.get("max_workers", max_workers),
            head=name == head,
        )
        for name, node_type in types.items()
    ]
    return Fleet(kinds, max_workers)
