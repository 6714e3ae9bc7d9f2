"""What each learner runs: blocks in, optimiser steps out, a record every few steps, a checkpoint every few rounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from genray import checkpoint, losses, optim
from genray.augment import augment_views, policy
from genray.checkpoint import Place
from genray.config import Config, Objective
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

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    loss: Tensor | float = 0.0
    waited: float = 0.0
    rendered: float = 0.0
    ages: list[float] = field(default_factory=list)
    generators: set[str] = field(default_factory=set)

    def received(self, block: Block, waited: float) -> None:
        self.waited += waited
        self.rendered += float(block["render_s"][0])
        self.ages.append(time.time() - float(block["created_at"][0]))
        self.generators.add(str(block["generator"][0]))

    def record(self, config: Config) -> dict[str, float]:
        """Means and shares over the window; generator time is scaled from this learner's tickets to everyone's."""
        elapsed = time.perf_counter() - self.started
        images = self.steps * config.stream.batch_size * config.stream.num_views
        record = {
            "loss": float(self.loss) / self.steps,
            "images_per_s": images / elapsed,
            "data_wait": self.waited / elapsed,
        }
        if self.ages:
            inline = config.generators.mode == "inline"
            least = config.learners.num_workers if inline else config.generators.bounds[0]
            pool = max(least, len(self.generators))
            busy = self.rendered * config.learners.num_workers / (elapsed * pool)
            record |= {"generator_busy": min(1.0, busy), "view_age_s": float(np.mean(self.ages))}
        return record


class Learner:
    """One data-parallel learner: its copy of the encoder, and where the run stands."""

    def __init__(self, config: Config, rank: int, device: torch.device):
        self.config, self.plan, self.rank, self.device = config, Plan.of(config), rank, device
        self.policy = policy(config.augment, self.plan.image_size)
        encoder = build(config.model, config.seed)
        if config.model.sync_batch_norm and self.plan.num_workers > 1:
            from timm.layers import convert_sync_batchnorm  # torch's own drops the activation of timm's fused layers

            encoder = convert_sync_batchnorm(encoder)
        self.layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        self.encoder = encoder.to(device).to(memory_format=self.layout)
        self.optimizer = optim.build(config.optimizer, self.encoder)
        self.place = Place()
        self.marks: dict[str, float] = {"model built": time.time()}

    def restore(self, directory: Path) -> None:
        """Go on from a checkpoint."""
        self.place = checkpoint.restore(directory, self.encoder, self.optimizer)

    def save(self, directory: Path, place: Place) -> None:
        """Write a checkpoint."""
        checkpoint.save(directory, place, self.encoder, self.optimizer)

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

    def train(self, blocks: Iterator[Block]) -> Iterator[Report]:
        """Consume the stream to the end of the run, yielding a report where one is due.

        Raises:
            OutOfOrder: a block is not the ticket that is next.
            NotFinite: the loss of some step since the last record was not finite; the message names its ticket.
        """
        training, plan = self.config.training, self.plan
        probe_every = self.config.probe.every if self.config.probe.data else plan.steps
        model = self._parallel()
        dtype = getattr(torch, self.config.model.precision)
        bad_ticket = torch.full((), -1, dtype=torch.int64, device=self.device)  # looked at only when a report is due
        self.encoder.train()
        step, window = self.place.step, None
        for rounds, (block, waited) in enumerate(self._in_order(blocks), start=1):
            if window is None:
                window, waited = Window(), 0.0  # waiting for the first block is start-up
            window.received(block, waited)
            for batch in _batches(block, plan.local_batch):
                optim.set_learning_rate(self.optimizer, self.learning_rate(step + 1))
                loss, embeddings = train_step(
                    model, self.optimizer, self.images(batch), self.labels(batch), self.config.objective, dtype
                )
                step += 1
                bad_ticket = torch.where((bad_ticket < 0) & ~loss.isfinite(), int(block["ticket"][0]), bad_ticket)
                window.loss, window.steps = window.loss + loss, window.steps + 1
                self.marks.setdefault("first step", time.time())
                if step % training.log_every == 0 or step % probe_every == 0 or step == plan.steps:
                    self._stop_if(bad_ticket)
                    yield Report(self._record(step, window, embeddings), None)
                    window = Window()
                if step == plan.steps:
                    break
            if rounds % plan.checkpoint_rounds == 0 or step == plan.steps:
                self._stop_if(bad_ticket)
                yield Report({}, Place(step, self.place.next_ticket + rounds * plan.num_workers))
            if step == plan.steps:
                return

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
        """Each block with the seconds waited for it, checked to be the ticket that this learner must see next."""
        expected, asked = self.place.next_ticket + self.rank, time.perf_counter()
        for block in blocks:
            waited, ticket = time.perf_counter() - asked, int(block["ticket"][0])
            if ticket != expected:
                raise OutOfOrder(f"learner {self.rank} expected ticket {expected}, got {ticket}")
            self.marks.setdefault("first block", time.time())
            yield block, waited
            expected, asked = expected + self.plan.num_workers, time.perf_counter()

    def _record(self, step: int, window: Window, embeddings: Tensor) -> dict[str, Any]:
        views = self.config.stream.num_views
        by_view = embeddings.view(views, -1, embeddings.shape[1])
        return {
            "step": step,
            "anchors": step * self.config.stream.batch_size,
            **window.record(self.config),
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
    """A ticket's block as consecutive batches, without copying."""
    for start in range(0, len(block["anchor"]), size):
        yield {name: column[start : start + size] for name, column in block.items()}
