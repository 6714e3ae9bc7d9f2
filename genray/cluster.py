"""The Ray side of a run: starting or joining a cluster quietly, and asking whether a request can ever be placed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from genray import nodetypes, placement
from genray.config import Config
from genray.placement import ROLE, SUBCLUSTER, Fleet, Nodes
from genray.settings import ConfigError

ATTEMPTS = 3
RESERVED_S = 30
"""Seconds for which a stream that was killed keeps what it had from the pool of the next one; Ray's default is 180."""
HEAD = "node:__internal_head__"
"""Ray's resource of the head."""
NODE_TYPE = "ray.io/node-group"
"""Ray's label with the node type that an autoscaler made a node of."""


@contextmanager
def joined(address: str | None = None) -> Iterator[bool]:
    """Be in the cluster at `address` or RAY_ADDRESS, else in one started on this machine; Ray's chatter stays off.

    A Ray that this process is in already is used as it is, and left running. Yields whether nodes may be added to the
    cluster: not to one that was started here.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    # Read when ray is imported. That a generator died is told from faults.jsonl.
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
    # Learners wait in a report until the one before it has been fetched; with Ray's default that is every 2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")  # a learner that hangs does not answer
    if not address:  # what only a cluster of several nodes needs costs seconds of start-up on one
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        # Ray keeps a record of so many tasks; with its default of 100 000 a long stream takes 600 MiB for them.
        os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "2000")
        os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", str(RESERVED_S))
    options = {"address": address} if address else {"address": "local", "include_dashboard": False}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            break
        except ConnectionError:
            raise ConfigError(f"--address must be that of a running Ray cluster, got {address!r}") from None
        except Exception:  # on a machine busy with other work Ray's own processes can miss their deadline
            ray.shutdown()
            if attempt == ATTEMPTS:
                raise
    logging.getLogger("ray").setLevel(logging.ERROR)


def hardware() -> dict[str, float]:
    """CPUs and GPUs of the cluster, and its nodes."""
    import ray

    have = ray.cluster_resources()
    return {"nodes": len(ray.nodes()), "cpus": have.get("CPU", 0.0), "gpus": have.get("GPU", 0.0)}


def free_reservations() -> None:
    """Give back what learners of this Ray had reserved, after the controller that would do so has died.

    Ray Train has a helper for that, which asks the dashboard whether the controller lives. A Ray that was started here
    has no dashboard, and every reservation in it is the run's.
    """
    from ray import PlacementGroupID
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def fleet(may_grow: bool) -> Fleet:
    """The nodes of the cluster that was joined, with how many there can be where that is known.

    Args:
        may_grow: whether nodes may be added to it.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    there = Fleet(_kinds(alive), known=not may_grow)
    on_the_head = may_grow and any(
        HEAD in node["Resources"] and node["NodeID"] == ray.get_runtime_context().get_node_id() for node in alive
    )
    limits = nodetypes.here() if on_the_head else None
    return limits.holding(there) if limits else there


def _kinds(nodes: Sequence[Mapping[str, Any]]) -> list[Nodes]:
    """Nodes as Ray tells of them, by kind: those that a node type was given for by its name."""
    found: dict[tuple[Any, ...], Nodes] = {}
    for node in nodes:
        labels, resources = node["Labels"], node["Resources"]
        ours = {key: labels[key] for key in (SUBCLUSTER, ROLE) if key in labels}
        name = labels.get(NODE_TYPE) or next(iter(ours.values()), "node")
        cpus, gpus, head = resources.get("CPU", 0.0), resources.get("GPU", 0.0), HEAD in resources
        key = (name, cpus, gpus, *ours.items(), head)
        if key in found:
            number = found[key].there + 1
            found[key] = replace(found[key], there=number, most=number)
        else:
            taken = any(kind.kind == name for kind in found.values())
            kind = f"{name} of {cpus:g} CPUs and {gpus:g} GPUs" if taken else name
            found[key] = Nodes(kind, cpus, gpus, ours, there=1, most=1, head=head)
    return list(found.values())


def by_labels(config: Config) -> bool:
    """Whether a run is placed by labels in the cluster that was joined."""
    return placement.by_labels(config, fleet(may_grow=False))


def fits(config: Config) -> bool:
    """Whether the cluster has room for the least that a run needs, as it is now."""
    found = fleet(may_grow=False)
    return placement.pack(placement.parts(config, placement.by_labels(config, found)), found).lacking is None


def check_placement(config: Config, may_grow: bool) -> str:
    """One line about where the run will be placed.

    Raises:
        ConfigError: the run needs more than there can be. Where that is not known, the line says so.
    """
    return placement.verdict(config, fleet(may_grow), called(may_grow))


def called(may_grow: bool) -> str:
    """What to call it when the user is told."""
    return "the cluster" if may_grow else "this machine"
