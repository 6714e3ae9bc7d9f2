"""What each learner runs: blocks in, optimiser steps out, a record every few steps, and now and then a checkpoint."""

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

from genray import balance, checkpoint, losses, objectives, optim, reuse
from genray.augment import augment_views, policy
from genray.config import Config
from genray.course import Course
from genray.model import Columns, Encoder, Outputs
from genray.plan import Plan
from genray.stopwatch import Stopwatch
from genray.views import Block


class NotFinite(Exception):
    """The loss was not a finite number; the last checkpoint was written before that."""


class OutOfOrder(Exception):
    """The stream handed out another ticket than the one that is next."""


class Report(NamedTuple):
    """What a learner tells the run after a step."""

    record: dict[str, Any]
    """Metrics of the window that ends here; empty when only a checkpoint is due."""
    checkpoint: bool
    """Whether a checkpoint is due, of all steps made so far."""


Wish = Literal["go on", "save", "stop"]
"""What is asked of the learners after a step: nothing, a checkpoint, or a checkpoint and the end."""


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
    """One optimiser step on images `[V * n, 3, h, w]` and what is known of their `n` anchors.

    All views go through one forward pass, so that batch norm sees them together. `parallel` is the encoder as it is
    trained, `progress` the share of the run that lies before the step; `lap` is told when a part is done.

    Returns:
        The loss and the encoder's outputs, detached and not waited for.
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
    """What happened since the last record."""

    before: checkpoint.Open = field(default_factory=checkpoint.Open)
    """Its steps that were made before a restart."""
    loss: Tensor | float = 0.0
    measured: balance.Window = field(default_factory=balance.Window)
    batches: list[tuple[int, Future[list[int]]]] = field(default_factory=list)
    """Each step, and the checksums of what this learner saw in it."""

    def summed(self, learner: Learner) -> checkpoint.Open:
        """Its steps so far, for a checkpoint; all learners must ask."""
        loss = losses.sum_over_learners(torch.as_tensor(self.loss, dtype=torch.float64, device=learner.device))
        return checkpoint.Open(
            self.before.steps + self.measured.steps,
            self.before.loss + float(loss) / learner.plan.num_workers,
            self.lines(learner),
        )

    def lines(self, learner: Learner) -> list[dict[str, Any]]:
        """For each step its tickets, and checksums over all learners of their latents and pixels; all must ask.

        With c_i the CRC-32 of what the i-th place of the batch shows, a checksum is the sum of (2 i + 1) c_i modulo
        2^32: the same for any number of learners.
        """
        if not self.batches:
            return self.before.batches
        sums = torch.tensor([found.result() for _, found in self.batches], dtype=torch.int64, device=learner.device)
        sums = losses.sum_over_learners(sums) % 2**32
        found = list(self.before.batches)
        for (step, _), (latents, pixels) in zip(self.batches, sums.tolist(), strict=True):
            found.append(
                {
                    "step": step,
                    "learners": learner.plan.num_workers,
                    "tickets": learner.plan.tickets_of(step),
                    "latents": f"{latents:08x}",
                    "pixels": f"{pixels:08x}",
                }
            )
        return found

    def record(self, learner: Learner) -> dict[str, Any]:
        """Its mean loss, what was measured, and a line for each step."""
        self.measured.seconds = learner.stopwatch.read()
        steps = self.before.steps + self.measured.steps
        return {
            "loss": (self.before.loss + float(self.loss)) / steps,
            "measured": self.measured.to_dict(),
            "batches": self.lines(learner),
        }


class Learner:
    """One data-parallel learner: its copy of the encoder, and the steps it has made."""

    def __init__(self, config: Config, rank: int, device: torch.device, num_workers: int | None = None):
        self.config, self.plan, self.rank, self.device = config, Plan.of(config, num_workers), rank, device
        self.policy = policy(config.augment, self.plan.image_size)
        encoder = objectives.build(config, self.plan)
        if config.model.sync_batch_norm and self.plan.num_workers > 1:
            from timm.layers import convert_sync_batchnorm  # torch's own drops the activation of timm's fused layers

            encoder = convert_sync_batchnorm(encoder)
        self.layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        self.encoder = encoder.to(device).to(memory_format=self.layout)
        self.optimizer = optim.build(config.optimizer, self.encoder)
        self.step, self.window = 0, checkpoint.Open()
        self.stopwatch, self.open = Stopwatch(device), Window()
        self.latest: Block = {}
        """The block that arrived last."""
        self.marks: dict[str, float] = {"model built": time.time()}

    def restore(self, directory: Path) -> None:
        """Go on from a checkpoint."""
        self.step, self.window = checkpoint.restore(directory, self.encoder, self.optimizer)

    def save(self, directory: Path) -> None:
        """Write a checkpoint of where the run stands."""
        checkpoint.save(directory, self.step, self.encoder, self.optimizer, self.window)

    def features(self, images: Tensor) -> Tensor:
        """Backbone features `[n, F]` of normalised images, in evaluation mode."""
        was_training = self.encoder.training
        self.encoder.eval()
        with torch.inference_mode():
            found = self.encoder.features(images.to(self.device).contiguous(memory_format=self.layout))
        self.encoder.train(was_training)
        return found

    def images(self, batch: Block) -> Tensor:
        """The batch's views on this learner's device, augmented: float32 `[V * n, 3, h, w]`."""
        views = torch.from_numpy(batch["views"]).to(self.device, non_blocking=True)
        self.stopwatch.lap("copy")
        showing = self.plan.reuse * batch["epoch"] + batch.get("use", 0)
        images = augment_views(
            views, batch["anchor"], self.policy, self.config.seed, self.config.stream.num_views, use=showing
        )
        images = images.contiguous(memory_format=self.layout)
        self.stopwatch.lap("augment")
        return images

    def columns(self, batch: Block) -> Columns:
        """What the objective must know of the batch, on this learner's device."""
        return {name: torch.from_numpy(batch[name]).to(self.device) for name in self.encoder.columns}

    def train(self, blocks: Iterator[Block], asked: Callable[[int], Wish] = lambda step: "go on") -> Iterator[Report]:
        """Consume the stream to the end of the run, yielding a report where one is due.

        Args:
            blocks: this learner's tickets of the course that begins at `self.step`, rendered.
            asked: what is asked of the learners after a step, the same for all of them.

        Raises:
            OutOfOrder: a block is not the one that is next.
            NotFinite: the loss of some step since the last record was not finite; the message names it.
        """
        training, plan = self.config.training, self.plan
        probe_every = self.config.probe.every if self.config.probe.data else plan.steps
        model = self._parallel
        dtype = getattr(torch, self.config.model.precision)
        bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)  # looked at only when a report is due
        self.encoder.train()
        self.open = Window(self.window)
        lap = self.stopwatch.lap
        with ThreadPoolExecutor(1) as beside:  # checksums take no time of the training
            for number, batch in enumerate(
                reuse.shown(self._fresh(blocks), plan, self.config.seed, self.rank, self.step)
            ):
                if number == 0:  # waiting for the first one is start-up, and so are those of a window that is refilled
                    self.stopwatch.start()
                    self.open.measured = balance.Window()
                    self.open.measured.arrived(self.latest)
                self.step = step = self.step + 1
                optim.set_learning_rate(self.optimizer, self.learning_rate(step))
                columns, progress = self.columns(batch), (step - 1) / plan.steps
                loss, outputs = train_step(
                    self.encoder, model, self.optimizer, self.images(batch), columns, progress, dtype, lap
                )
                window = self.open
                window.batches.append((step, beside.submit(_checksums, batch, self.rank * plan.local_batch)))
                bad_step = torch.where((bad_step < 0) & ~loss.isfinite(), step, bad_step)
                window.loss = window.loss + loss.double()  # exact, in any order
                window.measured.steps += 1
                self.marks.setdefault("first step", time.time())
                last = step == plan.steps
                if step % training.log_every == 0 or step % probe_every == 0 or last:
                    self._stop_if(bad_step)
                    lap("other")
                    yield Report(self._record(step, window, outputs, columns), False)
                    self.open = Window()
                    self.stopwatch.start()
                wish = asked(step)
                if step % training.checkpoint_every == 0 or wish != "go on" or last:
                    self._stop_if(bad_step)
                    self.window = self.open.summed(self)
                    yield Report({}, True)
                if wish == "stop" or last:
                    return
                lap("other")
        if self.step < plan.steps:
            raise OutOfOrder(f"the stream ended at step {self.step} of {plan.steps}")

    def learning_rate(self, step: int) -> float:
        """The learning rate of this step, counted from 1: a function of the anchors consumed with it."""
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
        """The encoder as it is trained."""
        if self.config.model.compile:
            self.encoder.compile()
        if self.plan.num_workers == 1:
            return self.encoder
        return nn.parallel.DistributedDataParallel(self.encoder)

    def _fresh(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The fresh batches, cut without copying from blocks that are checked to be what this learner must see next."""
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
            self.open.measured.arrived(block)
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

    def _stop_if(self, bad_step: Tensor) -> None:
        if (step := int(bad_step)) >= 0:
            raise NotFinite(
                f"the loss was not finite in step {step}; the last checkpoint is from before it. "
                "A smaller optimizer.lr or model.precision = 'float32' may help"
            )


def _checksums(batch: Block, first: int) -> list[int]:
    """Checksums of a batch's latents and of its pixels, whose first row has this place in the batch of all learners."""

    def checksum(column: np.ndarray) -> int:
        crcs = (zlib.crc32(np.ascontiguousarray(row).data) for row in column)
        return sum((2 * place + 1) * crc for place, crc in enumerate(crcs, start=first)) % 2**32

    return [checksum(batch[name]) for name in ("latent", "views")]
