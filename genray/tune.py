"""What a configuration leaves to a measurement: settled at a run's first start, and kept in its config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

from genray.bench import Rates, bench
from genray.config import Config
from genray.plan import MIB, Plan
from genray.rundir import RunDirectory

SATURATED = 22.0
"""Blocks a second at which a stream was saturated on two processors, whatever their size: benchmarks/scaling.py."""
AT_MOST = SATURATED / 3
MOST_USES = 8
SECONDS = 5.0
"""Of each measurement."""


def settle(config: Config, address: str | None = None, say: Callable[[str], None] = print) -> Config:
    """The configuration with a number wherever it says "auto": that of the run, if it has begun, or a measured one.

    Raises:
        UserError: the request cannot be placed.
        RunFailed: the measurement failed.
    """
    unsettled = [name for name in ("reuse", "ticket_batches") if getattr(config.stream, name) == "auto"]
    if not unsettled:
        return config
    run = RunDirectory.of(config)
    if run.has_begun():
        theirs = json.loads(run.config.read_text())["stream"]
        return replace(config, stream=replace(config.stream, **{name: theirs[name] for name in unsettled}))
    say(f"measuring for {' and '.join(f'stream.{name}' for name in unsettled)}")
    rates = bench(config, repeats=1, seconds=SECONDS, address=address, say=say)["median"]
    if "reuse" in unsettled:
        config = replace(config, stream=replace(config.stream, reuse=uses(rates)))
    if "ticket_batches" in unsettled:
        config = replace(config, stream=replace(config.stream, ticket_batches=ticket_batches(rates, config)))
        if (blocks := blocks_per_s(rates, config)) > AT_MOST:
            say(
                f"generators.look_ahead_mib allows no larger tickets; {blocks:.1f} blocks/s are more than a third of "
                f"what a stream can move ({SATURATED:g})"
            )
    say(", ".join(f"stream.{name} = {getattr(config.stream, name)}" for name in unsettled))
    return config


def uses(rates: Rates) -> int:
    """How often each view has to be used for the learners not to wait."""
    return min(MOST_USES, max(1, math.ceil(rates["learner"] / (rates["generators"] * rates["generator"]) - 0.1)))


def ticket_batches(rates: Rates, config: Config) -> int:
    """The smallest ticket with which the stream moves few enough blocks; no larger than the look-ahead allows."""
    plan = Plan.of(config)
    batch_bytes = plan.ticket_bytes // (plan.ticket_steps // plan.num_workers)
    most = config.generators.look_ahead_mib * MIB // (2 * config.learners.bounds[1] * batch_bytes)
    return max(1, min(most, math.ceil(fresh_batches_per_s(rates, config) / AT_MOST)))


def blocks_per_s(rates: Rates, config: Config) -> float:
    """Blocks that the stream will move in a second."""
    plan = Plan.of(config)
    return fresh_batches_per_s(rates, config) / (plan.ticket_steps // plan.num_workers)


def fresh_batches_per_s(rates: Rates, config: Config) -> float:
    """Batches that come from generators in a second."""
    generators = rates["generators"] * rates["generator"]
    return min(generators, rates["learner"] / Plan.of(config).reuse) / config.stream.batch_size
