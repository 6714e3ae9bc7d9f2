"""Probes of checkpoints while the training goes on: Ray Train's asynchronous validation.

Ray Train's controller starts `Beside` as a task for a checkpoint that a learner reported; nothing waits for it but the
end of the run. It reads the checkpoint that a resumed run would read, so no learner has to do anything for it.

Of Ray Train 2.60 one has to know two things. It makes one validation at a time, queues the others, and keeps the
checkpoints that are queued: validations slower than checkpoints would fill the disk and hold up the end of the run. So
a checkpoint is only given to it when none is waiting. And it survives a validation that raises, but not one whose
process dies: its controller fails with it. So Ray starts such a task again until its time is over.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genray import faults, processes, records, storage
from genray.config import Config
from genray.placement import LEARNER_NODE
from genray.rundir import RunDirectory

if TYPE_CHECKING:
    import ray.train


class Stopped(Exception):
    """The run has been asked to stop; what is not judged by then is not judged."""


class Beside:
    """What Ray Train calls with a checkpoint, in a process of its own."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, checkpoint: ray.train.Checkpoint) -> dict[str, float]:
        """Judge a checkpoint on the images for choices, and add a line to the run's probes.jsonl.

        Returns:
            The metrics, which Ray Train keeps with the checkpoint.
        """
        run = RunDirectory.of(self.config)
        processes.note(run.processes, "probes")
        try:
            with checkpoint.as_directory() as directory:
                step, found = judge_checkpoint(self.config, Path(directory))
        except Exception as error:  # Ray Train notes it in a log of its own, and goes on
            if not isinstance(error, Stopped):
                faults.note(run.faults, "probes failed", error=str(error) or type(error).__name__)
            raise
        records.append(run.probes, {"step": step, "time": time.time(), **found})
        storage.carry(run.probes, run.path)
        return found


def judge_checkpoint(config: Config, directory: Path) -> tuple[int, dict[str, float]]:
    """Steps made, and the metrics of the probes of `probe.beside`, `probe.<data>-val.<probe>`."""
    import torch

    from genray.learner import Learner
    from genray.probes.backbones import of_learner
    from genray.probes.data import while_it_lasts
    from genray.probes.extraction import Here
    from genray.probes.judge import Settings, judge
    from genray.probes.recorded import metrics_of

    probe, run = config.probe, RunDirectory.of(config)
    device = torch.device("cuda" if probe.num_gpus and torch.cuda.is_available() else "cpu")
    learner = Learner(config, 0, device)
    learner.restore(directory)
    backbone, images = of_learner(learner), while_it_lasts(probe)

    def unless_stopped(*_: Any) -> None:
        if run.asked_to_stop():
            raise Stopped

    backbone.module.register_forward_pre_hook(unless_stopped)
    found = judge([backbone], images, probe.beside, Settings(neighbors=probe.neighbors), Here(device))
    return learner.step, metrics_of(images.name, found["backbones"][backbone.name])


def validation(config: Config, by_labels: bool = False) -> ray.train.ValidationConfig | None:
    """What Ray Train is told of it; None where no probes are asked for. By labels they are on the learners' nodes."""
    if not config.probe.beside:
        return None
    import ray.train

    placed: dict[str, Any] = {"num_cpus": config.probe.num_cpus, "num_gpus": config.probe.num_gpus, "max_retries": -1}
    if by_labels:
        placed["label_selector"] = LEARNER_NODE
    limit = ray.train.ValidationTaskConfig(timeout_s=config.probe.timeout_s)
    return ray.train.ValidationConfig(Beside(config), task_config=limit, ray_remote_kwargs=placed)


def due(config: Config, step: int) -> bool:
    """Whether a checkpoint of this step is to be judged: none is waiting, and it is not the last.

    The last one is judged by the probes of the report.
    """
    if not config.probe.beside or step >= config.training.steps:
        return False
    import ray.train

    reported = ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED, timeout_s=0)
    return all(found.status is not ray.train.ReportedCheckpointStatus.PENDING_VALIDATION for found in reported)
