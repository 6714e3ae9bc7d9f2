"""The Ray side of a run: starting or joining a cluster quietly, and asking whether a request can ever be placed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from genray.config import Config
from genray.settings import ConfigError

ATTEMPTS = 3
DATA_CPUS = 1  # Ray Data's own read and repartition tasks
RESERVED_S = 30
"""Seconds for which a stream that was killed keeps what it had from the pool of the next one; Ray's default is 180."""


@dataclass(frozen=True)
class Request:
    """CPUs and GPUs that a run needs at the least."""

    cpus: float
    gpus: float

    @classmethod
    def of(cls, config: Config) -> Request:
        learners, generators = config.learners, config.generators
        fewest, _ = learners.bounds
        cpus, gpus = fewest * learners.num_cpus, fewest * learners.num_gpus
        if generators.mode == "pool":
            low, _ = generators.bounds
            cpus, gpus = cpus + low * generators.num_cpus + DATA_CPUS, gpus + low * generators.num_gpus
        return cls(cpus, gpus)


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

    cpus, gpus = _size()
    return {"nodes": len(ray.nodes()), "cpus": cpus, "gpus": gpus}


def _size() -> tuple[float, float]:
    import ray

    have = ray.cluster_resources()
    return have.get("CPU", 0.0), have.get("GPU", 0.0)


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


def fits(config: Config) -> bool:
    """Whether the cluster has room for the least that a run needs, as it is now."""
    cpus, gpus = _size()
    need = Request.of(config)
    return need.gpus <= gpus and need.cpus <= cpus


def check_placement(config: Config, may_grow: bool) -> str:
    """One line about where the run will be placed.

    Raises:
        ConfigError: the run needs more than there is, and the cluster cannot grow. Where it may, the line says so.
    """
    cpus, gpus = _size()
    need = Request.of(config)
    ask = f"{need.cpus:g} CPUs and {need.gpus:g} GPUs"
    found = f"{cpus:g} CPUs and {gpus:g} GPUs"
    if fits(config):
        return f"fits: the run needs {ask}, the cluster has {found}"
    if not may_grow:
        remedy = (
            "set learners.num_gpus and generators.num_gpus to 0 to run on CPUs"
            if need.gpus > gpus
            else "lower generators.num, generators.num_cpus, learners.num_workers or learners.num_cpus "
            f"(Ray Data itself needs {DATA_CPUS})"
        )
        raise ConfigError(f"generators and learners must fit this machine ({found}), got a request of {ask}; {remedy}")
    return f"does not fit yet: the run needs {ask}, the cluster has {found}; it starts when nodes have been added"
