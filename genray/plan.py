"""What follows from a configuration: sizes, counts and the run's length, each with its formula."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from genray.config import Config
from genray.generators import describe
from genray.latents import Anchors
from genray.settings import ConfigError

MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """Every derived quantity of a run. A round is one ticket for each learner, the grain of checkpoints."""

    generator: str
    image_size: int
    latent_dim: int
    num_classes: int
    rendered_views: int
    num_workers: int
    batch_size: int
    local_batch: int
    parts: int
    ticket_batches: int
    ticket_anchors: int
    ticket_bytes: int
    steps: int
    steps_per_round: int
    checkpoint_rounds: int
    look_ahead_bytes: int

    @classmethod
    def of(cls, config: Config, num_workers: int | None = None) -> Plan:
        """Derive the quantities and check them against one another; raises ConfigError.

        `num_workers` is how many learners there are, where that may change; their largest number if it is not given.
        """
        spec, stream = describe(config.generator), config.stream
        if config.objective.kind == "supcon" and not spec.num_classes:
            raise ConfigError(
                f"objective.kind must be 'simclr' for a generator without classes, got 'supcon' with {spec.name}"
            )
        if config.view.kind == "independent" and not spec.num_classes:
            raise ConfigError(
                "view.kind must not be 'independent' for a generator without classes (its views would share nothing), "
                f"got 'independent' with {spec.name}"
            )
        rendered = stream.num_views if config.view.renders else 1
        low, high = config.learners.bounds
        workers = num_workers or high
        anchors = stream.ticket_batches * stream.batch_size
        block = anchors * rendered * 3 * spec.image_size**2
        look_ahead = config.generators.look_ahead_mib * MIB
        if config.generators.mode == "pool" and look_ahead < 2 * block * high:
            raise ConfigError(
                "generators.look_ahead_mib must hold two tickets of every learner "
                f"({2 * high} x {block / MIB:.1f} MiB), got {config.generators.look_ahead_mib}; raise it to "
                f"{-(-2 * block * high // MIB)} or lower stream.ticket_batches"
            )
        round_steps = stream.ticket_batches * workers
        return cls(
            generator=spec.name,
            image_size=spec.image_size,
            latent_dim=spec.latent_dim,
            num_classes=spec.num_classes,
            rendered_views=rendered,
            num_workers=workers,
            batch_size=stream.batch_size,
            local_batch=stream.batch_size // workers,
            parts=math.lcm(*range(low, high + 1)),
            ticket_batches=stream.ticket_batches,
            ticket_anchors=anchors,
            ticket_bytes=block,
            steps=config.training.steps,
            steps_per_round=round_steps,
            checkpoint_rounds=-(-config.training.checkpoint_every // round_steps),
            look_ahead_bytes=look_ahead,
        )

    def tickets_from(self, next_ticket: int) -> int:
        """Tickets the stream still has to render: whole rounds, so that every learner gets equally many."""
        left = max(0, self.steps - next_ticket * self.ticket_batches)
        return -(-left // self.steps_per_round) * self.num_workers

    def positions(self, ticket: int) -> np.ndarray:
        """Places in the stream, counted in anchors from the start of the run, that a ticket shows: int64 `[n]`."""
        return np.arange(ticket * self.ticket_anchors, (ticket + 1) * self.ticket_anchors)

    def ticket_at(self, positions: np.ndarray) -> tuple[int, int]:
        """The ticket that these positions begin in, and the first of them."""
        first = int(positions[0])
        return first // self.ticket_anchors, first

    def lines(self, config: Config) -> list[str]:
        """The quantities with their formulas, for people."""
        stream, generators, learners = config.stream, config.generators, config.learners
        batch, views, size, workers = stream.batch_size, stream.num_views, self.image_size, self.num_workers
        total, block = self.steps * batch, self.ticket_bytes / MIB
        classes = f"{self.num_classes} classes" if self.num_classes else "no classes"
        anchors = stream.num_anchors
        rows = {
            "generator": f"{self.generator}: {size} px, latents of {self.latent_dim}, {classes}",
            "views": f"{views} of each anchor, {self.rendered_views} rendered ({config.view.kind}), "
            f"augmented by {config.augment.policy}",
            "batch / step": f"{workers} learners x {self.local_batch} = {batch} anchors, {views * batch} images",
            "ticket": f"{stream.ticket_batches} batches x {batch} = {self.ticket_anchors} anchors, "
            f"x {self.rendered_views} views x 3 x {size} x {size} = {block:.1f} MiB",
            "round": f"{workers} tickets = {self.steps_per_round} steps; a checkpoint every "
            f"{self.checkpoint_rounds} rounds = {self.checkpoint_rounds * self.steps_per_round} steps",
            "run": f"{self.steps} steps x {batch} = {total:,} anchors from {self.tickets_from(0)} tickets"
            + (f", {total / anchors:.1f} epochs of {anchors:,}" if anchors else ""),
        }
        if generators.mode == "pool":
            rows["generators"] = (
                f"{_range(generators.bounds)} actors x {generators.num_gpus:g} GPU, {generators.num_cpus:g} CPU"
            )
            rows["look-ahead"] = f"{generators.look_ahead_mib} MiB / {block:.1f} MiB = {self.look_ahead} tickets"
        else:
            rows["generators"] = "inline: each learner renders its own tickets"
        rows["learners"] = f"{_range(learners.bounds)} x {learners.num_gpus:g} GPU, {learners.num_cpus:g} CPU"
        return [f"{name:14} {text}" for name, text in rows.items()]

    @property
    def look_ahead(self) -> int:
        """Tickets that may lie ready."""
        return self.look_ahead_bytes // self.ticket_bytes


def _range(bounds: tuple[int, int]) -> str:
    low, high = bounds
    return f"{low}" if low == high else f"{low} to {high}"


def anchors_of(config: Config, plan: Plan) -> Anchors:
    """The population of anchors that the run draws from."""
    return Anchors(
        seed=config.seed,
        latent_dim=plan.latent_dim,
        num_classes=plan.num_classes,
        truncation=config.generator.truncation,
        num_anchors=config.stream.num_anchors,
        num_neighbors=config.stream.num_neighbors,
    )
