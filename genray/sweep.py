"""Many runs as one: each trained by a process of its own, one after the other or several at a time, below one parent.

What is done is told by the runs' own directories. The same sweep again goes on: it leaves out what has finished and
resumes what has begun. In MLflow the sweep is a run, and its runs are that one's children.
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

from genray import about, cluster, compare, curves, placement, records, storage
from genray.compare import Found
from genray.config import Config
from genray.fit import CLOSING_S, RunFailed, Stopped
from genray.report import metrics_of
from genray.rundir import RunDirectory, write_atomically
from genray.settings import ConfigError
from genray.stopping import Asked, Stopping
from genray.tracking import Tracker

TRAIN = (sys.executable, "-m", "genray.cli", "train")
POLL_S = 0.5
CONNECT_S = 30.0
"""Seconds that the first run waits for MLflow to know the sweep; after that its runs may have no parent there."""
STOP_S = 75.0
"""Seconds that runs get to stop, each at its next step and with a checkpoint."""
WITHIN_S = STOP_S + 30
"""Seconds after which a sweep does not wait for them any longer."""


@dataclass(frozen=True)
class Outcome:
    """What became of the runs."""

    reports: dict[str, dict[str, Any]]
    """Of those that have finished, by their names, in their order."""
    failed: dict[str, Path]
    """What the others printed."""


def sweep(
    name: str,
    configs: Sequence[Config],
    *,
    parallel: int = 1,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train every configuration that has not been, and record them as children of one MLflow run.

    Args:
        name: of the sweep, and of its directory beside those of its runs.
        configs: the runs, whose `tracking.sweep` is this name.
        parallel: how many at a time, each with as many generators and learners as it asks for.
        address: Ray cluster to join. Without one a Ray is started on this machine, for each run or, where several go
            on at a time, for all of them.
        say: takes lines for the user.

    Returns:
        The reports, and what failed: one run that does keeps none of the others from being trained.

    Raises:
        UserError: the request cannot be run as it stands.
        Stopped: SIGTERM or Ctrl-C came; the same sweep again goes on.
    """
    if not configs:
        raise ConfigError("a sweep must have runs, got none")
    directory = storage.directory(configs[0].storage_path) / name
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
            Stopping(run.stop, say, WITHIN_S) as stopping,
            _joined(configs, parallel, address, say) as (most, at),
        ):
            return _sweep(run, configs, _Runs(directory, configs, most, at, say), stopping, say)
    except Asked as asked:
        raise Stopped(f"{name} was stopped; the same command goes on with it", asked.number == signal.SIGINT) from None
    finally:
        run.stop.unlink(missing_ok=True)


def _sweep(
    run: RunDirectory, configs: Sequence[Config], runs: _Runs, stopping: Stopping, say: Callable[[str], None]
) -> Outcome:
    first = configs[0]
    parent = replace(first, name=run.path.name, tracking=replace(first.tracking, sweep=None))
    tracker = Tracker(parent, run.path, say, about.SWEEP, _settings(configs))
    status: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED"
    try:
        _wait_for_parent(parent, run)
        outcome = stopping.while_training(runs.train)
        if run.stop.exists():
            raise Asked(stopping.number or signal.SIGTERM)
        status = "FAILED" if outcome.failed else "FINISHED"
        _sum_up(run, configs, outcome, tracker, say)
        return outcome
    finally:
        for line in tracker.close(status, CLOSING_S):
            say(line)


def check(outcome: Outcome) -> None:
    """Raises RunFailed where a run has failed, and says where its output is."""
    if outcome.failed:
        first, log = next(iter(outcome.failed.items()))
        count = len(outcome.failed) + len(outcome.reports)
        raise RunFailed(f"{len(outcome.failed)} of {count} runs failed, the first {first}: {_last_line(log)} ({log})")


class _Runs:
    """The processes of a sweep."""

    def __init__(
        self, directory: Path, configs: Sequence[Config], most: int, address: str | None, say: Callable[[str], None]
    ):
        self.directory, self.configs, self.most, self.address, self.say = directory, configs, most, address, say
        self.stop = RunDirectory(directory).stop
        self.going: dict[str, subprocess.Popen[bytes]] = {}
        self.reports: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, Path] = {}
        self.began: dict[str, float] = {}

    def train(self) -> Outcome:
        waiting = list(self.configs)
        for config in self.configs:
            run = RunDirectory.of(config)
            if run.report.exists() and not run.undelivered.exists():
                waiting.remove(config)
                self._finished(config, 0)
        try:
            while (waiting or self.going) and not self.stop.exists():
                while waiting and len(self.going) < self.most:
                    self._start(waiting.pop(0))
                time.sleep(POLL_S)
                self._collect()
        finally:
            self._end()
        order = {config.name: place for place, config in enumerate(self.configs)}
        return Outcome(dict(sorted(self.reports.items(), key=lambda item: order[item[0]])), self.failed)

    def _start(self, config: Config) -> None:
        settings = self.directory / f"{config.name}.json"
        write_atomically(settings, json.dumps(config.to_dict(), indent=2) + "\n")
        command = [*TRAIN, str(settings), *(("--address", self.address) if self.address else ())]
        self.say(f"{config.name} starts")
        with self._log(config.name).open("ab") as log:
            # In a session of its own: Ctrl-C is for the sweep, which asks its runs to stop.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.going[config.name], self.began[config.name] = process, time.monotonic()

    def _collect(self) -> None:
        for config in self.configs:
            process = self.going.get(config.name)
            if process is None or process.poll() is None:
                continue
            del self.going[config.name]
            if process.returncode == 0:
                self._finished(config, time.monotonic() - self.began[config.name])
            else:
                self.failed[config.name] = self._log(config.name)
                self._note()
                self.say(f"{config.name} failed: {_last_line(self._log(config.name))}")

    def _finished(self, config: Config, seconds: float) -> None:
        report = json.loads(RunDirectory.of(config).report.read_text())
        self.reports[config.name] = report
        self._note()
        probes = ", ".join(f"{probe} {value:.1%}" for probe, value in report["probes"].get("trained", {}).items())
        took = f" in {seconds:.0f} s" if seconds else " before"
        done = f"{len(self.reports) + len(self.failed)}/{len(self.configs)}"
        self.say(f"{done}  {config.name} finished{took}{f': {probes}' if probes else ''}")

    def _note(self) -> None:
        found = {"runs.finished": len(self.reports), "runs.failed": len(self.failed)}
        file = RunDirectory(self.directory).metrics
        step = records.last(file).get("step", 0) + 1  # also where the sweep goes on: MLflow takes each step once
        records.append(file, {"step": step, "time": time.time(), **found})

    def _end(self) -> None:
        """Ask the runs that still go on to stop, and in the end make them."""
        for process in self.going.values():
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self.going.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()  # the second time a run ends at once
                process.wait()

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"


@contextmanager
def _joined(
    configs: Sequence[Config], parallel: int, address: str | None, say: Callable[[str], None]
) -> Iterator[tuple[int, str | None]]:
    """How many runs may go on at a time, and the address that they join; None where each starts its own Ray.

    Runs that have a part of what they need each would wait for one another.
    """
    if parallel < 2:
        yield 1, address
        return
    import ray

    with cluster.joined(address) as may_grow:
        fleet = cluster.fleet(may_grow)
        most = parallel if may_grow else max(1, placement.at_once(configs, fleet, parallel))
        if most < parallel:
            say(f"{most} at a time: the cluster has {fleet.cpus:g} CPUs and {fleet.gpus:g} GPUs")
        yield most, address or ray.get_runtime_context().gcs_address


def _wait_for_parent(parent: Config, run: RunDirectory) -> None:
    if parent.tracking.mlflow:
        deadline = time.monotonic() + CONNECT_S
        while not run.mlflow.exists() and time.monotonic() < deadline:
            time.sleep(0.1)


def _settings(configs: Sequence[Config]) -> dict[str, str]:
    """What all runs have, and as `sweep.path` the settings in which they differ, each with its values."""
    params = [about.parameters(config) for config in configs]
    found = {
        path: dict.fromkeys(of[path] for of in params if path in of)
        for path in dict.fromkeys(p for of in params for p in of)
    }
    common = {path: first for path, (first, *others) in found.items() if not others}
    differing = {path: values for path, values in found.items() if len(values) > 1}
    return common | {f"sweep.{path}": about.shortened(", ".join(values)) for path, values in differing.items()}


def _sum_up(
    run: RunDirectory, configs: Sequence[Config], outcome: Outcome, tracker: Tracker, say: Callable[[str], None]
) -> None:
    """Print the comparison of what has finished, and keep it with the sweep."""
    found = [
        Found(config.name, about.parameters(config), metrics_of(outcome.reports[config.name]), {})
        for config in configs
        if config.name in outcome.reports
    ]
    if not found:
        return
    by, keys = compare.telling(found), compare.metrics(found)
    groups = compare.groups(found, by)
    lines = [*compare.table(groups, by, keys), *compare.notes(groups, keys, 0)]
    for line in lines:
        say(line)
    text, picture = run.path / "compare.txt", run.path / "compare.png"
    write_atomically(text, "\n".join(lines) + "\n")
    curves.contrast(groups, by, keys, picture)
    tracker.artifact(text)
    tracker.artifact(picture)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
