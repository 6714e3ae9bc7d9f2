"""`genray bench`: how fast generators, learners and the stream are alone and together, and what that advises."""

from __future__ import annotations

import math
import platform
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genray import cluster, microbatch, processes
from genray.balance import advice
from genray.config import Config
from genray.course import Course
from genray.plan import MIB, TICKETS, Plan
from genray.rundir import RunDirectory
from genray.settings import UserError
from genray.sources import fetch
from genray.stopping import Asked, Stopping

if TYPE_CHECKING:
    import numpy as np

    from genray.views import Block

Rates = dict[str, float]
PACKAGES = ("genray", "ray", "torch")
MOST = 150
"""Tickets that a learner takes from the stream in one phase, where there are not more generators than that."""
STREAMED = 3
"""Phases of a repetition that use the stream."""
WARM = 20
"""Blocks that are not counted when the stream alone is measured."""


def bench(
    config: Config,
    repeats: int,
    seconds: float,
    address: str | None = None,
    say: Callable[[str], None] = print,
    aside: bool = True,
) -> dict[str, Any]:
    """Measure a run's parts in one run of its own, which leaves nothing behind.

    Args:
        repeats: how often each is measured.
        seconds: about how long each measurement takes.
        aside: whether the learners also render, which takes memory for a generator of their own.

    Returns:
        `measured` (a list of what `Phases.measure` returns, with the `efficiencies` added), `median`,
        `least` and `most` of each, `empty_stream` (blocks and MiB a second of blocks that cost nothing to render),
        `advice`, the machine and the versions.

    Raises:
        UserError: the request cannot be placed.
        RunFailed: a part of it failed.
        Stopped: SIGTERM or Ctrl-C came.
    """
    if config.source.kind == "stored":
        raise UserError("source.kind must be one without an end to be measured, got 'stored'")
    asked, config = config, for_bench(config, repeats)
    run = RunDirectory.of(config)
    fetch(config)
    run.claim(config)
    try:
        with (
            run.locked(),
            while_measured(asked.name, run.stop, say) as stopping,
            cluster.joined(address) as may_grow,
        ):
            config = for_bench(asked, repeats, most=cluster.fits(config))
            say(cluster.check_placement(config, may_grow))
            measured, empty = stopping.while_training(lambda: _measured(config, repeats, seconds, aside, say))
            hardware = cluster.hardware()
    finally:
        processes.end_left_over(run.processes)
        shutil.rmtree(run.path, ignore_errors=True)
    learners, together = config.learners.bounds[1], devices(config, hardware["cpus"])
    measured = [{**rates, **efficiencies(rates, learners, together)} for rates in measured]
    found = {
        name: {key: round(function(rates[key] for rates in measured), 4) for key in measured[0]}
        for name, function in (("median", statistics.median), ("least", min), ("most", max))
    }
    median = found["median"]
    return {
        **found,
        "empty_stream": empty,
        "advice": which(median, learners, 1 if asked.stream.reuse == "auto" else asked.stream.reuse),
        "name": asked.name,
        "devices": together,
        "hardware": hardware,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "measured": measured,
    }


@contextmanager
def while_measured(name: str, file: Path, say: Callable[[str], None]) -> Iterator[Stopping]:
    """Takes SIGTERM and Ctrl-C, which end a measurement at once.

    Raises:
        Stopped: one of them came.
    """
    from genray.fit import Stopped

    try:
        with Stopping(file, say, 0) as stopping:
            yield stopping
    except Asked as stop:
        raise Stopped(f"{name} was stopped while it was measured", stop.number == signal.SIGINT) from None


def _measured(
    config: Config, repeats: int, seconds: float, aside: bool, say: Callable[[str], None]
) -> tuple[list[Rates], Rates]:
    """What the learners measured in each repetition, and what the stream can do at most."""
    from genray.fit import run_learners
    from genray.phases import bench_loop

    if config.source.renders and config.generator.micro_batch == "auto":
        config = microbatch.settled(config, say)
    arguments = {"config": config, "repeats": repeats, "seconds": seconds, "aside": aside}
    return run_learners(config, bench_loop, arguments).return_value, empty_stream(config, seconds)


def efficiencies(rates: Rates, learners: int, devices: int) -> Rates:
    """How close the parts come to what they could do.

    `overlap`: together, of the slower side alone. `transport`: the stream into nothing, of all generators alone.
    `share`: of the time of all devices, what would do for the same if they only rendered and trained.
    """
    generators = rates["generators"] * rates["generator"]
    return {
        "overlap": rates["together"] / min(generators, rates["learner"]),
        "transport": rates["stream"] / generators,
        "share": rates["together"] * (1 / rates["generator"] + learners / rates["learner"]) / devices,
    }


def devices(config: Config, cpus: float) -> int:
    """GPUs that both sides have together, and a processor for each process without one."""
    sides = [
        (config.generators.bounds[1], config.generators.num_gpus),
        (config.learners.bounds[1], config.learners.num_gpus),
    ]
    gpus = math.ceil(sum(number * share for number, share in sides) - 1e-6)
    return gpus + min(round(cpus), sum(number for number, share in sides if not share))


def which(rates: Rates, learners: int, reuse: int) -> str:
    """The advice: who is the bottleneck, and whether learners had better render themselves."""
    useful = rates["learner"] / rates["generator"] / reuse
    told = advice("pool", rates["generators"], useful, learners, reuse)
    if "inline" not in rates:
        return told
    better = rates["inline"] / rates["together"]
    if better > 1:
        return f"{told}; generators.mode = 'inline' is {better:.2f} times as fast and needs no generators of its own"
    return f"{told}; generators.mode = 'inline' reaches {better:.2f} of it"


ROWS = {
    "generator": "one generator alone, anchors/s",
    "learner": "learners alone, anchors/s",
    "stream": "stream into nothing, anchors/s",
    "together": "together, anchors/s",
    "inline": "learners render themselves, anchors/s",
    "blocks_per_s": "stream into nothing, blocks/s",
    "mib_per_s": "stream into nothing, MiB/s",
    "overlap": "overlap: together / slower side alone",
    "transport": "transport: stream / generators alone",
    "share": "share of the devices' time that is used",
}
"""What is shown of a bench, where it was measured, and how it is called."""


def table(found: dict[str, Any]) -> list[str]:
    """The result for people: each rate with its spread."""
    lines = [f"{'':46}{'median':>10}{'least':>10}{'most':>10}"]
    for key, text in ROWS.items():
        if key not in found["median"]:
            continue
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
    dataset.context.execution_options = options(course, cluster.by_labels(config))
    (shard,) = dataset.streaming_split(1, equal=True)  # as a run's learner gets it
    blocks = stream.from_stream(shard)
    for _ in range(WARM):
        size = next(blocks)["views"].nbytes
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds and next(blocks, None) is not None:
        count += 1
    return {"blocks_per_s": round(count / elapsed, 2), "mib_per_s": round(count * size / MIB / elapsed, 1)}


def for_bench(config: Config, repeats: int, most: bool = True) -> Config:
    """The same run, as long as it has to be, with a look-ahead that is soon through.

    With all generators and learners that it may have, or with the least; no longer than needed, because every ticket
    costs the stream a little.
    """
    plan = Plan.of(config)
    generators, learners = config.generators.bounds[most], config.learners.bounds[most]
    look_ahead_mib = min(
        config.generators.look_ahead_mib, -(-TICKETS * (generators + learners) * plan.ticket_bytes // MIB)
    )
    ready = look_ahead_mib * MIB // plan.ticket_bytes + 6 * generators
    steps = plan.ticket_steps * (repeats + 1) * STREAMED * (MOST + ready)
    return replace(
        config,
        name=f".bench-{config.name}",
        stream=replace(config.stream, reuse=1),
        # Nothing is to be learned: on a block that is shown again and again a full learning rate might diverge.
        training=replace(config.training, steps=steps, warmup_steps=steps, checkpoint_every=steps),
        generators=replace(config.generators, mode="pool", num=generators, look_ahead_mib=look_ahead_mib),
        learners=replace(config.learners, num_workers=learners),
        tracking=replace(config.tracking, mlflow=False),
    )
