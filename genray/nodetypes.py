"""How many nodes of which kinds a cluster can have, from what its autoscaler goes by.

Ray does not tell: only its autoscaler knows the node types. But the head of a cluster that `ray up` made has a copy of
its file, and that of one that KubeRay made may read its RayCluster; a job runs on the head.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from genray.placement import Fleet, Nodes
from genray.settings import UserError

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` puts its file on the head."""
MAX_WORKERS = 2
"""Ray's own default for a cluster; that for a node type is the cluster's."""


def here() -> Fleet | None:
    """Of the cluster whose head this is; None where nothing tells."""
    if (file := BOOTSTRAP.expanduser()).exists():
        return of_file(file)
    name, namespace = os.environ.get("RAY_CLUSTER_NAME"), os.environ.get("RAY_CLUSTER_NAMESPACE")
    return _of_kuberay(name, namespace) if name and namespace else None


def of_file(path: Path) -> Fleet:
    """Of a file for `ray up`, or of a manifest with a RayCluster or a RayJob.

    Raises:
        UserError: the file is none of these.
    """
    try:
        documents = [found for found in yaml.safe_load_all(path.read_text()) if isinstance(found, dict)]
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--cluster must be a YAML file that can be read, got '{path}' ({error})") from None
    for document in documents:
        if document.get("kind") == "RayCluster":
            return of_ray_cluster(document["spec"])
        if document.get("kind") == "RayJob":
            return of_ray_cluster(document["spec"]["rayClusterSpec"])
        if "available_node_types" in document:
            return of_ray_up(document)
    raise UserError(f"--cluster must be a file for `ray up`, or a RayCluster or RayJob manifest, got '{path}'")


def of_ray_up(config: dict[str, Any]) -> Fleet:
    """Of what `ray up` reads."""
    return _fleet(config["available_node_types"], config["head_node_type"], config.get("max_workers", MAX_WORKERS))


def of_ray_cluster(spec: dict[str, Any]) -> Fleet:
    """Of the specification of a RayCluster; without an autoscaler it keeps its `replicas`."""
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
        return of_ray_cluster(KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")["spec"])
    except OSError:  # no service account, or one that may not read it
        return None


def _fleet(types: dict[str, Any], head: str, workers: int) -> Fleet:
    kinds = [
        Nodes(
            kind=name,
            cpus=float(found["resources"].get("CPU", 0)),
            gpus=float(found["resources"].get("GPU", 0)),
            labels=found.get("labels") or {},
            there=0,
            most=1 if name == head else found.get("max_workers", workers),
            head=name == head,
        )
        for name, found in types.items()
    ]
    return Fleet(kinds, workers)
