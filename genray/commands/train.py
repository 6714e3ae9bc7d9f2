"""`genray train`: a run from its configuration to the trained encoder, the report and the MLflow run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from genray.cluster import node_metrics, node_types, placement, ray_cluster, ray_job
from genray.commands.bench import auto
from genray.commands.configured import prepared
from genray.commands.progress import Progress
from genray.commands.report import metrics_of, report_of, tags_of
from genray.config.errors import RunFailed, RunStopped
from genray.config.files import write_atomically
from genray.config.run import Config
from genray.learner.trainer import build_trainer, run_error
from genray.probes import data
from genray.runs import checkpoint, faults, jsonl, mirror, processes
from genray.runs.directory import RunDirectory
from genray.runs.stopping import Stopping, StopRequested
from genray.stream.run import Run
from genray.tracking import plots
from genray.tracking.tracker import CLOSE_TIMEOUT_S, Tracker
from genray.views.sources import fetch, pending_download


def train(
    config: Config,
    *,
    address: str | None = None,
    say: Callable[[str], None] = print,
    started: float | None = None,
) -> dict[str, Any]:
    """Train, judge, export and record a run. The same name resumes it; a finished run only returns its report.

    Args:
        config: the run.
        address: of the Ray cluster to join; by default RAY_ADDRESS, else a Ray started on this machine.
        say: called with each line for the user.
        started: when the command began, in seconds since 1970; the report's start-up times count from then.

    Returns:
        The report, also written to `report.json`.

    Raises:
        UserError: the request cannot be run as it stands.
        RunFailed: training failed; its last checkpoint is kept.
        RunStopped: SIGTERM or Ctrl-C was received.
    """
    started = started or time.time()
    RunDirectory.of(config).refresh()
    run = Run.of(auto.with_measured_fields(prepared(config), address, say))
    config, directory = run.config, run.directory
    directory.claim(config)
    with directory.locked():
        if directory.report.exists():
            say(f"{config.name} is finished; choose another --name to train again")
            report = json.loads(directory.report.read_text())
            if directory.undelivered.exists():
                tracker = Tracker(config, directory.path, say, plan=run.plan)
                _deliver(tracker, directory, report)
                _close(tracker, directory, "FINISHED", say)
            return cast("dict[str, Any]", report)
        fetch(config)
        data.check(config.probe)
        with mirror.mirrored(directory.path, say) as synchronise:
            return _train_run(run, address, say, started, synchronise)


def dry_run(
    config: Config,
    address: str | None = None,
    say: Callable[[str], None] = print,
    cluster_file: Path | None = None,
) -> None:
    """Check a run without training it: print what follows from its configuration and how it would be placed.

    Writes the resolved config.json.

    Args:
        config: the run.
        address: of the Ray cluster to ask; by default RAY_ADDRESS, else a Ray started on this machine.
        say: called with each line for the user.
        cluster_file: describes a cluster, for `ray up` or KubeRay, to ask instead; no Ray is needed then.

    Raises:
        UserError: the request cannot be run as it stands.
    """
    run = Run.of(config)
    run.directory.refresh()
    for line in run.plan.lines(config):
        say(line)
    data.check(config.probe)
    run.directory.claim(config)
    if cluster_file:
        fleet, autoscaling = node_types.fleet_from_file(cluster_file), True
    else:
        with ray_cluster.joined(address) as autoscaling:
            fleet = ray_cluster.fleet(autoscaling)
    say(f"{'cluster':14} {placement.verdict(config, fleet, ray_cluster.cluster_name(autoscaling)).line}")
    if autoscaling:
        say(f"{'nodes':14} {placement.node_counts(config, fleet)}")
    if (note := pending_download(config)) is not None:
        say(f"{'weights':14} {note}")
    say(f"{'configuration':14} {run.directory.config}")


def _train_run(
    run: Run,
    address: str | None,
    say: Callable[[str], None],
    started: float,
    synchronise: Callable[[], None],
) -> dict[str, Any]:
    """Train a run that is locked; `synchronise` fetches what other nodes wrote, if the run is in a store."""
    config, directory = run.config, run.directory
    _clean_up(config, directory, say)
    progress = Progress(directory.metrics, run.plan.steps, log=directory.faults)
    tracker = Tracker(
        config,
        directory.path,
        progress.say,
        on_page=lambda page: ray_job.report_page(page, progress.say),
        plan=run.plan,
    )
    tracker.artifact(directory.config)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        with Stopping(directory.stop, progress.say) as stopping:
            progress.phase("starting Ray")
            with ray_cluster.joined(address) as autoscaling:
                marks = {"command": started, "Ray started": time.time()}
                _note_processes(directory, of_ray=not autoscaling)
                verdict = ray_cluster.check_placement(config, autoscaling)
                if not verdict.fits:
                    progress.say(verdict.line)
                progress.phase("starting generators and learners")
                look = partial(node_metrics.read_nodes, alone=not autoscaling)
                with node_metrics.sampled(directory.system, directory.metrics, config.tracking.system_every_s, look):
                    returned = stopping.while_training(lambda: _train_with_restarts(run, stopping, not autoscaling))
                if "stopped" in returned:
                    raise StopRequested(stopping.number or signal.SIGTERM)
                hardware = ray_cluster.hardware()
        synchronise()
        report = report_of(run, marks | returned["marks"], returned["probes"])
        report |= {"hardware": hardware, "mlflow": tracker.url()}
        directory.undelivered.touch()  # until MLflow has everything
        write_atomically(directory.report, json.dumps(report, indent=2) + "\n")
        _draw(directory, progress.say)
        _deliver(tracker, directory, report)
        status = "FINISHED"
        return report
    except StopRequested as stop:
        status = "KILLED"
        raise RunStopped(_resumable(run), interrupted=stop.number == signal.SIGINT) from None
    finally:
        progress.close()
        _close(tracker, directory, status, say)
        directory.stop.unlink(missing_ok=True)
        processes.kill_left_over(directory.processes)  # a hung one survives even the end of Ray
        for file in directory.path.glob("processes-*.jsonl"):
            file.unlink(missing_ok=True)
        shutil.rmtree(directory.attempts, ignore_errors=True)


def _clean_up(config: Config, run: RunDirectory, say: Callable[[str], None]) -> None:
    """Kill the processes and remove the files that a killed driver has left."""
    if killed := processes.kill_left_over(run.processes):
        say(f"ended {len(killed)} processes left by an earlier start of {config.name}")
    for path in checkpoint.tidy(run.path, config.learners.keep):
        say(f"{path.name} was cut short; the checkpoint before it is used")
    shutil.rmtree(run.attempts, ignore_errors=True)


def _note_processes(run: RunDirectory, of_ray: bool) -> None:
    processes.note(run.processes, "driver")
    for child in processes.descendants(os.getpid()) if of_ray else ():
        processes.note(run.processes, "ray", child)


def _resumable(run: Run) -> str:
    last = checkpoint.last(run.directory.path)
    where = f"resumable from step {checkpoint.read_step(last)}" if last else "resumable from its start"
    return f"{run.config.name} was stopped and is {where}: genray train {run.directory.path}"


def _draw(run: RunDirectory, say: Callable[[str], None]) -> None:
    try:
        plots.draw_run(run)
    except Exception as error:  # a trained run must not fail over its picture
        say(f"{run.curves.name} could not be drawn: {error}")


def _deliver(tracker: Tracker, run: RunDirectory, report: dict[str, Any]) -> None:
    """Queue the results of a finished run for MLflow."""
    tracker.summary(metrics_of(report), tags_of(report))
    for path, folder in ((run.export, "export"), (run.report, None), (run.curves, None)):
        if path.exists():
            tracker.artifact(path, folder)
    tracker.model(run.export)


def _close(
    tracker: Tracker, run: RunDirectory, status: Literal["FINISHED", "FAILED", "KILLED"], say: Callable[[str], None]
) -> None:
    for line in tracker.end(status, CLOSE_TIMEOUT_S, run.undelivered):
        say(line)


def _train_with_restarts(run: Run, stopping: Stopping, own_ray: bool) -> dict[str, Any]:
    """What rank 0 returned. Ray Train restarts its learners; this restarts its controller if that dies."""
    import ray.exceptions
    import ray.train

    from genray.learner.worker import train_loop

    config, directory = run.config, run.directory
    reached, deaths = checkpoint.last(directory.path), 0
    while True:
        try:
            return cast("dict[str, Any]", build_trainer(run, train_loop, {"run": run}).fit().return_value)
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            # One of Ray's own actors may have died, or a learner while others were still starting.
            cause = getattr(error, "controller_failure", error)
            if stopping.training_over or not isinstance(cause, ray.exceptions.RayError):
                raise run_error(error) from error
            last = checkpoint.last(directory.path)
            reached, deaths = last, deaths + 1 if last == reached else 1
            lost = max(0, jsonl.last(directory.batches).get("step", 0) - checkpoint.last_step(directory.path))
            faults.note(directory.faults, faults.CONTROLLER_FAILED, steps_lost=lost, error=str(cause).splitlines()[0])
            if deaths > config.learners.max_failures:
                raise RunFailed(f"Ray Train's controller failed {deaths} times without a new checkpoint") from error
            checkpoint.tidy(directory.path, config.learners.keep)  # it may have died while writing its list
            if own_ray:
                ray_cluster.free_reservations()
