"""Everything that follows from a configuration: sizes, counts and the run's length, each with its formula."""

from __future__ import annotations

from dataclasses import dataclass

from genray.config.errors import ConfigError
from genray.config.run import Config
from genray.stream.checks import check_classes, check_objective, check_view
from genray.views import sources

MIB = 2**20
TICKETS_PER_GENERATOR = 3
"""Look-ahead that keeps generators busy; fewer leave some idle and keep a pool from growing to its maximum."""


@dataclass(frozen=True)
class Plan:
    """The derived quantities of a run.

    >>> plan = Plan.of(config)  # the preset `demo`
    >>> plan.batch_size, plan.ticket_steps, plan.steps, plan.tickets
    (128, 4, 400, 100)
    >>> print(*plan.lines(config)[2:5], sep="\\n")
    batch / step   1 learners x 128 = 128 anchors, 256 images
    ticket         4 steps x 128 = 512 anchors, x 2 views x 3 x 32 x 32 = 3.0 MiB
    run            400 fresh steps x 128 = 51,200 anchors in 100 tickets
    """

    generator: str
    """Name of the generator, or of the source in its place."""
    image_size: int
    latent_dim: int
    num_classes: int
    rendered_views: int
    """Images of each anchor in a block."""
    population: int | None
    """Number of anchors; None if they never repeat."""
    num_workers: int
    """Number of learners."""
    batch_size: int
    """Anchors of a step, over all learners."""
    local_batch: int
    """Anchors of a step, for each learner."""
    ticket_steps: int
    """Fresh steps of a ticket."""
    ticket_bytes: int
    """Rendered pixels of a ticket."""
    steps: int
    reuse: int
    """How often each view is used."""
    window: int
    """Fresh steps whose views are reused together."""
    look_ahead_bytes: int

    @classmethod
    def of(cls, config: Config, num_workers: int | None = None) -> Plan:
        """Derive the quantities and check them; raises ConfigError.

        `num_workers` is the number of learners; by default the largest that the configuration allows.
        """
        spec, stream = sources.describe(config), config.stream
        rendered = sources.rendered(config)
        check_objective(config, spec, rendered or spec)
        if rendered:
            check_classes(stream, rendered, None if sources.is_mixed(config) else config.objective.kind)
        if rendered and config.source.renders:
            check_view(config, rendered)
        high = config.learners.bounds.most
        workers = num_workers or high
        # "auto" is measured when the run begins; see `genray.commands.bench.auto`.
        reuse = 1 if stream.reuse == "auto" else stream.reuse
        batch = stream.batch_size * spec.views * 3 * spec.image_size**2
        look_ahead = config.pool.look_ahead_mib * MIB
        fitting = max(1, min(4, look_ahead // (2 * high * batch)))
        batches = fitting if stream.ticket_batches == "auto" else stream.ticket_batches
        block = batches * batch
        if config.render_on == "pool" and look_ahead < 2 * block * high:
            raise ConfigError(
                "pool.look_ahead_mib must hold two tickets of every learner "
                f"({2 * high} x {block / MIB:.1f} MiB), got {config.pool.look_ahead_mib}; raise it to "
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
                f"stored anchors of {spec.name}, got {plan.steps}; genray generate with more --anchors adds to them"
            )
        return plan

    def use_of(self, step: int) -> tuple[int, int]:
        """How often a step's views were used before, and a fresh step; steps count from 0.

        New views (used 0 times before) are those of this fresh step. Reused views come from the window before that
        step's, in the order of `genray.stream.reuse.orders`, whose row is the step's index in its own window.
        """
        if self.reuse == 1 or step < self.window:
            return 0, step
        group, use = divmod(step - self.window, self.reuse)
        return use, self.window + group

    def step_of(self, fresh: int) -> int:
        """The step that shows a fresh step; both are counted from 0."""
        return fresh if self.reuse == 1 else min(fresh, self.window) + max(0, fresh - self.window) * self.reuse

    def fresh_steps(self, step: int) -> int:
        """How many of the first `step` steps are fresh."""
        if self.reuse == 1 or step <= self.window:
            return step
        return self.window - (self.window - step) // self.reuse

    def first_needed(self, step: int) -> int:
        """The first fresh step that a run needs to resume after `step` steps: the window before its present one."""
        if self.reuse == 1:
            return step
        _, fresh = self.use_of(step)
        return max(0, fresh // self.window - 1) * self.window

    def next_ticket_step(self, step: int) -> int:
        """The number of steps after which the learners next need new tickets."""
        return self.step_of(-(-self.fresh_steps(step) // self.ticket_steps) * self.ticket_steps)

    def tickets_of(self, step: int) -> list[int]:
        """The first and the last ticket with views of a step (counted from 1)."""
        use, fresh = self.use_of(step - 1)
        first = last = fresh
        if use:
            last = fresh // self.window * self.window - 1
            first = last + 1 - self.window
        return [
            first // self.ticket_steps * self.num_workers,
            last // self.ticket_steps * self.num_workers + self.num_workers - 1,
        ]

    def lines(self, config: Config) -> list[str]:
        """The quantities with their formulas, one printable line each."""
        stream, pool, learners = config.stream, config.pool, config.learners
        batch, views, size, workers = stream.batch_size, stream.num_views, self.image_size, self.num_workers
        fresh, block = self.fresh_steps(self.steps), self.ticket_bytes / MIB
        total = fresh * batch
        classes = f"{self.num_classes} classes" if self.num_classes else "no classes"
        latents = f"latents of {self.latent_dim}" if self.latent_dim else "no latents"
        kind, population, anchors = config.source.kind, self.population, self.ticket_steps * self.local_batch
        measured = "; an estimate, measured when the run begins" if stream.ticket_batches == "auto" else ""
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
                f"each view {self.reuse} times: {fresh} fresh steps make {self.steps} steps; the learners keep two "
                f"windows of {self.window} batches, {2 * self.window * self.batch_bytes / MIB:.1f} MiB in all"
            )
        if stream.reuse == "auto":
            rows["reuse"] = "measured when the run begins; these figures use each view once"
        if config.render_on == "pool":
            rows["generators"] = f"{_range(pool.bounds)} actors x {pool.num_gpus:g} GPU, {pool.num_cpus:g} CPU"
            rows["look-ahead"] = f"{pool.look_ahead_mib} MiB / {block:.1f} MiB = {self.look_ahead} tickets"
            if self.look_ahead < TICKETS_PER_GENERATOR * pool.bounds.most:
                rows["look-ahead"] += f"; {pool.bounds.most} generators need {TICKETS_PER_GENERATOR} each to stay busy"
        else:
            rows["generators"] = "none: each learner renders its own tickets"
        rows["learners"] = f"{_range(learners.bounds)} x {learners.num_gpus:g} GPU, {learners.num_cpus:g} CPU"
        return [f"{name:14} {text}" for name, text in rows.items()]

    @property
    def tickets(self) -> int:
        """Number of tickets of the whole run."""
        return -(-self.fresh_steps(self.steps) // self.ticket_steps) * self.num_workers

    @property
    def batch_bytes(self) -> int:
        """Rendered pixels of one step, over all learners."""
        return self.ticket_bytes * self.num_workers // self.ticket_steps

    @property
    def look_ahead(self) -> int:
        """Rendered tickets that may wait for the learners."""
        return self.look_ahead_bytes // self.ticket_bytes


def _range(bounds: tuple[int, int]) -> str:
    low, high = bounds
    return f"{low}" if low == high else f"{low} to {high}"
