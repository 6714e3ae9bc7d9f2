"""A run of `genray train` in a process tree of its own, to be hurt, and the sequence it must show all the same."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from genray.config.load import build
from genray.config.run import Config
from genray.learner.learner import Learner
from genray.runs import jsonl
from genray.stream.renderer import Renderer
from genray.stream.run import Run as PlannedRun
from genray.stream.tickets import Course

PATIENCE_S = 150
TITLES = {
    "generator": "MapWorker",
    "learner": "RayTrainWorker",
    "controller": "TrainController",
    "coordinator": "SplitCoordinator",
    "head": "gcs_server",
}
SETTINGS: dict[str, Any] = {
    "generator": {
        "kind": "custom",
        "target": "faulty:Faulty",
        "image_size": 32,
        "latent_dim": 32,
        "num_classes": 10,
        "micro_batch": 32,
    },
    "stream": {"batch_size": 16, "ticket_batches": 2},
    "augment": {"policy": "digits"},
    "model": {
        "backbone": "resnet18",
        "model_args": {"layers": [1, 1, 0, 0], "channels": [16, 16, 16, 16], "stem_width": 8, "stem_type": "deep"},
        "projection": [16, 8],
    },
    "optimizer": {"kind": "sgd", "lr": 0.01},
    "training": {"steps": 20_000, "checkpoint_every": 10, "log_every": 4},
    "pool": {"num": 1, "num_gpus": 0, "num_cpus": 0.25, "ticket_timeout_s": 4},
    "learners": {"num_workers": 1, "num_gpus": 0, "num_cpus": 0.25, "hang_timeout_s": 8},
    "tracking": {"mlflow": False},
}

COMPARABLE: dict[str, Any] = {
    "model": {**SETTINGS["model"], "model_args": {**SETTINGS["model"]["model_args"], "norm_layer": "groupnorm1"}},
    "optimizer": {"kind": "sgd", "lr": 3e-5, "momentum": 0.99},
}
"""Changes with which several learners have the losses of one, to within `COMPARABLE_RTOL` over 400 steps.

Batch norm takes its statistics from a learner's own images. Sums in another order differ in their last bits, and at a
larger learning rate such a difference grows a thousandfold in a hundred steps. With so much momentum the losses of an
optimiser that starts afresh differ by more than that after 20 steps.
"""
COMPARABLE_RTOL = 1e-5


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with changes on top: some fields of a section, or another value of a field."""
    merged = {**settings, **changes}
    for name, section in settings.items():
        if isinstance(section, dict):
            merged[name] = {**section, **changes.get(name, {})}
    return merged


class Run:
    """One run by name; it may be started, hurt, stopped and started again."""

    started: ClassVar[list[Run]] = []
    """Runs whose processes may still be there."""

    def __init__(self, storage: Path, name: str, slow_s: float = 0.02, **changes: Any):
        self.path, self.orders = storage / name, storage / f"{name}-orders"
        self.orders.mkdir(parents=True, exist_ok=True)
        values = changed(SETTINGS, changes)
        values["generator"]["options"] = {"orders": str(self.orders), "slow_s": slow_s}
        self.values = {"name": name, "storage_path": str(storage), **values}
        self.file, self.output = storage / f"{name}.json", storage / f"{name}.out"
        self.process: subprocess.Popen[str] | None = None
        self.root: int | None = None
        """The process that all of the run's are below, where it is not the driver."""
        self.said = ""

    @cached_property
    def config(self) -> Config:
        return build(self.values)

    def start(self, *overrides: str, **environment: str) -> None:
        self.file.write_text(json.dumps(self.values))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "genray.cli", "train", str(self.file), *overrides],
            start_new_session=True,
            stdout=self.output.open("w"),  # a pipe that nobody reads would hold it up
            stderr=subprocess.STDOUT,
            text=True,
            # A report is taken at a poll of the controller; these runs report every few milliseconds.
            env={**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", **environment},
        )

        if self not in Run.started:
            Run.started.append(self)

    def order(self, fault: str, times: int = 1) -> None:
        """Have the generator misbehave in its next calls; see `faulty.Faulty`."""
        (self.orders / fault).write_text(str(times))

    def step(self) -> int:
        """The last step that is recorded."""
        file = self.path / "batches.jsonl"
        return int(jsonl.read(file)[-1]["step"]) if file.exists() and file.stat().st_size else 0

    def faults(self) -> list[dict[str, Any]]:
        return jsonl.read(self.path / "faults.jsonl")

    def wait_for(self, what: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        """What it returns, once that is true; the run must live until then."""
        deadline = time.monotonic() + patience_s
        while not (found := what()):
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the run ended with {self.process.returncode}: {self.end()}")
            assert time.monotonic() < deadline, f"waited {patience_s} s at step {self.step()}: {self.faults()}"
            time.sleep(0.05)
        return found

    def progress(self, steps: int = 6) -> float:
        """Seconds until it is so many steps further."""
        asked, target = time.monotonic(), self.step() + steps
        self.wait_for(lambda: self.step() >= target)
        return time.monotonic() - asked

    def pids(self, role: str) -> list[int]:
        """The processes of the run that play this part; see TITLES."""
        return [pid for pid, title in self.tree().items() if TITLES[role] in title]

    def tree(self) -> dict[int, str]:
        """Every process below the driver, with its title."""
        assert self.process is not None
        root = self.root or self.process.pid
        titles, parents = {}, {}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(directory.name)] = (directory / "cmdline").read_text().replace("\0", " ").strip()
                parents[int(directory.name)] = parent
            except OSError:
                continue

        def below(pid: int) -> bool:
            while pid in parents and pid != root:
                pid = parents[pid]
            return pid == root

        return {pid: title for pid, title in titles.items() if below(pid)}

    def hurt(self, role: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the process of this part; returns its id."""
        found: list[int] = self.wait_for(lambda: self.pids(role))
        os.kill(found[-1], number)
        return found[-1]

    def fill_the_disk(self, role: str, left: int = 20_000) -> None:
        """Leave the process of this part room for so many bytes in any file that it writes."""
        for pid in self.wait_for(lambda: self.pids(role)):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (left, resource.RLIM_INFINITY))

    def kill_everything(self) -> None:
        """SIGKILL of the driver and all that is below it."""
        assert self.process is not None
        if self.process.poll() is not None:
            return
        tree = self.tree() if self.root is None else {}
        for pid in [self.process.pid, *tree]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.end()

    def kill_driver(self) -> None:
        """SIGKILL of the driver alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self, patience_s: float = PATIENCE_S) -> str:
        """Wait for the driver's end; returns what it said."""
        assert self.process is not None
        self.process.wait(patience_s)
        self.said = self.output.read_text()
        return self.said

    def stop(self) -> int:
        """SIGTERM to the driver; returns its exit code."""
        assert self.process is not None
        self.process.terminate()
        self.end()
        return self.process.returncode

    def failed(self, patience_s: float = PATIENCE_S) -> str:
        """What a run says that is started and must end by itself with an error."""
        self.start()
        self.end(patience_s)
        assert self.process is not None
        assert self.process.returncode == 1
        return self.said

    def batches(self) -> list[dict[str, Any]]:
        """The last line of each step."""
        return list({line["step"]: line for line in jsonl.read(self.path / "batches.jsonl")}.values())

    def metrics(self) -> list[dict[str, Any]]:
        return jsonl.read(self.path / "metrics.jsonl")

    def assert_exact(self, rtol: float = 1e-3) -> int:
        """That every step showed what the seed says it must, once and in order, and learned from it; returns steps.

        Args:
            rtol: by how much a loss may differ from that of one learner to which nothing happens.
        """
        found = jsonl.read(self.path / "batches.jsonl")
        assert [line["step"] for line in found] == list(range(1, len(found) + 1))
        assert [shown(line) for line in found] == list(self.expected(len(found)))
        assert not [fault for fault in self.faults() if fault["fault"] == "replayed differently"]
        metrics = self.metrics()
        every = self.config.training.log_every
        assert [record["step"] for record in metrics] == list(range(every, every * len(metrics) + 1, every))
        reference = [record["loss"] for record in self.alone(metrics[-1]["step"])]
        np.testing.assert_allclose([record["loss"] for record in metrics], reference, rtol=rtol)
        return len(found)

    def expected(self, steps: int) -> Iterator[tuple[int, str, str]]:
        """What each step must show, of a run that does not use its blocks again: see `shown`."""
        renderer = Renderer(build({**self.values, "generator": {"kind": "biggan", "micro_batch": 32}}), "cpu")
        size = self.config.stream.batch_size
        for step in range(steps):
            block = renderer.block_at(np.arange(step * size, (step + 1) * size))
            sums = (
                sum((2 * place + 1) * zlib.crc32(row.tobytes()) for place, row in enumerate(block[column])) % 2**32
                for column in ("latent", "views")
            )
            latents, pixels = (f"{found:08x}" for found in sums)
            yield step + 1, latents, pixels

    def alone(self, steps: int) -> list[dict[str, Any]]:
        """The records of one learner that nothing happens to."""
        return alone({**self.values, "generator": {"kind": "biggan", "micro_batch": 32}}, steps)


def alone(values: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """The records of one learner up to this step of a run, in this process and without Ray."""
    config = build({**values, "training": {**values["training"], "checkpoint_every": 10**6}})
    renderer, threads = Renderer(config, "cpu"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        learner = Learner(PlannedRun.of(config).with_learners(1), 0, torch.device("cpu"))
        found = []
        for report in learner.train(map(renderer.block, Course(learner.plan).of_learner(0))):
            found.append(report.record)
            if report.record["step"] >= steps:
                return found
    finally:
        torch.set_num_threads(threads)
    raise AssertionError("the run is shorter")


def shown(line: dict[str, Any]) -> tuple[int, str, str]:
    """A line of batches.jsonl without who made the step: its number, and the checksums of latents and pixels."""
    return line["step"], line["latents"], line["pixels"]


IN_RUN: dict[str, Callable[[Run], Any]] = {
    "generator killed": lambda run: run.hurt("generator", signal.SIGKILL),
    "generator raises": lambda run: run.order("raise"),
    "generator renders NaN": lambda run: run.order("nan"),
    "generator hangs": lambda run: run.hurt("generator", signal.SIGSTOP),
    "learner killed": lambda run: run.hurt("learner", signal.SIGKILL),
    "learner hangs": lambda run: run.hurt("learner", signal.SIGSTOP),
    "split coordinator killed": lambda run: run.hurt("coordinator", signal.SIGKILL),
    "controller killed": lambda run: run.hurt("controller", signal.SIGKILL),
}
"""Faults that a run survives by itself."""

RESTARTED: dict[str, Callable[[Run], Any]] = {
    "everything killed, started again": Run.kill_everything,
    "driver killed, started again": Run.kill_driver,
}
"""Faults after which a run is started again."""
