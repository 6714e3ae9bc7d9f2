"""Starting or joining a Ray cluster, and asking whether it has room for a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from genray.cluster import node_types, placement
from genray.cluster.placement import ROLE_LABEL, SUBCLUSTER_LABEL, Fleet, NodeKind, Verdict
from genray.config.errors import ConfigError
from genray.config.run import Config

START_ATTEMPTS = 3
RESERVATION_S = 30
"""Seconds for which Ray Data keeps resources reserved for a stream that was killed; Ray's default is 180."""
HEAD_RESOURCE = "node:__internal_head__"
"""Name of the resource that only the head has."""
NODE_TYPE_LABEL = "ray.io/node-group"
"""Ray's label with the node type that an autoscaler created a node from."""


@contextmanager
def joined(address: str | None = None) -> Iterator[bool]:
    """Join the cluster at `address` or RAY_ADDRESS, or start one on this machine, with Ray's own output silenced.

    If this process is connected to Ray already, that connection is used and left open. Yields whether nodes may be
    added to the cluster: False only for a Ray that this call starts.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    # Read when ray is imported. Deaths of generators are reported from faults.jsonl instead.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "so the task will be retried")
    import ray

    if ray.is_initialized():
        yield True
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        _start(address)
        yield bool(address)
    finally:
        ray.shutdown()


def _start(address: str | None) -> None:
    import ray

    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    # A report of the learners blocks until the previous one has been fetched, by default only every 2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")  # a learner that hangs does not respond
    if not address:  # a single machine starts seconds faster without what only a cluster needs
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        # Ray keeps records of this many tasks: its default of 100 000 takes 600 MiB in a long stream.
        os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "2000")
        os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", str(RESERVATION_S))
    options = {"address": address} if address else {"address": "local", "include_dashboard": False}
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            break
        except ConnectionError:
            raise ConfigError(f"--address must be that of a running Ray cluster, got {address!r}") from None
        except Exception:  # on a busy machine Ray's own processes can miss their deadline
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise
    logging.getLogger("ray").setLevel(logging.ERROR)


def hardware() -> dict[str, float]:
    """The numbers of the cluster's `nodes`, `cpus` and `gpus`."""
    import ray

    total = ray.cluster_resources()
    return {"nodes": len(ray.nodes()), "cpus": total.get("CPU", 0.0), "gpus": total.get("GPU", 0.0)}


def free_reservations() -> None:
    """Release the resources reserved for the learners, after the controller that would do so has died.

    Only for a Ray that was started here, in which all reservations are the run's. Ray Train's own helper needs the
    dashboard to ask whether the controller is alive, and such a Ray has none.
    """
    from ray import PlacementGroupID
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def fleet(autoscaling: bool) -> Fleet:
    """The nodes of the joined cluster, with how many there can be if that is known.

    Args:
        autoscaling: whether nodes may be added to the cluster.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    existing = Fleet(_kinds(alive), limits_known=not autoscaling)
    heads = [node["NodeID"] for node in alive if HEAD_RESOURCE in node["Resources"]]
    on_the_head = autoscaling and ray.get_runtime_context().get_node_id() in heads
    limits = node_types.cluster_limits() if on_the_head else None
    return limits.with_existing(existing) if limits else existing


def _kinds(nodes: Sequence[Mapping[str, Any]]) -> list[NodeKind]:
    """Ray's nodes by kind, named after their node type if they have one."""
    kinds: dict[tuple[Any, ...], NodeKind] = {}
    for node in nodes:
        labels, resources = node["Labels"], node["Resources"]
        own = {key: labels[key] for key in (SUBCLUSTER_LABEL, ROLE_LABEL) if key in labels}
        name = labels.get(NODE_TYPE_LABEL) or next(iter(own.values()), "node")
        cpus, gpus, head = resources.get("CPU", 0.0), resources.get("GPU", 0.0), HEAD_RESOURCE in resources
        key = (name, cpus, gpus, *own.items(), head)
        if key in kinds:
            number = kinds[key].count + 1
            kinds[key] = replace(kinds[key], count=number, limit=number)
        else:
            taken = any(kind.name == name for kind in kinds.values())
            unique_name = f"{name} of {cpus:g} CPUs and {gpus:g} GPUs" if taken else name
            kinds[key] = NodeKind(unique_name, cpus, gpus, own, count=1, limit=1, head=head)
    return list(kinds.values())


def by_labels(config: Config) -> bool:
    """Whether a run is placed by labels in the joined cluster."""
    return placement.by_labels(config, fleet(autoscaling=False))


def fits(config: Config) -> bool:
    """Whether the cluster has room now for the least that a run needs."""
    current = fleet(autoscaling=False)
    return placement.pack(placement.parts(config, placement.by_labels(config, current)), current).unplaced is None


def check_placement(config: Config, autoscaling: bool) -> Verdict:
    """Whether the cluster has room for the run.

    Raises:
        ConfigError: the run needs more than the cluster can have. If that is not known, the line says so.
    """
    return placement.verdict(config, fleet(autoscaling), cluster_name(autoscaling))


def cluster_name(autoscaling: bool) -> str:
    """What messages call the cluster."""
    return "the cluster" if autoscaling else "this machine"
