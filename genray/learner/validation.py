"""Probes of checkpoints during training: Ray Train's asynchronous validation.

Ray Train's controller runs `CheckpointJudge` as a task on a checkpoint that a learner reported. Only the end of the run
waits for it, and the learners do no work for it.

Two properties of Ray Train 2.60 matter here. It runs one validation at a time and queues the others, keeping their
checkpoints: validations slower than checkpoints would fill the disk and delay the end of the run. So a checkpoint is
submitted only if none is waiting. And it survives a validation that raises, but not one whose process dies, which takes
the controller with it. So such a task is retried until its time is up.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genray.cluster.placement import LEARNER_NODE
from genray.config.run import Config
from genray.runs import faults, jsonl, processes, store
from genray.stream.run import Run

if TYPE_CHECKING:
    import ray.train


class ValidationStopped(Exception):
    """The run was asked to stop, so this validation was abandoned."""


class CheckpointJudge:
    """Judges a checkpoint when Ray Train calls it, in a separate process."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, checkpoint: ray.train.Checkpoint) -> dict[str, float]:
        """Judge a checkpoint on the validation images, and add a line to the run's probes.jsonl.

        Returns:
            The metrics, which Ray Train keeps with the checkpoint.
        """
        run = self.run.directory
        processes.note(run.processes, "probes")
        try:
            with checkpoint.as_directory() as directory:
                step, metrics = judge_checkpoint(self.run, Path(directory))
        except Exception as error:  # Ray Train writes it to its own log only, and continues
            if not isinstance(error, ValidationStopped):
                faults.note(run.faults, faults.PROBES_FAILED, error=str(error) or type(error).__name__)
            raise
        jsonl.append(run.probes, {"step": step, "time": time.time(), **metrics})
        store.upload(run.probes, run.path)
        return metrics


def judge_checkpoint(run: Run, directory: Path) -> tuple[int, dict[str, float]]:
    """The checkpoint's step, and the metrics of the probes in `probe.beside`, named `probe.<data>-val.<probe>`."""
    import torch

    from genray.learner.learner import Learner
    from genray.learner.load import backbone_of
    from genray.probes.data import during_training
    from genray.probes.extraction import LocalExtractor
    from genray.probes.judge import ProbeSettings, judge
    from genray.probes.metrics import metrics_of

    probe = run.config.probe
    device = torch.device("cuda" if probe.num_gpus and torch.cuda.is_available() else "cpu")
    learner = Learner(run, 0, device)
    learner.restore(directory)
    backbone, images = backbone_of(learner), during_training(probe)

    def unless_stopped(*_: Any) -> None:
        if run.directory.stop_requested():
            raise ValidationStopped

    backbone.module.register_forward_pre_hook(unless_stopped)
    settings = ProbeSettings(neighbors=probe.neighbors)
    results = judge([backbone], images, probe.beside, settings, LocalExtractor(device))
    return learner.step, metrics_of(images.name, results["backbones"][backbone.name])


def validation_config(run: Run, by_labels: bool = False) -> ray.train.ValidationConfig | None:
    """Ray Train's configuration for it; None without `probe.beside`. `by_labels` places it on the learners' nodes."""
    probe = run.config.probe
    if not probe.beside:
        return None
    import ray.train

    options: dict[str, Any] = {"num_cpus": probe.num_cpus, "num_gpus": probe.num_gpus, "max_retries": -1}
    if by_labels:
        options["label_selector"] = LEARNER_NODE
    limit = ray.train.ValidationTaskConfig(timeout_s=probe.timeout_s)
    return ray.train.ValidationConfig(CheckpointJudge(run), task_config=limit, ray_remote_kwargs=options)


def due(config: Config, step: int) -> bool:
    """Whether to judge a checkpoint of this step: no other is waiting, and it is not the last.

    The last one is judged for the report.
    """
    if not config.probe.beside or step >= config.training.steps:
        return False
    import ray.train

    reported = ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED, timeout_s=0)
    return all(one.status is not ray.train.ReportedCheckpointStatus.PENDING_VALIDATION for one in reported)
