"""`genray bench`: measures generators, learners and the stream alone and together, and names the bottleneck."""

from __future__ import annotations

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

from genray.cluster import ray_cluster
from genray.commands.bench import micro_batch
from genray.commands.bench.rates import MAX_PHASE_TICKETS, Rates, bench_advice, devices, efficiencies
from genray.config.errors import RunStopped, UserError
from genray.config.run import Config
from genray.runs import processes
from genray.runs.directory import RunDirectory
from genray.runs.stopping import Stopping, StopRequested
from genray.stream.plan import MIB, TICKETS_PER_GENERATOR, Plan
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.sources import fetch

if TYPE_CHECKING:
    import numpy as np

    from genray.views.types import Block

BENCH_PACKAGES = ("genray", "ray", "torch")
PHASES_PER_REPEAT = 3
"""Phases of a repetition that use the stream."""
WARM_UP_BLOCKS = 20
"""Blocks that are not counted when the stream is measured without rendering."""


def bench(
    config: Config,
    repeats: int,
    seconds: float,
    address: str | None = None,
    say: Callable[[str], None] = print,
    inline: bool = True,
) -> dict[str, Any]:
    """Measure the parts of a run in a temporary run, which leaves nothing behind.

    Args:
        config: the run.
        repeats: how often each part is measured.
        seconds: about how long each measurement takes.
        address: of the Ray cluster to join; by default RAY_ADDRESS, else a Ray started on this machine.
        say: called with each line for the user.
        inline: whether to measure learners that render too, which need memory for a generator each.

    Returns:
        `measured`, a list of what `Phases.measure` returned with the `efficiencies` added; `median`, `least` and `most`
        of it; `empty_stream`, blocks and MiB per second without rendering; `advice`, the machine and the versions.

    Raises:
        UserError: the request cannot be placed.
        RunFailed: a measurement failed.
        RunStopped: SIGTERM or Ctrl-C was received.
    """
    if config.source.kind == "stored":
        raise UserError("source.kind must be an endless source to be measured, got 'stored'")
    original, config = config, bench_config(config, repeats)
    directory = RunDirectory.of(config)
    fetch(config)
    directory.claim(config)
    try:
        with (
            directory.locked(),
            stoppable(original.name, directory.stop, say) as stopping,
            ray_cluster.joined(address) as autoscaling,
        ):
            config = bench_config(original, repeats, most=ray_cluster.fits(config))
            say(ray_cluster.check_placement(config, autoscaling).line)
            measured, empty = stopping.while_training(lambda: _measured(config, repeats, seconds, inline, say))
            hardware = ray_cluster.hardware()
    finally:
        processes.kill_left_over(directory.processes)
        shutil.rmtree(directory.path, ignore_errors=True)
    learners, num_devices = config.learners.bounds.most, devices(config, hardware["cpus"])
    measured = [{**rates, **efficiencies(rates, learners, num_devices)} for rates in measured]
    summary = {
        name: {key: round(function(rates[key] for rates in measured), 4) for key in measured[0]}
        for name, function in (("median", statistics.median), ("least", min), ("most", max))
    }
    reuse = 1 if original.stream.reuse == "auto" else original.stream.reuse
    return {
        **summary,
        "empty_stream": empty,
        "advice": bench_advice(summary["median"], learners, reuse),
        "name": original.name,
        "devices": num_devices,
        "hardware": hardware,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in BENCH_PACKAGES},
        },
        "measured": measured,
    }


@contextmanager
def stoppable(name: str, file: Path, say: Callable[[str], None]) -> Iterator[Stopping]:
    """A context in which SIGTERM and Ctrl-C end a measurement at once.

    Raises:
        RunStopped: one of them was received.
    """
    try:
        with Stopping(file, say, 0) as stopping:
            yield stopping
    except StopRequested as stop:
        raise RunStopped(f"{name} was stopped during a measurement", stop.number == signal.SIGINT) from None


def _measured(
    config: Config, repeats: int, seconds: float, inline: bool, say: Callable[[str], None]
) -> tuple[list[Rates], Rates]:
    """What the learners measured in each repetition, and the rates of the stream without rendering."""
    from genray.commands.bench.phases import bench_loop
    from genray.learner.trainer import run_learners

    if config.source.renders and config.generator.micro_batch == "auto":
        config = micro_batch.with_measured(config, say)
    run = Run.of(config)
    arguments = {"run": run, "repeats": repeats, "seconds": seconds, "inline": inline}
    return run_learners(run, bench_loop, arguments).return_value, empty_stream(run, seconds)


class RenderedOnce:
    """Stands in for a generator of the pool: it renders its first ticket, and returns those pixels for every ticket."""

    def __init__(self, run: Run, course: Course, execution: str):
        from genray.stream.renderer import Renderer

        self.course = course
        self.block = Renderer(run.config, None if run.config.pool.num_gpus else "cpu").block(course.ticket(0))

    def __call__(self, batch: dict[str, np.ndarray]) -> Block:
        return {**self.block, "position": self.course.ticket(int(batch["id"][0])).positions}


def empty_stream(run: Run, seconds: float) -> Rates:
    """Blocks and MiB per second of the stream without rendering and training."""
    from genray.stream import pool
    from genray.stream.shares import options

    course = Course(run.plan)
    dataset = pool.blocks(run, course, RenderedOnce)
    dataset.context.execution_options = options(course, ray_cluster.by_labels(run.config))
    (shard,) = dataset.streaming_split(1, equal=True)  # as a run's learner gets it
    blocks = pool.blocks_of_shard(shard)
    for _ in range(WARM_UP_BLOCKS):
        size = next(blocks)["views"].nbytes
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds and next(blocks, None) is not None:
        count += 1
    return {"blocks_per_s": round(count / elapsed, 2), "mib_per_s": round(count * size / MIB / elapsed, 1)}


def bench_config(config: Config, repeats: int, most: bool = True) -> Config:
    """The same run, just long enough for the measurements, with a small look-ahead.

    Every ticket of a run costs the stream a little, even if it is never used; and the look-ahead has to be emptied
    before each measurement.

    Args:
        config: the run.
        repeats: how often each part is measured.
        most: whether to use the largest configured numbers of generators and learners, or the smallest.
    """
    plan = Plan.of(config)
    generators, learners = (
        bounds.most if most else bounds.least for bounds in (config.pool.bounds, config.learners.bounds)
    )
    tickets = TICKETS_PER_GENERATOR * (generators + learners)
    look_ahead_mib = min(config.pool.look_ahead_mib, -(-tickets * plan.ticket_bytes // MIB))
    ready = look_ahead_mib * MIB // plan.ticket_bytes + 6 * generators
    steps = plan.ticket_steps * (repeats + 1) * PHASES_PER_REPEAT * (MAX_PHASE_TICKETS + ready)
    return replace(
        config,
        name=f".bench-{config.name}",
        stream=replace(config.stream, reuse=1),
        # All of it is warm-up, since training on one block again and again may diverge at the full learning rate.
        training=replace(config.training, steps=steps, warmup_steps=steps, checkpoint_every=steps),
        render_on="pool",
        pool=replace(config.pool, num=generators, look_ahead_mib=look_ahead_mib),
        learners=replace(config.learners, num_workers=learners),
        tracking=replace(config.tracking, mlflow=False),
    )
