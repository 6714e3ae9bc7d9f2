"""One learner of a run: it takes blocks, makes optimiser steps, and reports records and checkpoints."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from genray.config.errors import Hopeless
from genray.learner import losses, objectives, optim
from genray.learner.balance import Measurements
from genray.learner.encoder import Columns, Encoder, Outputs
from genray.learner.stopwatch import Stopwatch
from genray.runs import checkpoint
from genray.runs.checkpoint import PartialWindow
from genray.stream import reuse
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.augment import augment_views, policy
from genray.views.types import Block


class NotFinite(Hopeless):
    """The loss was not a finite number. The last checkpoint was written before that."""


class OutOfOrder(Hopeless):
    """The stream delivered another ticket than the next one."""


class Report(NamedTuple):
    """What a learner yields after a step: a record, or the request to write a checkpoint."""

    record: dict[str, Any]
    """Metrics of the window that ends with this step; empty if only a checkpoint is due."""
    checkpoint: bool
    """Whether a checkpoint of this step is due."""


Request = Literal["continue", "save", "stop"]
"""What the learners are asked to do after a step: carry on, write a checkpoint, or write one and stop."""


def train_step(
    encoder: Encoder,
    parallel: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    columns: Columns,
    progress: float,
    dtype: torch.dtype,
    lap: Callable[[str], None] = lambda name: None,
) -> tuple[Tensor, Outputs]:
    """One optimiser step. All views share one forward pass, so that batch norm sees them together.

    Args:
        encoder: computes the loss and follows the step (`after_step`).
        parallel: the same encoder as it is trained: compiled, and wrapped for data parallelism.
        optimizer: over the encoder's parameters.
        images: `[V * n, 3, h, w]`, normalised.
        columns: what the loss is taken against, a row for each of the `n` anchors.
        progress: share of the run before this step, 0 to 1.
        dtype: of the forward pass; the loss is float32 at least.
        lap: called with a phase's name when it has been queued; see `Stopwatch`.

    Returns:
        The loss and the encoder's outputs, detached. A GPU may not have computed them yet.
    """
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        outputs = parallel(images)
    loss = encoder.loss(outputs, columns)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    lap("forward_backward")
    optimizer.step()
    encoder.after_step(progress)
    lap("optimizer")
    return loss.detach(), {name: rows.detach() for name, rows in outputs.items()}


@dataclass
class Window:
    """The steps since the last record."""

    before: PartialWindow = field(default_factory=PartialWindow)
    """Those made before a restart, from the checkpoint."""
    loss: Tensor | float = 0.0
    """Sum over the steps made since, of this learner."""
    measured: Measurements = field(default_factory=Measurements)
    batches: list[tuple[int, Future[list[int]]]] = field(default_factory=list)
    """Each step made since, with the checksums of what this learner saw in it."""

    def partial(self, learner: Learner) -> PartialWindow:
        """The window so far, for a checkpoint. A collective operation: all learners must call it."""
        loss = losses.sum_over_learners(torch.as_tensor(self.loss, dtype=torch.float64, device=learner.device))
        return PartialWindow(
            self.before.steps + self.measured.steps,
            self.before.loss + float(loss) / learner.plan.num_workers,
            self.lines(learner),
        )

    def lines(self, learner: Learner) -> list[dict[str, Any]]:
        """A line of batches.jsonl for each step: its tickets, and checksums of its latents and pixels.

        The checksums cover all learners: with c_i the CRC-32 of row i of the whole batch, a checksum is the sum of
        (2 i + 1) c_i modulo 2^32, the same for any number of learners. A collective operation: all must call it.
        """
        if not self.batches:
            return self.before.batches
        own = torch.tensor([sums.result() for _, sums in self.batches], dtype=torch.int64, device=learner.device)
        totals = losses.sum_over_learners(own) % 2**32
        lines = list(self.before.batches)
        for (step, _), (latents, pixels) in zip(self.batches, totals.tolist(), strict=True):
            lines.append(
                {
                    "step": step,
                    "learners": learner.plan.num_workers,
                    "tickets": learner.plan.tickets_of(step),
                    "latents": f"{latents:08x}",
                    "pixels": f"{pixels:08x}",
                }
            )
        return lines

    def record(self, learner: Learner) -> dict[str, Any]:
        """The mean loss over its steps, its measurements, and its `lines`."""
        self.measured.seconds = learner.stopwatch.read()
        steps = self.before.steps + self.measured.steps
        return {
            "loss": (self.before.loss + float(self.loss)) / steps,
            "measured": self.measured.to_dict(),
            "batches": self.lines(learner),
        }


class Learner:
    """One data-parallel learner: a copy of the encoder, its optimiser, and the steps made so far.

    >>> run = Run.of(config)
    >>> learner = Learner(run, rank=0, device=torch.device("cpu"))
    >>> blocks = InlineGenerator(run, learner.device).blocks(Course(run.plan, learner.step), rank=0)
    >>> for record, checkpoint_due in learner.train(blocks):
    ...     print(record.get("step"), record.get("loss"))

    Args:
        run: planned for the number of learners that take part.
        rank: of this learner, from 0.
        device: where it trains.
    """

    def __init__(self, run: Run, rank: int, device: torch.device):
        self.run, self.config, self.plan, self.rank, self.device = run, run.config, run.plan, rank, device
        config = run.config
        self.policy = policy(config.augment, self.plan.image_size)
        encoder = objectives.build(config, self.plan)
        if config.model.sync_batch_norm and self.plan.num_workers > 1:
            from timm.layers import convert_sync_batchnorm  # torch's own drops the activation of timm's fused layers

            encoder = convert_sync_batchnorm(encoder)
        self.layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        self.encoder = encoder.to(device).to(memory_format=self.layout)
        self.optimizer = optim.build(config.optimizer, self.encoder)
        self.step, self.held = 0, PartialWindow()
        self.stopwatch, self.window = Stopwatch(device), Window()
        self.latest: Block = {}
        """The last block that arrived."""
        self.marks: dict[str, float] = {"model built": time.time()}
        """When each milestone of the start-up was reached, in seconds since 1970."""

    def restore(self, directory: Path) -> None:
        """Continue from a checkpoint."""
        self.step, self.held = checkpoint.restore(directory, self.encoder, self.optimizer)

    def save(self, directory: Path) -> None:
        """Write a checkpoint of the steps made so far into an existing directory."""
        checkpoint.save(directory, self.step, self.encoder, self.optimizer, self.held)

    def features(self, images: Tensor) -> Tensor:
        """Backbone features `[n, F]` of normalised images, in evaluation mode."""
        was_training = self.encoder.training
        self.encoder.eval()
        with torch.inference_mode():
            features = self.encoder.features(images.to(self.device).contiguous(memory_format=self.layout))
        self.encoder.train(was_training)
        return features

    def images(self, batch: Block) -> Tensor:
        """The batch's views on this learner's device, augmented: float32 `[V * n, 3, h, w]`."""
        views = torch.from_numpy(batch["views"]).to(self.device, non_blocking=True)
        self.stopwatch.lap("copy")
        times_shown = self.plan.reuse * batch["epoch"] + batch.get("use", 0)
        images = augment_views(
            views, batch["anchor"], self.policy, self.config.seed, self.config.stream.num_views, use=times_shown
        )
        images = images.contiguous(memory_format=self.layout)
        self.stopwatch.lap("augment")
        return images

    def columns(self, batch: Block) -> Columns:
        """The columns that the objective's loss needs, on this learner's device."""
        return {name: torch.from_numpy(batch[name]).to(self.device) for name in self.encoder.columns}

    def train(
        self, blocks: Iterator[Block], poll: Callable[[int], Request] = lambda step: "continue"
    ) -> Iterator[Report]:
        """Train to the end of the run, yielding a report whenever a record or a checkpoint is due.

        Args:
            blocks: this learner's rendered tickets of the course that begins at `self.step`.
            poll: called with each step made; returns what to do now, the same for all learners.

        Raises:
            OutOfOrder: a block is not the next one, or the stream ended too early.
            NotFinite: the loss of a step since the last record was not finite; the message names the step.
        """
        training, plan = self.config.training, self.plan
        probe_every = self.config.probe.every if self.config.probe.data else plan.steps
        parallel = self._parallel
        bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)  # read only when a report is due
        self.encoder.train()
        self.window = Window(self.held)
        batches = reuse.batches(self._fresh(blocks), plan, self.config.seed, self.rank, self.step)
        with ThreadPoolExecutor(1) as thread:  # checksums cost no training time
            for number, batch in enumerate(batches):
                if number == 0:
                    self._start_measuring()
                self.step = step = self.step + 1
                loss, outputs, columns = self._update(parallel, batch)
                window = self.window
                window.batches.append((step, thread.submit(checksums, batch, self.rank * plan.local_batch)))
                bad_step = torch.where((bad_step < 0) & ~loss.isfinite(), step, bad_step)
                window.loss = window.loss + loss.double()  # exact, in any order
                window.measured.steps += 1
                self.marks.setdefault("first step", time.time())
                last = step == plan.steps
                if step % training.log_every == 0 or step % probe_every == 0 or last:
                    _check_finite(bad_step)
                    self.stopwatch.lap("other")
                    yield Report(self._record(step, window, outputs, columns), False)
                    self.window = Window()
                    self.stopwatch.start()
                request = poll(step)
                if step % training.checkpoint_every == 0 or request != "continue" or last:
                    _check_finite(bad_step)
                    self.held = self.window.partial(self)
                    yield Report({}, True)
                if request == "stop" or last:
                    return
                self.stopwatch.lap("other")
        if self.step < plan.steps:
            raise OutOfOrder(f"the stream ended at step {self.step} of {plan.steps}")

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1: a function of the anchors consumed up to its end."""
        batch, training = self.config.stream.batch_size, self.config.training
        return optim.learning_rate(
            self.config.optimizer.lr,
            step * batch,
            training.steps * batch,
            training.warmup_steps * batch,
            training.final_lr,
        )

    @cached_property
    def _parallel(self) -> nn.Module:
        """The encoder as it is trained: compiled if configured, and data-parallel with several learners."""
        if self.config.model.compile:
            self.encoder.compile()
        if self.plan.num_workers == 1:
            return self.encoder
        return nn.parallel.DistributedDataParallel(self.encoder)

    def _start_measuring(self) -> None:
        """Begin the first window's measurements: waiting for the first block, or refilling a window, is start-up."""
        self.stopwatch.start()
        self.window.measured = Measurements()
        self.window.measured.arrived(self.latest)

    def _update(self, parallel: nn.Module, batch: Block) -> tuple[Tensor, Outputs, Columns]:
        """Make the optimiser step `self.step` on a batch; returns its loss, outputs and columns."""
        optim.set_learning_rate(self.optimizer, self.learning_rate(self.step))
        columns, progress = self.columns(batch), (self.step - 1) / self.plan.steps
        dtype, lap = getattr(torch, self.config.model.precision), self.stopwatch.lap
        loss, outputs = train_step(
            self.encoder, parallel, self.optimizer, self.images(batch), columns, progress, dtype, lap
        )
        return loss, outputs, columns

    def _fresh(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The fresh batches: views into the blocks, each of which is checked to be the next one of this learner."""
        for number, ticket in enumerate(Course(self.plan, self.step).of_learner(self.rank)):
            if (block := next(blocks, None)) is None:
                return
            self.stopwatch.lap("wait")
            if not np.array_equal(block["position"], ticket.positions):
                raise OutOfOrder(
                    f"learner {self.rank} expected ticket {ticket.number} from position {ticket.positions[0]}, "
                    f"got ticket {block['ticket'][0]} from position {block['position'][0]}"
                )
            self.latest = block
            self.window.measured.arrived(block)
            if number == 0:
                self.marks.setdefault("first block", time.time())
            for start in range(0, len(block["anchor"]), self.plan.local_batch):
                yield {name: column[start : start + self.plan.local_batch] for name, column in block.items()}

    def _record(self, step: int, window: Window, outputs: Outputs, columns: Columns) -> dict[str, Any]:
        return {
            "step": step,
            "anchors": step * self.config.stream.batch_size,
            **window.record(self),
            **{name: float(value) for name, value in self.encoder.metrics(outputs, columns).items()},
            "lr": self.learning_rate(step),
        }


def _check_finite(bad_step: Tensor) -> None:
    """Raise NotFinite for the first step with such a loss, -1 for none; waits for the device."""
    if (step := int(bad_step)) >= 0:
        raise NotFinite(
            f"the loss was not finite in step {step}; the last checkpoint is from before it. "
            "A smaller optimizer.lr or model.precision = 'float32' may help"
        )


def checksums(batch: Block, first: int) -> list[int]:
    """Checksums of a batch's latents and pixels; `first` is the place of its first row in the batch of all learners."""

    def checksum(column: np.ndarray) -> int:
        crcs = (zlib.crc32(np.ascontiguousarray(row).data) for row in column)
        return sum((2 * place + 1) * crc for place, crc in enumerate(crcs, start=first)) % 2**32

    return [checksum(batch[name]) for name in ("latent", "views")]
