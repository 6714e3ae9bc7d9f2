"""Tickets to blocks to learners: one ordered Ray Data pass over a pool of generator actors.

Ray Data schedules, grows and shrinks the pool, holds it back and rebuilds what is lost. A ticket is an integer and its
block a pure function of it, so nothing has to be stored to be reproducible.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from genray import processes, storage, telemetry
from genray.config import Config
from genray.course import Course
from genray.faults import Attempts, NotCounted, TicketFailed, starting
from genray.pace import Pace
from genray.plan import MIB, Plan
from genray.rundir import RunDirectory
from genray.settings import UserError
from genray.views import Block, Renderer
from genray.watchdog import Watchdog

if TYPE_CHECKING:
    import ray.data
    import torch

NAME = "views"
GROWTHS = 4
"""Steps in which a pool grows from its least to its most."""
PATIENCE = 10
"""Times its longest ticket that a generator may take before it counts as hung."""


class PoolGenerator:
    """An actor of the pool; Ray Data calls it with the number of one ticket of the course at a time.

    A ticket that fails costs the process its life, so that the next attempt is made by a fresh one.
    """

    def __init__(self, config: Config, course: Course, execution: str):
        self.name, self.config, self.course = config.name, config.generators, course
        run = RunDirectory.of(config)
        processes.note(run.processes, "generator")
        storage.carry(run.faults, run.path)  # what a watchdog wrote when it killed the one before
        self.attempts = Attempts(run.attempts / execution, run.faults, self.config.max_attempts, deaths=True)
        self.watchdog = Watchdog(self.config.ticket_timeout_s, run.faults)
        self.warm, self.longest = False, 0.0
        begun = run.attempts / execution / f"starting-{socket.gethostname()}.jsonl"
        begun.parent.mkdir(parents=True, exist_ok=True)
        with (
            starting(begun, run.faults, self.config.max_attempts),
            self.watchdog.over(self.config.start_timeout_s),
        ):
            # An actor that asked for no GPU may see one all the same.
            self.renderer = Renderer(config, None if self.config.num_gpus else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> Block:
        ticket = self.course.ticket(int(batch["id"][0]))
        # The first may compile.
        limit = PATIENCE * self.longest if self.warm else self.config.start_timeout_s
        limit = max(self.config.ticket_timeout_s, limit)
        try:
            with self.attempts.at(ticket) as file, self.watchdog.over(limit, file):
                block = self.renderer.block(ticket)
        except (NotCounted, TicketFailed, UserError):
            raise
        except (Exception, SystemExit):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.warm:
            self.longest = max(self.longest, float(block["render_s"][0]))
        self.warm = True
        telemetry.rendered(self.name, block)
        return block


def blocks(config: Config, course: Course, actor: type = PoolGenerator, *arguments: Any) -> ray.data.Dataset:
    """The tickets of the course as blocks, in order, rendered by a pool of such actors as they are consumed.

    The actors are made with the configuration, the course, a name for this execution, and these arguments.
    """
    import ray.data

    prepare_context(config, course.plan)
    low, high = config.generators.bounds
    return (
        ray.data.range(len(course), override_num_blocks=1)
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            actor,
            fn_constructor_args=(config, course, f"{time.time():.3f}", *arguments),
            batch_size=1,
            batch_format="numpy",
            # Two tickets in flight keep an actor busy while Ray schedules; with one the pool would never grow.
            compute=ray.data.ActorPoolStrategy(
                min_size=low, max_size=high, initial_size=low, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=config.generators.num_cpus,
            num_gpus=config.generators.num_gpus,
        )
    )


def prepare_context(config: Config, plan: Plan) -> None:
    """Set this process's options of Ray Data; the learners get the driver's."""
    from ray.data import DataContext
    from ray.data.context import AutoscalingConfig

    low, high = config.generators.bounds
    context = DataContext.get_current()
    context.target_max_block_size = max(128 * MIB, 2 * plan.ticket_bytes)  # a ticket is one block, never split
    context.execution_no_progress_timeout_s = -1  # waiting for nodes is not a failure
    context.max_consecutive_actor_init_deaths = 3  # a generator that cannot start ends the run with its own error
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.custom_execution_callback_classes = [Pace]  # type: ignore[list-item]
    # The look-ahead alone says how much may lie ready. This would leave what is rendered with the generators, and
    # count them as busy for it.
    context.downstream_capacity_backpressure_ratio = None
    context.op_resource_reservation_ratio = 0.0  # the look-ahead is for what is rendered, not half for the tickets
    # Of a pool's tickets, in hand or in process, for each generator. It grows when nearly all have two, a part of its
    # range at a time; it shrinks when fewer than every second has one, so that one too many can stay.
    context.autoscaling_config = AutoscalingConfig(
        actor_pool_util_upscaling_threshold=1.9,
        actor_pool_util_downscaling_threshold=0.45,
        actor_pool_max_upscaling_delta=max(1, -(-(high - low) // GROWTHS)),
    )


def from_stream(shard: ray.data.DataIterator) -> Iterator[Block]:
    """This learner's blocks as numpy arrays that share the object store's memory."""
    yield from shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)


class Here:
    """A learner's own generator: the same blocks, rendered by the learner itself."""

    def __init__(self, config: Config, device: torch.device):
        self.name, run = config.name, RunDirectory.of(config)
        self.renderer = Renderer(config, device)
        self.attempts = Attempts(run.attempts / "inline", run.faults, config.generators.max_attempts, deaths=False)

    def blocks(self, course: Course, rank: int) -> Iterator[Block]:
        """Its tickets of the course, each when it is asked for."""
        for ticket in course.of_learner(rank):
            with self.attempts.at(ticket):
                block = self.renderer.block(ticket)
            telemetry.rendered(self.name, block)
            yield block
