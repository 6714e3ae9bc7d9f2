"""A lesson: learns something small by gradient descent through a frozen generator, on one device and without Ray.

A lesson may be interrupted at any time; the same command resumes it. Every draw is a function of the seed and the step,
and the checkpoint holds what is learned, its optimisers and the partial window of the curve. So on a CPU the result is
the same to the last bit, however often it was interrupted.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from genray.commands.lessons.differentiable import DifferentiableGenerator
from genray.commands.progress import Progress
from genray.config.errors import RunFailed, RunStopped, UserError
from genray.config.files import write_atomically
from genray.config.load import differences
from genray.config.run import Config
from genray.runs import jsonl
from genray.runs.directory import RunDirectory
from genray.runs.stopping import Stopping, StopRequested
from genray.stream.checks import check_classes
from genray.tracking import described
from genray.tracking.tracker import CLOSE_TIMEOUT_S, Tracker
from genray.views import preview
from genray.views.generators import describe, fetch
from genray.views.types import BadImages
from genray.views.walk_files import LearnedViewFile

RECORD_EVERY = 20
"""Steps between two records of the curve, and between two checkpoints."""


class Options(Protocol):
    """Options of a lesson besides the configuration: a dataclass."""

    @property
    def steps(self) -> int: ...


class Stateful(Protocol):
    """A module or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Student(Protocol):
    """What a lesson trains: networks or vectors, with their loss and their optimisers."""

    @property
    def state(self) -> Mapping[str, Stateful]:
        """What a checkpoint has to hold, by name."""
        ...

    def step(self, number: int) -> dict[str, float] | None:
        """Make a step, which depends only on its number and the state.

        Returns:
            Metrics to record, with `loss` among them; None, without a step, once enough has been learned.
        """
        ...

    def learned(self) -> dict[str, np.ndarray]:
        """The tensors of the file."""
        ...

    def metadata(self) -> dict[str, Any]:
        """What the file records about them, besides the options."""
        ...

    def picture(self) -> np.ndarray:
        """A picture of what was learned: uint8 `[height, width, 3]`."""
        ...


@dataclass(frozen=True)
class Lesson:
    """What is learned from which generator, and the file that it is written to.

    >>> lesson = Lesson(WALKS, config, options, out, make_student=lambda source: Walks(source, options))
    >>> lesson.learn()

    Next to the file are its picture, of the same name, and a directory with the curve and the checkpoint.
    """

    kind: LearnedViewFile
    config: Config
    options: Options
    out: Path
    make_student: Callable[[DifferentiableGenerator], Student]
    sections: tuple[str, ...] = ()
    """Sections of the configuration that affect the result, besides the generator."""

    @property
    def picture(self) -> Path:
        return self.out.with_suffix(".png")

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.out.absolute().with_suffix(f".{self.kind.verb}"))

    @property
    def checkpoint(self) -> Path:
        return self.run.path / "checkpoint.pt"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the result."""
        values = self.config.to_dict()
        return {
            **{name: values[name] for name in ("generator", "seed", *self.sections)},
            "stream": {name: values["stream"][name] for name in ("classes", "class_weights")},
            self.kind.verb: json.loads(json.dumps(asdict(self.options))),  # type: ignore[call-overload]
        }

    def learn(self, say: Callable[[str], None] = print) -> str:
        """Learn, and write the file and its picture. Resumes an unfinished lesson; a finished file is kept.

        Returns:
            How to open the MLflow run; empty without one.

        Raises:
            UserError: the request cannot be carried out as it stands.
            RunFailed: the loss was not finite, or the generator returned something that is not an image.
            RunStopped: SIGTERM or Ctrl-C was received.
        """
        spec, run = describe(self.config.generator), self.run
        check_classes(self.config.stream, spec)
        with ExitStack() as stack:
            self._claim(stack)
            named = replace(self.config, name=f"{self.kind.verb} {self.out.stem}")
            if self.out.exists():
                say(f"{self.out} is finished; choose another --out to learn again")
                if run.undelivered.exists():
                    tracker = Tracker(named, run.path, say, described.LESSON, self.settings)
                    self._deliver(tracker)
                    self._end(tracker, "FINISHED", say)
                return ""
            fetch(self.config.generator)
            progress = Progress(run.metrics, self.options.steps)
            tracker = Tracker(named, run.path, progress.say, described.LESSON, self.settings)
            status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
            try:
                with Stopping(run.stop, progress.say) as stopping:
                    progress.phase("loading the generator")
                    student = self.make_student(DifferentiableGenerator(self.config))
                    if not stopping.while_training(lambda: self._steps(student)):
                        raise StopRequested(stopping.number or signal.SIGTERM)
                    run.undelivered.touch()  # until MLflow has everything
                    self._write(student)
                self._deliver(tracker)
                status = "FINISHED"
            except BadImages as error:
                raise RunFailed(str(error)) from error
            except StopRequested as stop:
                status = "KILLED"
                raise RunStopped(
                    f"{self.out} was stopped and is resumable from step {self._reached()}: give the same command again",
                    interrupted=stop.number == signal.SIGINT,
                ) from None
            finally:
                progress.close()
                self._end(tracker, status, say)
                run.stop.unlink(missing_ok=True)
        return tracker.url()

    def _claim(self, stack: ExitStack) -> None:
        """Hold the directory for this process; it must be new or that of the same lesson."""
        run, settings_file = self.run, self.run.path / "lesson.json"
        if not self.out.absolute().parent.is_dir() or self.out.is_dir() or self.out.suffix != ".safetensors":
            raise UserError(f"--out must be a .safetensors file in a directory that exists, got '{self.out}'")
        if self.out.exists() and not settings_file.exists():
            raise UserError(f"--out must be a new file, got '{self.out}', which this command did not write")
        try:
            run.path.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"--out must be a file that can be written, got '{self.out}' ({error.strerror})") from None
        try:
            stack.enter_context(run.locked())
        except UserError:
            raise UserError(f"--out must not be that of a job in progress, got '{self.out}'") from None
        if self.checkpoint.exists() or self.out.exists():
            begun = json.loads(settings_file.read_text())
            if changed := [f"{path} was {was!r}, is {now!r}" for path, was, now in differences(begun, self.settings)]:
                raise UserError(
                    f"--out must be new for other settings, got '{self.out}', begun with {'; '.join(changed)}. Choose "
                    f"another, or remove {run.path.name} and the file"
                )
        else:  # left by a start that did not get as far as a checkpoint
            for leftover in (run.metrics, run.mlflow):
                leftover.unlink(missing_ok=True)
        write_atomically(settings_file, json.dumps(self.settings, indent=2) + "\n")

    def _steps(self, student: Student) -> bool:
        """Make the remaining steps; False if it was asked to stop before the last one."""
        number, window = self._restore(student)
        recorded = jsonl.last(self.run.metrics).get("step", 0)
        while number < self.options.steps and (metrics := student.step(number)) is not None:
            if not math.isfinite(metrics["loss"]):
                raise RunFailed(f"the loss of step {number + 1} is not finite; lower --lr, or check the generator")
            number += 1
            window.append(metrics)
            if whole := number % RECORD_EVERY == 0:
                recorded = self._record(number, window, recorded)
            stop = self.run.stop.exists()
            if whole or stop:
                self._save(student, number, window)
            if stop and number < self.options.steps:
                return False
        self._record(number, window, recorded)
        return True

    def _record(self, number: int, window: list[dict[str, float]], recorded: int) -> int:
        """Append the mean of the window to the curve, unless it has been recorded, and empty the window.

        Returns:
            The last recorded step.
        """
        if window and number > recorded:
            means = {key: sum(metrics[key] for metrics in window) / len(window) for key in window[0]}
            jsonl.append(self.run.metrics, {"step": number, "time": time.time(), **means})
        window.clear()
        return max(number, recorded)

    def _save(self, student: Student, number: int, window: list[dict[str, float]]) -> None:
        state = {name: part.state_dict() for name, part in student.state.items()}
        partial = self.checkpoint.with_suffix(f".{os.getpid()}")
        with partial.open("wb") as file:
            torch.save({"step": number, "window": window, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.checkpoint)

    def _restore(self, student: Student) -> tuple[int, list[dict[str, float]]]:
        if not self.checkpoint.exists():
            return 0, []
        checkpoint = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        for name, part in student.state.items():
            part.load_state_dict(checkpoint["state"][name])
        return checkpoint["step"], checkpoint["window"]

    def _reached(self) -> int:
        return torch.load(self.checkpoint, weights_only=True)["step"] if self.checkpoint.exists() else 0

    def _write(self, student: Student) -> None:
        spec = describe(self.config.generator)
        last = jsonl.last(self.run.metrics)
        metadata = {
            "generator": spec.name,
            "latent_dim": spec.latent_dim,
            **student.metadata(),
            "curve_ends": {key: value for key, value in last.items() if key != "time"},
            "settings": self.settings,
            "versions": {name: version(name) for name in ("genray", "torch")},
        }
        preview.write(self.picture, student.picture())
        self.kind.write(self.out, student.learned(), metadata)

    def _deliver(self, tracker: Tracker) -> None:
        """Queue the file and its picture for MLflow."""
        tracker.artifact(self.picture.absolute())
        tracker.artifact(self.out.absolute())

    def _end(
        self, tracker: Tracker, status: Literal["FINISHED", "FAILED", "KILLED"], say: Callable[[str], None]
    ) -> None:
        for line in tracker.end(status, CLOSE_TIMEOUT_S, self.run.undelivered):
            say(line)
