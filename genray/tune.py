"""What a configuration leaves to a measurement: settled at a run's first start, and kept in its config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from genray import cluster, microbatch
from genray.bench import Rates, bench, while_measured
from genray.config import Config
from genray.configure import settled
from genray.plan import MIB, Plan
from genray.rundir import RunDirectory
from genray.sources import fetch

SHARE = 1 / 3
"""Of the blocks a second that the stream can move, a run should move no more than this."""
MOST_USES = 8
INLINE_BATCHES = 4
SECONDS = 5.0
"""Of each measurement."""
OPEN = (("generator", "micro_batch"), ("stream", "reuse"), ("stream", "ticket_batches"))
"""Fields that may say "auto", in the order in which they are settled."""


def settle(config: Config, address: str | None = None, say: Callable[[str], None] = print) -> Config:
    """The configuration with a number wherever it says "auto": that of the run, if it has begun, or a measured one.

    And with every file that it names named for good.

    Raises:
        UserError: the request cannot be placed.
        RunFailed: the measurement failed.
        Stopped: SIGTERM or Ctrl-C came meanwhile.
    """
    config = settled(config)
    unsettled = [(section, name) for section, name in OPEN if getattr(getattr(config, section), name) == "auto"]
    if not config.source.renders:
        unsettled = [(section, name) for section, name in unsettled if section != "generator"]
    if not unsettled:
        return config
    run = RunDirectory.of(config)
    if run.has_begun():
        theirs = json.loads(run.config.read_text())
        for section, name in unsettled:
            config = _with(config, section, name, theirs[section][name])
        return config
    if ("generator", "micro_batch") in unsettled:
        config = _settle_micro_batch(config, address, say)
    of_the_stream = [name for section, name in unsettled if section == "stream"]
    return _settle_stream(config, of_the_stream, address, say) if of_the_stream else config


def _with(config: Config, section: str, name: str, value: Any) -> Config:
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def _settle_micro_batch(config: Config, address: str | None, say: Callable[[str], None]) -> Config:
    say("measuring for generator.micro_batch")
    fetch(config)
    stop = RunDirectory.of(config).stop
    with while_measured(config.name, stop, say) as stopping, cluster.joined(address) as may_grow:
        cluster.check_placement(config, may_grow)
        return stopping.while_training(lambda: microbatch.settled(config, say))


def _settle_stream(config: Config, unsettled: list[str], address: str | None, say: Callable[[str], None]) -> Config:
    if config.generators.mode == "inline":  # there is no stream
        return replace(config, stream=replace(config.stream, ticket_batches=INLINE_BATCHES))
    say(f"measuring for {' and '.join(f'stream.{name}' for name in unsettled)}")
    found = bench(config, repeats=1, seconds=SECONDS, address=address, say=say, aside=False)
    rates, most = found["median"], SHARE * found["empty_stream"]["blocks_per_s"]
    if "reuse" in unsettled:
        config = replace(config, stream=replace(config.stream, reuse=uses(rates)))
    if "ticket_batches" in unsettled:
        config = replace(config, stream=replace(config.stream, ticket_batches=ticket_batches(rates, config, most)))
        if (blocks := blocks_per_s(rates, config)) > most:
            say(
                f"generators.look_ahead_mib allows no larger tickets; {blocks:.1f} blocks/s are more than a third of "
                f"what this stream can move ({most / SHARE:.1f})"
            )
    say(", ".join(f"stream.{name} = {getattr(config.stream, name)}" for name in unsettled))
    return config


def uses(rates: Rates) -> int:
    """How often each view has to be used for the learners not to wait."""
    return min(MOST_USES, max(1, math.ceil(rates["learner"] / (rates["generators"] * rates["generator"]) - 0.1)))


def ticket_batches(rates: Rates, config: Config, most_blocks_per_s: float) -> int:
    """The smallest ticket with which the stream moves few enough blocks; no larger than the look-ahead allows."""
    plan = Plan.of(config)
    most = config.generators.look_ahead_mib * MIB // (2 * config.learners.bounds[1] * plan.batch_bytes)
    return max(1, min(most, math.ceil(fresh_batches_per_s(rates, config) / most_blocks_per_s)))


def blocks_per_s(rates: Rates, config: Config) -> float:
    """Blocks that the stream will move in a second."""
    plan = Plan.of(config)
    return fresh_batches_per_s(rates, config) / (plan.ticket_steps // plan.num_workers)


def fresh_batches_per_s(rates: Rates, config: Config) -> float:
    """Batches that come from generators in a second."""
    generators = rates["generators"] * rates["generator"]
    return min(generators, rates["learner"] / Plan.of(config).reuse) / config.stream.batch_size
