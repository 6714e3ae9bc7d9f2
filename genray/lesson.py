"""Learning something small by gradient descent through a frozen generator: one process, one device, no Ray.

A lesson may be interrupted at any time and goes on where the same command is given again: every draw is a function of
the seed and the number of the step, and what is learned, its optimisers and the open window of the curve are kept. On a
CPU the result is the same to the last bit, however often that happened.
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
from torch import Tensor

from genray import about, preview, records
from genray.config import MICRO_BATCH, BigGANGenerator, Config
from genray.configure import differences
from genray.console import Progress
from genray.fit import CLOSING_S, RunFailed, Stopped
from genray.generators import BadImages, describe, fetch, load
from genray.latent_views import NoLatentView
from genray.latents import Anchors, check_classes
from genray.learned import Kind
from genray.rundir import RunDirectory, write_atomically
from genray.settings import ConfigError, UserError
from genray.stopping import Asked, Stopping
from genray.tracking import Tracker

EVERY = 20
"""Steps between two records of the curve, and between two checkpoints."""


class Options(Protocol):
    """What a lesson is told besides the configuration: a dataclass."""

    @property
    def steps(self) -> int: ...


class Stateful(Protocol):
    """A module or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Student(Protocol):
    """What is learned, and how."""

    @property
    def state(self) -> Mapping[str, Stateful]:
        """All that a checkpoint has to hold."""
        ...

    def step(self, number: int) -> dict[str, float] | None:
        """Make a step, a function of its number and the state; what is to be recorded, or None where enough is learned.

        Among what is recorded is `loss`.
        """
        ...

    def learned(self) -> dict[str, np.ndarray]:
        """The tensors of the file."""
        ...

    def told(self) -> dict[str, Any]:
        """What the file says about them, besides the options."""
        ...

    def picture(self) -> np.ndarray:
        """What was learned, for the eye: uint8 `[height, width, 3]`."""
        ...


class Source:
    """A configured generator with its anchors, differentiable in their latents.

    Raises:
        ConfigError: the generator cannot be loaded, or its gradient is not known.
    """

    def __init__(self, config: Config):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.seed, self.spec = config.seed, describe(config.generator)
        generator = config.generator
        if isinstance(generator, BigGANGenerator):
            generator = replace(generator, compile=False, cuda_graphs=False)  # a graph holds no gradient
        if not self.spec.latent_dim:
            raise ConfigError(f"generator.kind must be one that has latents, got {config.generator.kind!r}")
        self.generator = load(generator, self.device)
        self.micro_batch = MICRO_BATCH if generator.micro_batch == "auto" else generator.micro_batch
        self.anchors = Anchors(
            seed=config.seed,
            latent_dim=self.spec.latent_dim,
            num_classes=self.spec.num_classes,
            truncation=generator.truncation,
            classes=config.stream.classes,
            class_weights=config.stream.class_weights,
        )
        z, labels, seeds = self.draw(0, 1)
        try:
            self.render(z.requires_grad_(), labels, seeds)
        except RuntimeError as error:  # autograd's, of an operation that has none
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"generator.kind must be one whose images have a gradient in z, got {generator.kind!r} ({reason})"
            ) from None

    def draw(self, step: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The anchors of a step: latents float32 `[n, d]`, classes and noise seeds int64 `[n]`."""
        position = step * count + np.arange(count)
        z = self.anchors.latents(position).astype(np.float32)
        columns = z, self.anchors.labels(position), self.anchors.seeds(position, NoLatentView(), 1)[:, 0]
        drawn = [torch.from_numpy(column).to(self.device) for column in columns]
        return drawn[0], drawn[1], drawn[2]

    def render(self, z: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
        """Images in [-1, 1], `[n, 3, H, W]`, with their gradient in z."""
        return self.generator.differentiable(z, labels if self.spec.num_classes else None, seeds)  # type: ignore

    @torch.no_grad()
    def images(self, z: Tensor, labels: Tensor, seeds: Tensor) -> np.ndarray:
        """The same for the eye: uint8 `[n, 3, H, W]`, rendered as they are for learners."""
        parts = [
            self.generator(z[part], labels[part] if self.spec.num_classes else None, seeds[part])
            for part in self.parts(len(z))
        ]
        return torch.cat(parts).cpu().numpy()

    def parts(self, count: int) -> list[slice]:
        """So many images as micro-batches."""
        return [slice(first, first + self.micro_batch) for first in range(0, count, self.micro_batch)]


@dataclass(frozen=True)
class Lesson:
    """One job: what is learned, from which generator, and where it goes.

    Beside the file are its picture, under the same name, and a directory for the curve and the checkpoint.
    """

    kind: Kind
    config: Config
    options: Options
    out: Path
    enrol: Callable[[Source], Student]
    sections: tuple[str, ...] = ()
    """Sections of the configuration that decide the result besides the generator."""

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
        """All that decides the result."""
        values = self.config.to_dict()
        return {
            **{name: values[name] for name in ("generator", "seed", *self.sections)},
            "stream": {name: values["stream"][name] for name in ("classes", "class_weights")},
            self.kind.verb: json.loads(json.dumps(asdict(self.options))),  # type: ignore[call-overload]
        }

    def learn(self, say: Callable[[str], None] = print) -> str:
        """Learn, write the file and its picture; what has been begun is gone on with, what is finished stays.

        Returns:
            How to open the MLflow run; empty without one.

        Raises:
            UserError: the request cannot be carried out as it stands.
            RunFailed: the loss is not finite any more, or the generator renders something that is not an image.
            Stopped: SIGTERM or Ctrl-C came.
        """
        spec, run = describe(self.config.generator), self.run
        check_classes(self.config.stream, spec)
        with ExitStack() as stack:
            self._claim(stack)
            named = replace(self.config, name=f"{self.kind.verb} {self.out.stem}")
            if self.out.exists():
                say(f"{self.out} is finished; choose another --out to learn again")
                if run.undelivered.exists():
                    tracker = Tracker(named, run.path, say, about.LESSON, self.settings)
                    self._deliver(tracker)
                    self._end(tracker, "FINISHED", say)
                return ""
            fetch(self.config.generator)
            progress = Progress(run.metrics, self.options.steps)
            tracker = Tracker(named, run.path, progress.say, about.LESSON, self.settings)
            status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
            try:
                with Stopping(run.stop, progress.say) as stopping:
                    progress.phase("loading the generator")
                    student = self.enrol(Source(self.config))
                    if not stopping.while_training(lambda: self._steps(student)):
                        raise Asked(stopping.number or signal.SIGTERM)
                    run.undelivered.touch()  # until MLflow has all
                    self._write(student)
                self._deliver(tracker)
                status = "FINISHED"
            except BadImages as error:
                raise RunFailed(str(error)) from error
            except Asked as asked:
                status = "KILLED"
                raise Stopped(
                    f"{self.out} was stopped and is resumable from step {self._reached()}: give the same command again",
                    interrupted=asked.number == signal.SIGINT,
                ) from None
            finally:
                progress.close()
                self._end(tracker, status, say)
                run.stop.unlink(missing_ok=True)
        return tracker.url()

    def _claim(self, stack: ExitStack) -> None:
        """Hold the directory, which must be this lesson's or new, for this process."""
        run, note = self.run, self.run.path / "lesson.json"
        if not self.out.absolute().parent.is_dir() or self.out.is_dir() or self.out.suffix != ".safetensors":
            raise UserError(f"--out must be a .safetensors file in a directory that exists, got '{self.out}'")
        if self.out.exists() and not note.exists():
            raise UserError(f"--out must be a new file, got '{self.out}', which this command has not begun")
        try:
            run.path.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"--out must be a file that can be written, got '{self.out}' ({error.strerror})") from None
        try:
            stack.enter_context(run.locked())
        except UserError:
            raise UserError(f"--out must not be that of a job in progress, got '{self.out}'") from None
        if self.checkpoint.exists() or self.out.exists():
            theirs = json.loads(note.read_text())
            if changed := [f"{path} was {was!r}, is {now!r}" for path, was, now in differences(theirs, self.settings)]:
                raise UserError(
                    f"--out must be new for other settings, got '{self.out}', begun with {'; '.join(changed)}. Choose "
                    f"another, or remove {run.path.name} and the file"
                )
        else:  # what a start that came to nothing has left
            for leftover in (run.metrics, run.mlflow):
                leftover.unlink(missing_ok=True)
        write_atomically(note, json.dumps(self.settings, indent=2) + "\n")

    def _steps(self, student: Student) -> bool:
        """Every step that is left; False where it was asked to stop."""
        number, window = self._restore(student)
        recorded = records.last(self.run.metrics).get("step", 0)
        while number < self.options.steps and (found := student.step(number)) is not None:
            if not math.isfinite(found["loss"]):
                raise RunFailed(f"the loss of step {number + 1} is not finite; lower --lr, or check the generator")
            number += 1
            window.append(found)
            if whole := number % EVERY == 0:
                recorded = self._record(number, window, recorded)
            asked = self.run.stop.exists()
            if whole or asked:
                self._save(student, number, window)
            if asked and number < self.options.steps:
                return False
        self._record(number, window, recorded)
        return True

    def _record(self, number: int, window: list[dict[str, float]], recorded: int) -> int:
        """A line of the curve, the mean of the window, if it is new; the window begins again."""
        if window and number > recorded:
            means = {key: sum(found[key] for found in window) / len(window) for key in window[0]}
            records.append(self.run.metrics, {"step": number, "time": time.time(), **means})
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
        found = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        for name, part in student.state.items():
            part.load_state_dict(found["state"][name])
        return found["step"], found["window"]

    def _reached(self) -> int:
        return torch.load(self.checkpoint, weights_only=True)["step"] if self.checkpoint.exists() else 0

    def _write(self, student: Student) -> None:
        spec = describe(self.config.generator)
        last = records.last(self.run.metrics)
        told = {
            "generator": spec.name,
            "latent_dim": spec.latent_dim,
            **student.told(),
            "curve_ends": {key: value for key, value in last.items() if key != "time"},
            "settings": self.settings,
            "versions": {name: version(name) for name in ("genray", "torch")},
        }
        preview.write(self.picture, student.picture())
        self.kind.write(self.out, student.learned(), told)

    def _deliver(self, tracker: Tracker) -> None:
        """Hand what was learned to MLflow."""
        tracker.artifact(self.picture.absolute())
        tracker.artifact(self.out.absolute())

    def _end(
        self, tracker: Tracker, status: Literal["FINISHED", "FAILED", "KILLED"], say: Callable[[str], None]
    ) -> None:
        for line in tracker.end(status, CLOSING_S, self.run.undelivered):
            say(line)
