"""Fields set to "auto": their values are measured when a run first starts, and kept in its config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from genray.cluster import ray_cluster
from genray.commands.bench import micro_batch
from genray.commands.bench.bench import bench, stoppable
from genray.commands.bench.rates import Rates
from genray.config.run import Config
from genray.runs.directory import RunDirectory
from genray.stream.plan import MIB, Plan
from genray.views.sources import fetch

STREAM_SHARE = 1 / 3
"""Share of the stream's blocks per second that a run may need."""
MAX_REUSE = 8
"""Largest `stream.reuse` that is chosen."""
INLINE_TICKET_BATCHES = 4
"""`stream.ticket_batches` if there is no stream to measure."""
BENCH_S = 5.0
"""Seconds of each measurement."""
AUTO_FIELDS = (("generator", "micro_batch"), ("stream", "reuse"), ("stream", "ticket_batches"))
"""Section and name of the fields that may be "auto", in the order in which they are measured."""


def with_measured_fields(config: Config, address: str | None = None, say: Callable[[str], None] = print) -> Config:
    """The configuration with a number for every "auto": that of the run if it has begun, else a measured one.

    Args:
        config: of the run.
        address: of the Ray cluster to join.
        say: called with each line for the user.

    Raises:
        UserError: the request cannot be placed.
        RunFailed: the measurement failed.
        RunStopped: SIGTERM or Ctrl-C was received during a measurement.
    """
    unknown = [(section, name) for section, name in AUTO_FIELDS if getattr(getattr(config, section), name) == "auto"]
    if not config.source.renders:
        unknown = [(section, name) for section, name in unknown if section != "generator"]
    if not unknown:
        return config
    run = RunDirectory.of(config)
    if run.has_begun():
        begun = json.loads(run.config.read_text())
        for section, name in unknown:
            config = _with(config, section, name, begun[section][name])
        return config
    if ("generator", "micro_batch") in unknown:
        config = _with_micro_batch(config, address, say)
    stream_fields = [name for section, name in unknown if section == "stream"]
    return _with_stream(config, stream_fields, address, say) if stream_fields else config


def _with(config: Config, section: str, name: str, value: Any) -> Config:
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def _with_micro_batch(config: Config, address: str | None, say: Callable[[str], None]) -> Config:
    say("measuring for generator.micro_batch")
    fetch(config)
    stop = RunDirectory.of(config).stop
    with stoppable(config.name, stop, say) as stopping, ray_cluster.joined(address) as autoscaling:
        ray_cluster.check_placement(config, autoscaling)
        return stopping.while_training(lambda: micro_batch.with_measured(config, say))


def _with_stream(config: Config, unknown: list[str], address: str | None, say: Callable[[str], None]) -> Config:
    if config.render_on == "learners":  # there is no stream
        return replace(config, stream=replace(config.stream, ticket_batches=INLINE_TICKET_BATCHES))
    say(f"measuring for {' and '.join(f'stream.{name}' for name in unknown)}")
    result = bench(config, repeats=1, seconds=BENCH_S, address=address, say=say, inline=False)
    rates, limit = result["median"], STREAM_SHARE * result["empty_stream"]["blocks_per_s"]
    if "reuse" in unknown:
        config = replace(config, stream=replace(config.stream, reuse=needed_reuse(rates)))
    if "ticket_batches" in unknown:
        config = replace(config, stream=replace(config.stream, ticket_batches=ticket_batches(rates, config, limit)))
        if (blocks := blocks_per_s(rates, config)) > limit:
            say(
                f"pool.look_ahead_mib allows no larger tickets; {blocks:.1f} blocks/s are more than a third of "
                f"what this stream can move ({limit / STREAM_SHARE:.1f})"
            )
    say(", ".join(f"stream.{name} = {getattr(config.stream, name)}" for name in unknown))
    return config


def needed_reuse(rates: Rates) -> int:
    """How often each view has to be used so that the learners do not wait."""
    return min(MAX_REUSE, max(1, math.ceil(rates["learner"] / (rates["generators"] * rates["generator"]) - 0.1)))


def ticket_batches(rates: Rates, config: Config, max_blocks_per_s: float) -> int:
    """The smallest ticket, in batches, that needs no more blocks per second than this, or the largest allowed one."""
    plan = Plan.of(config)
    largest = config.pool.look_ahead_mib * MIB // (2 * config.learners.bounds.most * plan.batch_bytes)
    return max(1, min(largest, math.ceil(fresh_batches_per_s(rates, config) / max_blocks_per_s)))


def blocks_per_s(rates: Rates, config: Config) -> float:
    """Blocks per second that the run will need from the stream."""
    plan = Plan.of(config)
    return fresh_batches_per_s(rates, config) / (plan.ticket_steps // plan.num_workers)


def fresh_batches_per_s(rates: Rates, config: Config) -> float:
    """Batches per second that the run will need from the generators."""
    generators = rates["generators"] * rates["generator"]
    return min(generators, rates["learner"] / Plan.of(config).reuse) / config.stream.batch_size
