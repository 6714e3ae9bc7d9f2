"""`genray bench`: how fast generators, learners and the stream are alone and together, and what that advises."""

from __future__ import annotations

import platform
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from genray import cluster
from genray.balance import advice
from genray.config import Config
from genray.course import Course
from genray.plan import MIB, Plan
from genray.rundir import RunDirectory

if TYPE_CHECKING:
    import numpy as np

    from genray.views import Block

Rates = dict[str, float]
PACKAGES = ("genray", "ray", "torch")
WARM = 20
"""Blocks that are not counted when the stream alone is measured."""


def bench(
    config: Config, repeats: int, seconds: float, address: str | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure a run's parts in one run of its own, which leaves nothing behind.

    Args:
        repeats: how often each is measured.
        seconds: about how long each measurement takes.

    Returns:
        `measured` (a list of what `Phases.measure` returns, with `overlap`, `transport` and `share` added), `median`,
        `least` and `most` of each, `empty_stream` (blocks and MiB a second of blocks that cost nothing to render),
        `advice`, the machine and the versions.

    Raises:
        UserError: the request cannot be placed.
        RunFailed: a part of it failed.
    """
    from genray.fit import run_learners
    from genray.phases import bench_loop

    config = for_bench(config)
    run = RunDirectory.of(config)
    run.path.mkdir(parents=True, exist_ok=True)
    try:
        with cluster.joined(address) as may_grow:
            say(cluster.check_placement(config, may_grow))
            arguments = {"config": config, "repeats": repeats, "seconds": seconds}
            measured = cast("list[Rates]", run_learners(config, bench_loop, arguments).return_value)
            empty = empty_stream(config, seconds)
            hardware = cluster.hardware()
    finally:
        shutil.rmtree(run.path, ignore_errors=True)
    measured = [{**rates, **efficiencies(rates)} for rates in measured]
    found = {
        name: {key: round(function(rates[key] for rates in measured), 4) for key in measured[0]}
        for name, function in (("median", statistics.median), ("least", min), ("most", max))
    }
    median = found["median"]
    return {
        **found,
        "empty_stream": empty,
        "advice": which(median, config),
        "name": config.name,
        "hardware": hardware,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("genray", "ray", "torch")},
        },
        "measured": measured,
    }


def efficiencies(rates: Rates) -> Rates:
    """How close the parts come to what they could do.

    `overlap`: together, of the slower side alone. `transport`: the stream into nothing, of all generators alone.
    `share`: together, of what generating and learning in turn on the same processors would give; more than 1 where the
    two sides have processors of their own.
    """
    generators, learner = rates["generators"] * rates["generator"], rates["learner"]
    return {
        "overlap": rates["together"] / min(generators, learner),
        "transport": rates["stream"] / generators,
        "share": rates["together"] * (1 / generators + 1 / learner),
    }


def which(rates: Rates, config: Config) -> str:
    """The advice: who is the bottleneck, and whether learners had better render themselves."""
    useful = rates["learner"] / rates["generator"]
    told = advice("pool", rates["generators"], useful, config.learners.bounds[1], 1)
    better = rates["inline"] / rates["together"]
    if better > 1:
        return f"{told}; generators.mode = 'inline' is {better:.2f} times as fast and needs no generators of its own"
    return f"{told}; generators.mode = 'inline' reaches {better:.2f} of it"


def table(found: dict[str, Any]) -> list[str]:
    """The result for people: each rate with its spread."""
    names = {
        "generator": "one generator alone, anchors/s",
        "learner": "learners alone, anchors/s",
        "stream": "stream into nothing, anchors/s",
        "together": "together, anchors/s",
        "inline": "learners render themselves, anchors/s",
        "blocks_per_s": "stream into nothing, blocks/s",
        "mib_per_s": "stream into nothing, MiB/s",
        "overlap": "overlap: together / slower side alone",
        "transport": "transport: stream / generators alone",
        "share": "share: together x (1/generators + 1/learners)",
    }
    lines = [f"{'':46}{'median':>10}{'least':>10}{'most':>10}"]
    for key, text in names.items():
        values = (found[name][key] for name in ("median", "least", "most"))
        lines.append(f"{text:46}" + "".join(f"{value:10.3f}" if value < 10 else f"{value:10.0f}" for value in values))
    empty = found["empty_stream"]
    lines.append(f"{'stream of blocks that cost nothing, blocks/s':46}{empty['blocks_per_s']:10.1f}")
    lines.append(f"{'the same, MiB/s':46}{empty['mib_per_s']:10.0f}")
    return [*lines, found["advice"]]


class Prepared:
    """Stands in for a generator of the pool: renders its first ticket, and gives it out as every other."""

    def __init__(self, config: Config, course: Course, execution: str):
        from genray.views import Renderer

        self.course = course
        self.block = Renderer(config, None if config.generators.num_gpus else "cpu").block(course.ticket(0))

    def __call__(self, batch: dict[str, np.ndarray]) -> Block:
        return {**self.block, "position": self.course.ticket(int(batch["id"][0])).positions}


def empty_stream(config: Config, seconds: float) -> Rates:
    """Blocks and MiB a second of the stream where rendering costs nothing and nobody uses them."""
    from genray import stream
    from genray.shares import options

    course = Course(Plan.of(config))
    dataset = stream.blocks(config, course, Prepared)
    dataset.context.execution_options = options(course)
    blocks = stream.from_stream(dataset.iterator())
    for _ in range(WARM):
        size = next(blocks)["views"].nbytes
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds and next(blocks, None) is not None:
        count += 1
    return {"blocks_per_s": round(count / elapsed, 2), "mib_per_s": round(count * size / MIB / elapsed, 1)}


def for_bench(config: Config) -> Config:
    """The same run, long enough, with all the generators it may have and a look-ahead that is soon through."""
    plan, (_, most) = Plan.of(config), config.generators.bounds
    tickets = 4 * (most + plan.num_workers)
    generators = replace(
        config.generators,
        mode="pool",
        num=most,
        look_ahead_mib=min(config.generators.look_ahead_mib, -(-tickets * plan.ticket_bytes // MIB)),
    )
    return replace(
        config,
        name=f".bench-{config.name}",
        stream=replace(config.stream, reuse=1),
        training=replace(config.training, steps=plan.ticket_steps * 10_000, warmup_steps=0, checkpoint_every=10**9),
        generators=generators,
        learners=replace(config.learners, num_workers=config.learners.bounds[1]),
        tracking=replace(config.tracking, mlflow=False),
    )
