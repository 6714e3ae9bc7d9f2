"""What follows from a configuration: sizes, counts and the run's length, each with its formula."""

from __future__ import annotations

from dataclasses import dataclass

from genray import objectives, sources
from genray.config import Config
from genray.generators import GeneratorSpec
from genray.latents import Anchors, check_classes
from genray.settings import ConfigError

MIB = 2**20
TICKETS = 3
"""Of each generator, in the look-ahead: with fewer not all are always busy, and a pool does not grow to its most."""


@dataclass(frozen=True)
class Plan:
    """Every derived quantity of a run."""

    generator: str
    image_size: int
    latent_dim: int
    num_classes: int
    rendered_views: int
    population: int | None
    num_workers: int
    batch_size: int
    local_batch: int
    ticket_steps: int
    ticket_bytes: int
    steps: int
    reuse: int
    window: int
    look_ahead_bytes: int

    @classmethod
    def of(cls, config: Config, num_workers: int | None = None) -> Plan:
        """Derive the quantities and check them against one another; raises ConfigError.

        `num_workers` is how many learners there are, where that may change; their largest number if it is not given.
        """
        spec, stream = sources.describe(config), config.stream
        rendered = sources.rendered(config)
        objectives.check(config, spec, rendered or spec)
        if rendered:
            check_classes(stream, rendered, None if sources.is_mixed(config) else config.objective.kind)
        if rendered and config.source.renders:
            config.view.check(stream, rendered)
        high = config.learners.bounds[1]
        workers = num_workers or high
        # "auto" is measured when the run begins; see `genray.tune`.
        reuse = 1 if stream.reuse == "auto" else stream.reuse
        batch = stream.batch_size * spec.views * 3 * spec.image_size**2
        look_ahead = config.generators.look_ahead_mib * MIB
        fitting = max(1, min(4, look_ahead // (2 * high * batch)))
        batches = fitting if stream.ticket_batches == "auto" else stream.ticket_batches
        block = batches * batch
        if config.generators.mode == "pool" and look_ahead < 2 * block * high:
            raise ConfigError(
                "generators.look_ahead_mib must hold two tickets of every learner "
                f"({2 * high} x {block / MIB:.1f} MiB), got {config.generators.look_ahead_mib}; raise it to "
                f"{-(-2 * block * high // MIB)} or lower stream.ticket_batches"
            )
        plan = cls(
            generator=spec.name,
            image_size=spec.image_size,
            latent_dim=spec.latent_dim,
            num_classes=spec.num_classes,
            rendered_views=spec.views,
            population=spec.population,
            num_workers=workers,
            batch_size=stream.batch_size,
            local_batch=stream.batch_size // workers,
            ticket_steps=batches * workers,
            ticket_bytes=block,
            steps=config.training.steps,
            reuse=reuse,
            window=stream.reuse_window if reuse > 1 else 1,
            look_ahead_bytes=look_ahead,
        )
        if spec.end is not None and plan.fresh_steps(plan.steps) * plan.batch_size > spec.end:
            raise ConfigError(
                f"training.steps must be at most {plan.step_of(spec.end // plan.batch_size)} for the {spec.end} "
                f"anchors that are stored of {spec.name}, got {plan.steps}; genray generate with more --anchors adds "
                "to them"
            )
        return plan

    def shown_in(self, step: int) -> tuple[int, int]:
        """What a step (counted from 0) shows: how often that has been shown before, and a fresh step.

        That one itself; or, of the window before the one that it lies in, as many steps as it lies within its own.
        """
        if self.reuse == 1 or step < self.window:
            return 0, step
        group, use = divmod(step - self.window, self.reuse)
        return use, self.window + group

    def step_of(self, fresh: int) -> int:
        """The step that shows a fresh one; both are counted from 0."""
        return fresh if self.reuse == 1 else min(fresh, self.window) + max(0, fresh - self.window) * self.reuse

    def fresh_steps(self, step: int) -> int:
        """How many of the first steps are fresh."""
        if self.reuse == 1 or step <= self.window:
            return step
        return self.window - (self.window - step) // self.reuse

    def first_needed(self, step: int) -> int:
        """The first fresh step that a run needs to go on after so many steps: the window before the one it is in."""
        if self.reuse == 1:
            return step
        _, fresh = self.shown_in(step)
        return max(0, fresh // self.window - 1) * self.window

    def next_tickets(self, step: int) -> int:
        """How many steps have been made when learners next need a ticket that they did not need before."""
        return self.step_of(-(-self.fresh_steps(step) // self.ticket_steps) * self.ticket_steps)

    def tickets_of(self, step: int) -> list[int]:
        """The first and the last ticket that a step (counted from 1) shows something of."""
        use, fresh = self.shown_in(step - 1)
        first = last = fresh
        if use:
            last = fresh // self.window * self.window - 1
            first = last + 1 - self.window
        return [
            first // self.ticket_steps * self.num_workers,
            last // self.ticket_steps * self.num_workers + self.num_workers - 1,
        ]

    def lines(self, config: Config) -> list[str]:
        """The quantities with their formulas, for people."""
        stream, generators, learners = config.stream, config.generators, config.learners
        batch, views, size, workers = stream.batch_size, stream.num_views, self.image_size, self.num_workers
        fresh, block = self.fresh_steps(self.steps), self.ticket_bytes / MIB
        total = fresh * batch
        classes = f"{self.num_classes} classes" if self.num_classes else "no classes"
        latents = f"latents of {self.latent_dim}" if self.latent_dim else "no latents"
        kind, population, anchors = config.source.kind, self.population, self.ticket_steps * self.local_batch
        measured = "; measured when the run begins, this is a guess" if stream.ticket_batches == "auto" else ""
        rows = {
            "generator" if kind == "generated" else kind: f"{self.generator}: {size} px, {latents}, {classes}",
            "views": f"{views} of each anchor, {self.rendered_views} rendered ({config.view.kind}), "
            f"augmented by {config.augment.policy}",
            "batch / step": f"{workers} learners x {self.local_batch} = {batch} anchors, {views * batch} images",
            "ticket": f"{self.ticket_steps} steps x {self.local_batch} = {anchors} anchors, "
            f"x {self.rendered_views} views x 3 x {size} x {size} = {block:.1f} MiB{measured}",
            "run": f"{fresh} fresh steps x {batch} = {total:,} anchors in {self.tickets} tickets"
            + (f", {total / population:.1f} epochs of {population:,}" if population else ""),
        }
        if config.source.renders and config.generator.micro_batch == "auto":
            rows["micro-batch"] = "measured when the run begins"
        if self.reuse > 1:
            rows["reuse"] = (
                f"each view {self.reuse} times, so that {fresh} fresh steps become {self.steps}; of two windows of "
                f"{self.window} batches {2 * self.window * self.batch_bytes / MIB:.1f} MiB are kept, over all learners"
            )
        if stream.reuse == "auto":
            rows["reuse"] = "measured when the run begins; the figures here are for using each view once"
        if generators.mode == "pool":
            rows["generators"] = (
                f"{_range(generators.bounds)} actors x {generators.num_gpus:g} GPU, {generators.num_cpus:g} CPU"
            )
            rows["look-ahead"] = f"{generators.look_ahead_mib} MiB / {block:.1f} MiB = {self.look_ahead} tickets"
            if self.look_ahead < TICKETS * generators.bounds[1]:
                rows["look-ahead"] += f"; {generators.bounds[1]} generators are all busy with {TICKETS} of each"
        else:
            rows["generators"] = "inline: each learner renders its own tickets"
        rows["learners"] = f"{_range(learners.bounds)} x {learners.num_gpus:g} GPU, {learners.num_cpus:g} CPU"
        return [f"{name:14} {text}" for name, text in rows.items()]

    @property
    def tickets(self) -> int:
        """How many tickets the run uses, from 0 on."""
        return -(-self.fresh_steps(self.steps) // self.ticket_steps) * self.num_workers

    @property
    def batch_bytes(self) -> int:
        """Rendered pixels of one step, over all learners."""
        return self.ticket_bytes * self.num_workers // self.ticket_steps

    @property
    def look_ahead(self) -> int:
        """Tickets that may lie ready."""
        return self.look_ahead_bytes // self.ticket_bytes


def _range(bounds: tuple[int, int]) -> str:
    low, high = bounds
    return f"{low}" if low == high else f"{low} to {high}"


def anchors_of(config: Config, sizes: Plan | GeneratorSpec) -> Anchors:
    """The population of anchors that a generator of these sizes renders in the run."""
    return Anchors(
        seed=config.seed,
        latent_dim=sizes.latent_dim,
        num_classes=sizes.num_classes,
        truncation=config.generator.truncation,
        num_anchors=config.stream.num_anchors,
        num_neighbors=config.stream.num_neighbors,
        classes=config.stream.classes,
        class_weights=config.stream.class_weights,
    )
