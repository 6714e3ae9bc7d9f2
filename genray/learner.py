"""What each learner runs: blocks in, optimiser steps out, a record every few steps, a checkpoint every few rounds."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from genray import checkpoint, losses, optim
from genray.augment import augment_views, policy
from genray.config import Config, Objective
from genray.course import Course, Place
from genray.model import build
from genray.plan import Plan
from genray.views import Block


class NotFinite(Exception):
    """The loss was not a finite number; the last checkpoint was written before that."""


class OutOfOrder(Exception):
    """The stream handed out another ticket than the one that is next."""


class Report(NamedTuple):
    """What a learner tells the run after a step."""

    record: dict[str, Any]
    """Metrics of the window that ends here; empty when only a checkpoint is due."""
    place: Place | None
    """Where a checkpoint is due, else None."""


Wish = Literal["go on", "save", "stop"]
"""What is asked of the learners after a step: nothing, a checkpoint, or a checkpoint and the end."""


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """One optimiser step on images `[V * n, 3, h, w]` and the labels of their anchors `[n]`.

    All views go through one forward pass, so that batch norm sees them together.

    Returns:
        The loss and the embeddings `[V * n, D]`, detached and not waited for.
    """
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        embeddings = model(images)
    loss = losses.contrastive_loss(
        embeddings,
        labels.repeat(len(images) // len(labels)),
        objective.temperature,
        objective.base_temperature,
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach(), embeddings.detach()


@dataclass
class Window:
    """What happened since the last record."""

    before: checkpoint.Open = field(default_factory=checkpoint.Open)
    """Its steps that were made before a restart."""
    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    loss: Tensor | float = 0.0
    waited: float = 0.0
    rendered: float = 0.0
    ages: list[float] = field(default_factory=list)
    generators: set[str] = field(default_factory=set)
    batches: list[tuple[Place, Future[list[int]]]] = field(default_factory=list)
    """The place before each step, and the checksums of what this learner saw in it."""

    def received(self, block: Block, waited: float) -> None:
        self.waited += waited
        self.rendered += float(block["render_s"][0])
        self.ages.append(time.time() - float(block["created_at"][0]))
        self.generators.add(str(block["generator"][0]))

    def open(self, learner: Learner) -> checkpoint.Open:
        """Its steps so far, for a checkpoint; all learners must ask."""
        loss = losses.sum_over_learners(torch.as_tensor(self.loss, dtype=torch.float64, device=learner.device))
        return checkpoint.Open(
            self.before.steps + self.steps,
            self.before.loss + float(loss) / learner.plan.num_workers,
            self.lines(learner),
        )

    def lines(self, learner: Learner) -> list[dict[str, Any]]:
        """For each step its tickets, and checksums over all learners of their latents and pixels; all must ask.

        With c_r the CRC-32 of what learner r saw, a checksum is the sum of (2 r + 1) c_r modulo 2^32.
        """
        if not self.batches:
            return self.before.batches
        sums = torch.tensor([found.result() for _, found in self.batches], dtype=torch.int64, device=learner.device)
        sums = losses.sum_over_learners((2 * learner.rank + 1) * sums) % 2**32
        found = list(self.before.batches)
        for (place, _), (latents, pixels) in zip(self.batches, sums.tolist(), strict=True):
            tickets = range(place.next_ticket, place.next_ticket + (place.num_workers or learner.plan.num_workers))
            found.append(
                {
                    "step": place.step + 1,
                    "learners": learner.plan.num_workers,
                    "tickets": list(tickets),
                    "latents": f"{latents:08x}",
                    "pixels": f"{pixels:08x}",
                }
            )
        return found

    def record(self, learner: Learner) -> dict[str, Any]:
        """Means and shares over the window; generator time is scaled from this learner's tickets to everyone's."""
        elapsed, config, workers = time.perf_counter() - self.started, learner.config, learner.plan.num_workers
        images = self.steps * config.stream.batch_size * config.stream.num_views
        record: dict[str, Any] = {
            "loss": (self.before.loss + float(self.loss)) / (self.before.steps + self.steps),
            "images_per_s": images / elapsed,
            "data_wait": self.waited / elapsed,
        }
        if self.ages:
            least = workers if config.generators.mode == "inline" else config.generators.bounds[0]
            pool = max(least, len(self.generators))
            busy = self.rendered * workers / (elapsed * pool)
            record |= {"generator_busy": min(1.0, busy), "view_age_s": float(np.mean(self.ages))}
        return record | {"batches": self.lines(learner)}


class Learner:
    """One data-parallel learner: its copy of the encoder, and where the run stands."""

    def __init__(self, config: Config, rank: int, device: torch.device, num_workers: int | None = None):
        self.config, self.plan, self.rank, self.device = config, Plan.of(config, num_workers), rank, device
        self.policy = policy(config.augment, self.plan.image_size)
        encoder = build(config.model, config.seed)
        if config.model.sync_batch_norm and self.plan.num_workers > 1:
            from timm.layers import convert_sync_batchnorm  # torch's own drops the activation of timm's fused layers

            encoder = convert_sync_batchnorm(encoder)
        self.layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        self.encoder = encoder.to(device).to(memory_format=self.layout)
        self.optimizer = optim.build(config.optimizer, self.encoder)
        self.place, self.window = Place(), checkpoint.Open()
        self.marks: dict[str, float] = {"model built": time.time()}

    def restore(self, directory: Path) -> None:
        """Go on from a checkpoint."""
        self.place, self.window = checkpoint.restore(directory, self.encoder, self.optimizer)

    def save(self, directory: Path) -> None:
        """Write a checkpoint of where the run stands."""
        checkpoint.save(directory, self.place, self.encoder, self.optimizer, self.window)

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
        images = augment_views(
            views, batch["anchor"], self.policy, self.config.seed, self.config.stream.num_views, use=batch["epoch"]
        )
        return images.contiguous(memory_format=self.layout)

    def labels(self, batch: Block) -> Tensor:
        """What makes two anchors' views positive: the anchor's id, or its class."""
        column = batch["anchor" if self.config.objective.kind == "simclr" else "label"]
        return torch.from_numpy(column).to(self.device)

    def train(
        self, blocks: Iterator[Block], asked: Callable[[Place], Wish] = lambda place: "go on"
    ) -> Iterator[Report]:
        """Consume the stream to the end of the run, yielding a report where one is due.

        Args:
            blocks: this learner's portions of the course that begins at `self.place`.
            asked: what is asked of the learners where they stand after a step, the same for all of them.

        Raises:
            OutOfOrder: a block is not the portion that is next.
            NotFinite: the loss of some step since the last record was not finite; the message names its ticket.
        """
        training, plan = self.config.training, self.plan
        probe_every = self.config.probe.every if self.config.probe.data else plan.steps
        model = self._parallel()
        dtype = getattr(torch, self.config.model.precision)
        bad_ticket = torch.full((), -1, dtype=torch.int64, device=self.device)  # looked at only when a report is due
        self.encoder.train()
        step, saved, window = self.place.step, self.place.step, None
        with ThreadPoolExecutor(1) as beside:  # checksums take no time of the training
            for block, waited in self._in_order(blocks):
                if window is None:
                    window, waited = Window(self.window), 0.0  # waiting for the first block is start-up
                window.received(block, waited)
                for batch in _batches(block, plan.local_batch):
                    optim.set_learning_rate(self.optimizer, self.learning_rate(step + 1))
                    loss, embeddings = train_step(
                        model, self.optimizer, self.images(batch), self.labels(batch), self.config.objective, dtype
                    )
                    window.batches.append((self.place, beside.submit(_checksums, batch)))
                    self.place = self.place.after_step(plan)
                    step = self.place.step
                    bad_ticket = torch.where((bad_ticket < 0) & ~loss.isfinite(), int(batch["ticket"][0]), bad_ticket)
                    window.loss, window.steps = window.loss + loss.double(), window.steps + 1  # exact, in any order
                    self.marks.setdefault("first step", time.time())
                    if step % training.log_every == 0 or step % probe_every == 0 or step == plan.steps:
                        self._stop_if(bad_ticket)
                        yield Report(self._record(step, window, embeddings), None)
                        window = Window()
                    wish = asked(self.place)
                    between = not self.place.num_workers and step - saved >= training.checkpoint_every
                    if between or wish != "go on" or step == plan.steps:
                        self._stop_if(bad_ticket)
                        self.window, saved = window.open(self), step
                        yield Report({}, self.place)
                    if wish == "stop" or step == plan.steps:
                        return
        if step < plan.steps:
            raise OutOfOrder(f"the stream ended at step {step} of {plan.steps}")

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

    def _parallel(self) -> nn.Module:
        if self.config.model.compile:
            self.encoder.compile()
        if self.plan.num_workers == 1:
            return self.encoder
        return nn.parallel.DistributedDataParallel(self.encoder)

    def _in_order(self, blocks: Iterator[Block]) -> Iterator[tuple[Block, float]]:
        """Each block with the seconds waited for it, checked to be what this learner must see next."""
        for together in Course(self.plan, self.place).of_learner(self.rank):
            asked, parts = time.perf_counter(), []
            for positions in together:
                if (block := next(blocks, None)) is None:
                    return
                if not np.array_equal(block["position"], positions):
                    expected, got = (self.plan.ticket_at(found) for found in (positions, block["position"]))
                    raise OutOfOrder(
                        f"learner {self.rank} expected ticket {expected[0]} from position {expected[1]}, "
                        f"got ticket {got[0]} from position {got[1]}"
                    )
                parts.append(block)
            self.marks.setdefault("first block", time.time())
            yield _joined(parts, self.plan.batch_size // self.plan.parts), time.perf_counter() - asked

    def _record(self, step: int, window: Window, embeddings: Tensor) -> dict[str, Any]:
        views = self.config.stream.num_views
        by_view = embeddings.view(views, -1, embeddings.shape[1])
        return {
            "step": step,
            "anchors": step * self.config.stream.batch_size,
            **window.record(self),
            "alignment": float(losses.alignment(by_view)),
            "uniformity": float(losses.uniformity(by_view)),
            "lr": self.learning_rate(step),
        }

    def _stop_if(self, bad_ticket: Tensor) -> None:
        if (ticket := int(bad_ticket)) >= 0:
            raise NotFinite(
                f"the loss was not finite in ticket {ticket}; the last checkpoint is from before it. "
                "A smaller optimizer.lr or model.precision = 'float32' may help"
            )


def _batches(block: Block, size: int) -> Iterator[Block]:
    """A learner's share of a round as consecutive batches, without copying."""
    for start in range(0, len(block["anchor"]), size):
        yield {name: column[start : start + size] for name, column in block.items()}


def _joined(parts: list[Block], share: int) -> Block:
    """Several portions that have `share` anchors of each step, as one that has all of a step's anchors together."""
    if len(parts) == 1:
        return parts[0]

    def interleaved(name: str) -> np.ndarray:
        columns = [part[name].reshape(-1, share, *part[name].shape[1:]) for part in parts]
        joined = np.concatenate(columns, axis=1)
        return joined.reshape(-1, *joined.shape[2:])

    return {name: interleaved(name) for name in parts[0]}


def _checksums(batch: Block) -> list[int]:
    """What tells a batch from any other: checksums of its latents and of its pixels."""
    return [zlib.crc32(np.ascontiguousarray(batch[name]).data) for name in ("latent", "views")]
