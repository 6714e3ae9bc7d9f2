"""`genray sweep`: trains many runs, each in a process of its own, one after the other or several at a time.

The state of a sweep is that of its runs' directories: the same command resumes unfinished runs and skips finished ones.
In MLflow the sweep is a run, and its runs are children of it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from genray.cluster import placement, ray_cluster
from genray.commands.report import metrics_of
from genray.config.errors import ConfigError, RunFailed, RunStopped
from genray.config.files import write_atomically
from genray.config.run import Config
from genray.runs import jsonl, store
from genray.runs.directory import RunDirectory
from genray.runs.stopping import Stopping, StopRequested
from genray.tracking import compare, described, plots
from genray.tracking.compare import FinishedRun
from genray.tracking.tracker import CLOSE_TIMEOUT_S, Tracker

TRAIN = (sys.executable, "-m", "genray.cli", "train")
"""Command that trains a run."""
POLL_S = 0.5
"""Seconds between two checks of the running processes."""
PARENT_TIMEOUT_S = 30.0
"""Seconds that the first run waits until MLflow has the sweep; without that its runs would have no parent there."""
STOP_TIMEOUT_S = 75.0
"""Seconds that runs get to stop at their next step, with a checkpoint."""
GIVE_UP_S = STOP_TIMEOUT_S + 30
"""Seconds after a stop request until the sweep waits no longer."""


@dataclass(frozen=True)
class Outcome:
    """The result of a sweep."""

    reports: dict[str, dict[str, Any]]
    """Reports of the finished runs by their names, in the order of the configurations."""
    failed: dict[str, Path]
    """Logs of the failed runs by their names."""


def sweep(
    name: str,
    configs: Sequence[Config],
    *,
    parallel: int = 1,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train every configuration that is not finished, and record them as children of one MLflow run.

    Args:
        name: of the sweep, and of its directory next to those of its runs.
        configs: the runs, whose `tracking.sweep` is this name.
        parallel: how many run at a time, each with as many generators and learners as it asks for.
        address: of the Ray cluster to join. Without one a Ray is started on this machine: for each run, or one for all
            if several run at a time.
        say: called with each line for the user.

    Returns:
        Reports and failures; a failed run does not keep the others from being trained.

    Raises:
        UserError: the request cannot be run as it stands.
        RunStopped: SIGTERM or Ctrl-C was received; the same sweep resumes.
    """
    if not configs:
        raise ConfigError("a sweep must have runs, got none")
    directory = store.local_directory(configs[0].storage_path) / name
    run = RunDirectory(directory)
    if run.config.exists():
        raise ConfigError(f"--name must be new for a sweep, got {name!r}, which is a run")
    for config in configs:
        if (begun := RunDirectory.of(config)).has_begun():
            begun.refuse_changes(config)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with (
            run.locked(),
            Stopping(run.stop, say, GIVE_UP_S) as stopping,
            room(configs, parallel, address, say) as (max_parallel, ray_address),
        ):
            return _sweep(run, configs, _Runs(directory, configs, max_parallel, ray_address, say), stopping, say)
    except StopRequested as stop:
        raise RunStopped(f"{name} was stopped; the same command resumes it", stop.number == signal.SIGINT) from None
    finally:
        run.stop.unlink(missing_ok=True)


def _sweep(
    run: RunDirectory, configs: Sequence[Config], runs: _Runs, stopping: Stopping, say: Callable[[str], None]
) -> Outcome:
    first = configs[0]
    parent = replace(first, name=run.path.name, tracking=replace(first.tracking, sweep=None))
    tracker = Tracker(parent, run.path, say, described.SWEEP, settings_of(configs))
    status: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED"
    try:
        _wait_for_mlflow(parent, run)
        outcome = stopping.while_training(runs.train)
        if run.stop.exists():
            raise StopRequested(stopping.number or signal.SIGTERM)
        status = "FAILED" if outcome.failed else "FINISHED"
        _compare(run, configs, outcome, tracker, say)
        return outcome
    finally:
        for line in tracker.close(status, CLOSE_TIMEOUT_S):
            say(line)


def raise_if_failed(outcome: Outcome) -> None:
    """Raise RunFailed if a run has failed, with the place of its log."""
    if outcome.failed:
        first, log = next(iter(outcome.failed.items()))
        count = len(outcome.failed) + len(outcome.reports)
        raise RunFailed(f"{len(outcome.failed)} of {count} runs failed, the first {first}: {_last_line(log)} ({log})")


class _Runs:
    """The processes of a sweep."""

    def __init__(
        self,
        directory: Path,
        configs: Sequence[Config],
        max_parallel: int,
        address: str | None,
        say: Callable[[str], None],
    ):
        self.directory, self.configs, self.max_parallel = directory, configs, max_parallel
        self.address, self.say = address, say
        self.stop = RunDirectory(directory).stop
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.started: dict[str, float] = {}
        self.reports: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, Path] = {}

    def train(self) -> Outcome:
        waiting = list(self.configs)
        for config in self.configs:
            run = RunDirectory.of(config)
            if run.report.exists() and not run.undelivered.exists():
                waiting.remove(config)
                self._finished(config, 0)
        try:
            while (waiting or self.running) and not self.stop.exists():
                while waiting and len(self.running) < self.max_parallel:
                    self._start(waiting.pop(0))
                time.sleep(POLL_S)
                self._collect()
        finally:
            self._stop_all()
        order = {config.name: place for place, config in enumerate(self.configs)}
        return Outcome(dict(sorted(self.reports.items(), key=lambda item: order[item[0]])), self.failed)

    def _start(self, config: Config) -> None:
        settings = self.directory / f"{config.name}.json"
        write_atomically(settings, json.dumps(config.to_dict(), indent=2) + "\n")
        command = [*TRAIN, str(settings), *(("--address", self.address) if self.address else ())]
        self.say(f"{config.name} starts")
        with self._log(config.name).open("ab") as log:
            # In a session of its own, so that Ctrl-C reaches only the sweep, which then asks its runs to stop.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.running[config.name], self.started[config.name] = process, time.monotonic()

    def _collect(self) -> None:
        for config in self.configs:
            process = self.running.get(config.name)
            if process is None or process.poll() is None:
                continue
            del self.running[config.name]
            if process.returncode == 0:
                self._finished(config, time.monotonic() - self.started[config.name])
            else:
                self.failed[config.name] = self._log(config.name)
                self._record_counts()
                self.say(f"{config.name} failed: {_last_line(self._log(config.name))}")

    def _finished(self, config: Config, seconds: float) -> None:
        report = json.loads(RunDirectory.of(config).report.read_text())
        self.reports[config.name] = report
        self._record_counts()
        probes = ", ".join(f"{probe} {value:.1%}" for probe, value in report["probes"].get("trained", {}).items())
        took = f" in {seconds:.0f} s" if seconds else " before"
        done = f"{len(self.reports) + len(self.failed)}/{len(self.configs)}"
        self.say(f"{done}  {config.name} finished{took}{f': {probes}' if probes else ''}")

    def _record_counts(self) -> None:
        counts = {"runs.finished": len(self.reports), "runs.failed": len(self.failed)}
        file = RunDirectory(self.directory).metrics
        step = jsonl.last(file).get("step", 0) + 1  # grows when a sweep is resumed too: MLflow gets each step once
        jsonl.append(file, {"step": step, "time": time.time(), **counts})

    def _stop_all(self) -> None:
        """Ask the runs that are still running to stop, and end those that do not."""
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in self.running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()  # the second signal ends a run at once
                process.wait()

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"


@contextmanager
def room(
    configs: Sequence[Config], parallel: int, address: str | None, say: Callable[[str], None]
) -> Iterator[tuple[int, str | None]]:
    """How many runs may run at a time, and the address of the Ray that they join; None if each starts its own.

    There are no more than the cluster has room for: runs that got only a part of what they need would wait for one
    another.
    """
    if parallel < 2:
        yield 1, address
        return
    import ray

    with ray_cluster.joined(address) as autoscaling:
        fleet = ray_cluster.fleet(autoscaling)
        number = parallel if autoscaling else max(1, placement.concurrent_runs(configs, fleet, parallel))
        if number < parallel:
            say(f"{number} at a time: the cluster has {fleet.cpus:g} CPUs and {fleet.gpus:g} GPUs")
        yield number, address or ray.get_runtime_context().gcs_address


def _wait_for_mlflow(parent: Config, run: RunDirectory) -> None:
    if parent.tracking.mlflow:
        deadline = time.monotonic() + PARENT_TIMEOUT_S
        while not run.mlflow.exists() and time.monotonic() < deadline:
            time.sleep(0.1)


def settings_of(configs: Sequence[Config]) -> dict[str, str]:
    """The parameters that all runs share, and as `sweep.<path>` those in which they differ, with all their values."""
    params = [described.parameters(config) for config in configs]
    values_of = {
        path: dict.fromkeys(of[path] for of in params if path in of)
        for path in dict.fromkeys(p for of in params for p in of)
    }
    common = {path: first for path, (first, *others) in values_of.items() if not others}
    differing = {path: values for path, values in values_of.items() if len(values) > 1}
    return common | {
        f"{described.SWEEP_PREFIX}{path}": described.shortened(", ".join(values)) for path, values in differing.items()
    }


def _compare(
    run: RunDirectory, configs: Sequence[Config], outcome: Outcome, tracker: Tracker, say: Callable[[str], None]
) -> None:
    """Print the comparison of the finished runs, and keep it in the sweep's directory and in MLflow."""
    finished = [
        FinishedRun(config.name, described.parameters(config), metrics_of(outcome.reports[config.name]), {})
        for config in configs
        if config.name in outcome.reports
    ]
    if not finished:
        return
    by, keys = compare.distinguishing(finished), compare.default_metrics(finished)
    groups = compare.grouped(finished, by)
    lines = [*compare.table(groups, by, keys), *compare.notes(groups, keys, 0)]
    for line in lines:
        say(line)
    text, picture = run.path / "compare.txt", run.path / "compare.png"
    write_atomically(text, "\n".join(lines) + "\n")
    plots.draw_groups(groups, by, keys, picture)
    tracker.artifact(text)
    tracker.artifact(picture)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
