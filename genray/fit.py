"""A run from end to end: configuration in, trained encoder, report and MLflow run out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from genray import cluster, curves, faults, job, mirror, nodetypes, placement, processes, records, storage, system
from genray.config import Config
from genray.console import Progress
from genray.placement import LEARNER_NODE
from genray.plan import Plan
from genray.probes import beside, data
from genray.report import metrics_of, report_of, tags_of
from genray.rundir import RunDirectory, write_atomically
from genray.settings import UserError, reason_in
from genray.sources import fetch, not_here
from genray.stopping import Asked, Stopping
from genray.tracking import Tracker

if TYPE_CHECKING:
    from ray.train import Result
    from ray.train.torch import TorchTrainer

CLOSING_S = 60  # for MLflow to take what is left
START_TIMEOUT_S = 600
"""Seconds that learners wait for their place in the cluster before that counts as a failed start."""
RESIZE_TIMEOUT_S = 30
"""The same where their number may change: a node that has just been lost may still have been counted on."""
STARTS = 100
"""Failed starts of the learners that are survived: 100 are more than half a day of waiting for nodes."""


class RunFailed(Exception):
    """Training ended with an error that the user cannot mend by another command."""


class Stopped(Exception):
    """The run was asked to stop, and can be resumed. `interrupted` tells Ctrl-C from SIGTERM."""

    def __init__(self, message: str, interrupted: bool):
        super().__init__(message)
        self.interrupted = interrupted


def fit(
    config: Config,
    *,
    address: str | None = None,
    say: Callable[[str], None] = print,
    started: float | None = None,
) -> dict[str, Any]:
    """Train, judge, export and record one run; the same name again resumes it.

    Args:
        config: what to run.
        address: Ray cluster to join, where it is neither RAY_ADDRESS nor one to be started here.
        say: takes lines for the user.
        started: when the command began, unix seconds; the report's start-up times count from there.

    Returns:
        The report, also written to `report.json`.

    Raises:
        UserError: the request cannot be run as it stands.
        RunFailed: training failed; a checkpoint, if there is one, stays.
        Stopped: SIGTERM or Ctrl-C came.
    """
    from genray import tune

    started = started or time.time()
    RunDirectory.of(config).take_up()
    config = tune.settle(config, address, say)
    plan, run = Plan.of(config), RunDirectory.of(config)
    run.claim(config)
    with run.locked():
        if run.report.exists():
            say(f"{config.name} is finished; choose another --name to train again")
            report = json.loads(run.report.read_text())
            if run.undelivered.exists():
                tracker = Tracker(config, run.path, say)
                _deliver(tracker, run, report)
                _close(tracker, run, "FINISHED", say)
            return cast("dict[str, Any]", report)
        fetch(config)
        data.check(config.probe)
        with mirror.mirrored(run.path, say) as brought:
            return _fit(config, plan, run, address, say, started, brought)


def dry_run(
    config: Config,
    address: str | None = None,
    say: Callable[[str], None] = print,
    described: Path | None = None,
) -> None:
    """Resolve and check a configuration, say what follows from it and whether it can be placed, write config.json.

    Args:
        config: what would be run.
        address: Ray cluster to ask, where it is neither RAY_ADDRESS nor one to be started here.
        say: takes lines for the user.
        described: file that describes a cluster, which is then asked instead; no Ray is needed.

    Raises:
        UserError: the request cannot be run as it stands.
    """
    plan, run = Plan.of(config), RunDirectory.of(config)
    run.take_up()
    for line in plan.lines(config):
        say(line)
    data.check(config.probe)
    run.claim(config)
    if described:
        fleet, may_grow = nodetypes.of_file(described), True
    else:
        with cluster.joined(address) as may_grow:
            fleet = cluster.fleet(may_grow)
    say(f"{'cluster':14} {placement.verdict(config, fleet, cluster.called(may_grow))}")
    if may_grow:
        say(f"{'nodes':14} {placement.node_counts(config, fleet)}")
    if (note := not_here(config)) is not None:
        say(f"{'weights':14} {note}")
    say(f"{'configuration':14} {run.config}")


def _fit(
    config: Config,
    plan: Plan,
    run: RunDirectory,
    address: str | None,
    say: Callable[[str], None],
    started: float,
    brought: Callable[[], None],
) -> dict[str, Any]:
    _clear_up(config, run, say)
    progress = Progress(run.metrics, plan.steps, log=run.faults)
    tracker = Tracker(config, run.path, progress.say, found=lambda page: _tell_page(page, progress.say))
    tracker.artifact(run.config)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        with Stopping(run.stop, progress.say) as stopping:
            progress.phase("starting Ray")
            with cluster.joined(address) as may_grow:
                marks = {"command": started, "Ray started": time.time()}
                _note_processes(run, of_ray=not may_grow)
                room = cluster.check_placement(config, may_grow)
                if not room.startswith("fits:"):
                    progress.say(room)
                progress.phase("starting generators and learners")
                look = partial(system.look, alone=not may_grow)
                with system.watched(run.system, run.metrics, config.tracking.system_every_s, look):
                    returned = stopping.while_training(lambda: _train(config, run, stopping, not may_grow))
                if "stopped" in returned:
                    raise Asked(stopping.number or signal.SIGTERM)
                hardware = cluster.hardware()
        brought()
        report = report_of(config, run, marks | returned["marks"], returned["probes"])
        report |= {"hardware": hardware, "mlflow": tracker.url()}
        run.undelivered.touch()  # until MLflow has all
        write_atomically(run.report, json.dumps(report, indent=2) + "\n")
        _draw(run, progress.say)
        _deliver(tracker, run, report)
        status = "FINISHED"
        return report
    except Asked as asked:
        status = "KILLED"
        raise Stopped(_resumable(config, run), interrupted=asked.number == signal.SIGINT) from None
    finally:
        progress.close()
        _close(tracker, run, status, say)
        run.stop.unlink(missing_ok=True)
        processes.end_left_over(run.processes)  # one that is frozen outlives even Ray
        for file in run.path.glob("processes-*.jsonl"):
            file.unlink(missing_ok=True)
        shutil.rmtree(run.attempts, ignore_errors=True)


def _clear_up(config: Config, run: RunDirectory, say: Callable[[str], None]) -> None:
    """End and remove what a driver that was killed has left."""
    from genray import checkpoint

    if killed := processes.end_left_over(run.processes):
        say(f"ended {len(killed)} processes that an earlier start of {config.name} had left")
    for path in checkpoint.tidy(run.path, config.learners.keep):
        say(f"{path.name} was cut short; the one before it is used")
    shutil.rmtree(run.attempts, ignore_errors=True)


def _tell_page(page: str, say: Callable[[str], None]) -> None:
    """Say where the run is in MLflow, also to those who look at the Ray job that it is."""
    say(f"MLflow  {page}")
    try:
        job.note(mlflow=page)
    except Exception as error:  # the training must not notice
        say(f"the metadata of the Ray job does not name the MLflow run ({error})")


def _note_processes(run: RunDirectory, of_ray: bool) -> None:
    processes.note(run.processes, "driver")
    for child in processes.below(os.getpid()) if of_ray else ():
        processes.note(run.processes, "ray", child)


def _resumable(config: Config, run: RunDirectory) -> str:
    from genray import checkpoint

    last = checkpoint.last(run.path)
    where = f"resumable from step {checkpoint.read_step(last)}" if last else "resumable from its start"
    return f"{config.name} was stopped and is {where}: genray train {run.path}"


def _draw(run: RunDirectory, say: Callable[[str], None]) -> None:
    try:
        curves.draw(run)
    except Exception as error:  # a run that is trained does not fail over its picture
        say(f"{run.curves.name} is not there: {error}")


def _deliver(tracker: Tracker, run: RunDirectory, report: dict[str, Any]) -> None:
    """Hand what a finished run left to MLflow."""
    tracker.summary(metrics_of(report), tags_of(report))
    for path, folder in ((run.export, "export"), (run.report, None), (run.curves, None)):
        if path.exists():
            tracker.artifact(path, folder)
    tracker.model(run.export)


def _close(
    tracker: Tracker, run: RunDirectory, status: Literal["FINISHED", "FAILED", "KILLED"], say: Callable[[str], None]
) -> None:
    for line in tracker.end(status, CLOSING_S, run.undelivered):
        say(line)


def _train(config: Config, run: RunDirectory, stopping: Stopping, own_ray: bool) -> dict[str, Any]:
    """What rank 0 returned. Ray Train restarts its learners; its controller, if it dies, is started again here."""
    import ray.exceptions
    import ray.train

    from genray import checkpoint
    from genray.train import train_loop

    reached, deaths = checkpoint.last(run.path), 0
    while True:
        try:
            return cast("dict[str, Any]", _trainer(config, train_loop, {"config": config}).fit().return_value)
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            # One of Ray's own actors may die, or a learner while the others are being started.
            cause = getattr(error, "controller_failure", error)
            if stopping.over or not isinstance(cause, ray.exceptions.RayError):
                raise failure(error) from error
            last = checkpoint.last(run.path)
            reached, deaths = last, deaths + 1 if last == reached else 1
            lost = max(0, records.last(run.batches).get("step", 0) - checkpoint.last_step(run.path))
            faults.note(run.faults, "controller failed", steps_lost=lost, error=str(cause).splitlines()[0])
            if deaths > config.learners.max_failures:
                raise RunFailed(f"Ray Train's controller failed {deaths} times without a new checkpoint") from error
            checkpoint.tidy(run.path, config.learners.keep)  # it may have died while it wrote its list
            if own_ray:
                cluster.free_reservations()


def run_learners(config: Config, loop: Callable[[dict[str, Any]], Any], arguments: dict[str, Any]) -> Result:
    """Run something else than training in the learners of a run; raises RunFailed or UserError."""
    import ray.exceptions
    import ray.train

    try:
        return _trainer(config, loop, arguments).fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        raise failure(error) from error


def _trainer(config: Config, loop: Callable[[dict[str, Any]], Any], arguments: dict[str, Any]) -> TorchTrainer:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from genray import stream
    from genray.recorder import Recorder
    from genray.shares import Nothing, Shares

    learners, by_labels, run = config.learners, cluster.by_labels(config), RunDirectory.of(config).path
    few, many = learners.bounds
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_TIMEOUT_S if few == many else RESIZE_TIMEOUT_S)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(learners.hang_timeout_s)
    stream.prepare_context(config, Plan.of(config))
    return TorchTrainer(
        loop,
        train_loop_config=arguments,
        # A step's collective operations begin when every learner has its block, so they may be held to a short time.
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
            storage_path=config.storage_path if storage.is_url(config.storage_path) else str(run.parent),
            failure_config=ray.train.FailureConfig(
                max_failures=-1,  # the recorder counts those without progress
                controller_failure_limit=STARTS,
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=learners.keep),
            callbacks=[Recorder(config)],
        ),
        datasets={stream.NAME: Nothing(config)} if config.generators.mode == "pool" else None,  # type: ignore[dict-item]
        dataset_config=Shares(config, by_labels),
        validation_config=beside.validation(config, by_labels),
    )


def failure(error: BaseException) -> Exception:
    """What to raise for a failed training: the reason that genray's own code gave, if it did, in one line."""
    cause = getattr(error, "controller_failure", None)
    if isinstance(cause, UserError):
        return UserError(str(cause))
    text = str(cause or "\n".join(map(str, getattr(error, "worker_failures", {}).values())) or error)
    if reason := reason_in(text):
        return UserError(reason.message) if reason.mendable else RunFailed(reason.message)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return RunFailed(lines[-1] if lines else type(error).__name__)
