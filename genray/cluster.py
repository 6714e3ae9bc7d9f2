"""The Ray side of a run: starting or joining a cluster quietly, and asking whether a request can ever be placed."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from genray.config import Config
from genray.settings import ConfigError

ATTEMPTS = 3
DATA_CPUS = 1  # Ray Data's own read and repartition tasks


@dataclass(frozen=True)
class Request:
    """CPUs and GPUs that a run needs at the least."""

    cpus: float
    gpus: float
    largest_cpus: float
    largest_gpus: float

    @classmethod
    def of(cls, config: Config) -> Request:
        learners, generators = config.learners, config.generators
        cpus, gpus = learners.num_workers * learners.num_cpus, learners.num_workers * learners.num_gpus
        largest_cpus, largest_gpus = learners.num_cpus, learners.num_gpus
        if generators.mode == "pool":
            low = generators.num[0] if isinstance(generators.num, tuple) else generators.num
            cpus, gpus = cpus + low * generators.num_cpus + DATA_CPUS, gpus + low * generators.num_gpus
            largest_cpus, largest_gpus = (
                max(largest_cpus, generators.num_cpus, DATA_CPUS),
                max(largest_gpus, generators.num_gpus),
            )
        return cls(cpus, gpus, largest_cpus, largest_gpus)


def start(address: str | None = None) -> None:
    """Join the cluster at `address` or RAY_ADDRESS, else start one on this machine; Ray's own chatter stays off."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        # What only a cluster of several nodes needs costs seconds of start-up on one.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    import ray

    options = {"address": address} if address else {"include_dashboard": False}
    for attempt in range(ATTEMPTS):
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            break
        except ConnectionError:
            raise ConfigError(f"--address must be that of a running Ray cluster, got {address!r}") from None
        except Exception:  # on a machine busy with other work Ray's own processes can miss their deadline
            if attempt + 1 == ATTEMPTS:
                raise
            ray.shutdown()
    logging.getLogger("ray").setLevel(logging.ERROR)


def stop() -> None:
    """Leave the cluster, and end it if `start` started it."""
    import ray

    ray.shutdown()


def check_placement(config: Config) -> str:
    """One line about where the run will be placed.

    Raises:
        ConfigError: this machine can never hold it. On a cluster that was joined, nodes may still be added, so what is
            missing is said in the line returned.
    """
    import ray

    have = ray.cluster_resources()
    cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
    need = Request.of(config)
    ask = f"{need.cpus:g} CPUs and {need.gpus:g} GPUs"
    found = f"{cpus:g} CPUs and {gpus:g} GPUs"
    if need.gpus <= gpus and need.cpus <= cpus:
        return f"fits: the run needs {ask}, the cluster has {found}"
    if len(ray.nodes()) == 1 and not os.environ.get("RAY_ADDRESS"):
        remedy = (
            "set learners.num_gpus and generators.num_gpus to 0 to run on CPUs"
            if need.gpus > gpus
            else "lower generators.num, generators.num_cpus, learners.num_workers or learners.num_cpus "
            f"(Ray Data itself needs {DATA_CPUS})"
        )
        raise ConfigError(f"generators and learners must fit this machine ({found}), got a request of {ask}; {remedy}")
    return f"does not fit yet: the run needs {ask}, the cluster has {found}; it starts when nodes have been added"
