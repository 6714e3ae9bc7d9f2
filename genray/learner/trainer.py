"""Builds Ray Train's trainer for a run, and turns its failures into genray's errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from genray.cluster import ray_cluster
from genray.cluster.placement import LEARNER_NODE
from genray.config.errors import RunFailed, reason_of
from genray.config.files import is_url
from genray.learner import validation
from genray.stream.run import Run

if TYPE_CHECKING:
    from ray.train import Result
    from ray.train.torch import TorchTrainer


START_TIMEOUT_S = 600
"""Seconds that learners wait for their resources before the start counts as failed."""
RESIZE_TIMEOUT_S = 30
"""The same if their number may change: a node that was just lost may still be counted as available."""
MAX_FAILED_STARTS = 100
"""Failed starts that a run survives: more than half a day of waiting for nodes."""


def run_learners(run: Run, loop: Callable[[dict[str, Any]], Any], arguments: dict[str, Any]) -> Result:
    """Run a loop other than training in a run's learners, such as a benchmark; raises RunFailed or UserError."""
    import ray.exceptions
    import ray.train

    try:
        return build_trainer(run, loop, arguments).fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        raise run_error(error) from error


def build_trainer(run: Run, loop: Callable[[dict[str, Any]], Any], arguments: dict[str, Any]) -> TorchTrainer:
    """A trainer whose learners each call `loop(arguments)`; Ray Train restarts and resizes them as configured."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from genray.learner.recorder import Recorder  # needs Ray
    from genray.stream import pool
    from genray.stream.shares import DatasetPlaceholder, Shares

    config, learners, by_labels = run.config, run.config.learners, ray_cluster.by_labels(run.config)
    least, most = learners.bounds
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_TIMEOUT_S if least == most else RESIZE_TIMEOUT_S)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(learners.hang_timeout_s)
    pool.prepare_context(run)
    return TorchTrainer(
        loop,
        train_loop_config=arguments,
        # A step's collective operations begin once every learner has its block, so a short limit is enough.
        torch_config=TorchConfig(timeout_s=max(1, round(learners.hang_timeout_s))),
        scaling_config=ray.train.ScalingConfig(
            num_workers=learners.num_workers,
            elastic_resize_monitor_interval_s=learners.resize_every_s,
            use_gpu=learners.num_gpus > 0,
            resources_per_worker={"CPU": learners.num_cpus, "GPU": learners.num_gpus}
            if learners.num_gpus
            else {"CPU": learners.num_cpus},
            label_selector=LEARNER_NODE if by_labels else None,
        ),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=config.storage_path if is_url(config.storage_path) else str(run.directory.path.parent),
            failure_config=ray.train.FailureConfig(
                max_failures=-1,  # the recorder counts failures without progress
                controller_failure_limit=MAX_FAILED_STARTS,
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=learners.keep),
            callbacks=[Recorder(run)],
        ),
        datasets={pool.DATASET_NAME: DatasetPlaceholder(run)} if config.render_on == "pool" else None,  # type: ignore[dict-item]
        dataset_config=Shares(run, by_labels),
        validation_config=validation.validation_config(run, by_labels),
    )


def run_error(error: BaseException) -> Exception:
    """The error to raise for a failed training: genray's own reason if there is one, else Ray's last line."""
    controller = getattr(error, "controller_failure", None)
    causes = [controller] if controller else list(getattr(error, "worker_failures", {}).values()) or [error]
    if reasons := [reason for cause in causes if (reason := reason_of(cause))]:
        return reasons[-1].error()
    lines = [line.strip() for cause in causes for line in str(cause).splitlines() if line.strip()]
    return RunFailed(lines[-1] if lines else type(error).__name__)
