"""From tickets to blocks to learners: one ordered Ray Data pass over a pool of generator actors.

Ray Data schedules and scales the pool, applies backpressure and rebuilds lost blocks. A ticket is an integer and its
block a pure function of it, so reproducing a block needs no stored state.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from genray.config.errors import UserError
from genray.runs import processes, store
from genray.stream.attempts import Attempts, NotCounted, TicketFailed, starting
from genray.stream.pace import Pace
from genray.stream.plan import MIB
from genray.stream.renderer import Renderer, note_rendered
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.stream.watchdog import Watchdog
from genray.views.types import Block

if TYPE_CHECKING:
    import ray.data

DATASET_NAME = "views"
"""Name of the stream of blocks among Ray Train's datasets."""
GROWTH_STEPS = 4
"""Steps in which a pool grows from its minimum to its maximum size."""
HUNG_FACTOR = 10
"""A generator counts as hung when a ticket takes this many times as long as its longest ticket so far."""


class PoolGenerator:
    """An actor of the pool; Ray Data calls it with the index of one ticket of the course at a time.

    It kills its own process if a ticket fails, so that a fresh one makes the next attempt.
    """

    def __init__(self, run: Run, course: Course, execution: str):
        self.name, self.config, self.course = run.config.name, run.config.pool, course
        directory = run.directory
        processes.note(directory.processes, "generator")
        # A watchdog may have added to it when it killed the last process.
        store.upload(directory.faults, directory.path)
        counted = directory.attempts / execution
        self.attempts = Attempts(counted, directory.faults, self.config.max_attempts, count_deaths=True)
        self.watchdog = Watchdog(self.config.ticket_timeout_s, directory.faults)
        self.warm, self.longest = False, 0.0
        begun = counted / f"starting-{socket.gethostname()}.jsonl"
        begun.parent.mkdir(parents=True, exist_ok=True)
        with (
            starting(begun, directory.faults, self.config.max_attempts),
            self.watchdog.limit(self.config.start_timeout_s),
        ):
            # An actor that requested no GPU may still see one.
            self.renderer = Renderer(run.config, None if self.config.num_gpus else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> Block:
        ticket = self.course.ticket(int(batch["id"][0]))
        # The first ticket may compile the network.
        limit = HUNG_FACTOR * self.longest if self.warm else self.config.start_timeout_s
        limit = max(self.config.ticket_timeout_s, limit)
        try:
            with self.attempts.at(ticket) as file, self.watchdog.limit(limit, file):
                block = self.renderer.block(ticket)
        except (NotCounted, TicketFailed, UserError):
            raise
        except (Exception, SystemExit):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.warm:
            self.longest = max(self.longest, float(block["render_s"][0]))
        self.warm = True
        note_rendered(self.name, block)
        return block


def blocks(run: Run, course: Course, actor: type = PoolGenerator, *arguments: Any) -> ray.data.Dataset:
    """The blocks of a course in order, rendered by a pool of actors as they are consumed.

    The actors are created with the run, the course, a name for this execution, and `arguments`.
    """
    import ray.data

    prepare_context(run)
    pool = run.config.pool
    low, high = pool.bounds
    return (
        ray.data.range(len(course), override_num_blocks=1)
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            actor,
            fn_constructor_args=(run, course, f"{time.time():.3f}", *arguments),
            batch_size=1,
            batch_format="numpy",
            # Two tickets in flight keep an actor busy while Ray schedules; with one, the pool would never grow.
            compute=ray.data.ActorPoolStrategy(
                min_size=low, max_size=high, initial_size=low, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
        )
    )


def prepare_context(run: Run) -> None:
    """Set the Ray Data options of this process; the learners inherit the driver's."""
    from ray.data import DataContext
    from ray.data.context import AutoscalingConfig

    low, high = run.config.pool.bounds
    context = DataContext.get_current()
    context.target_max_block_size = max(128 * MIB, 2 * run.plan.ticket_bytes)  # a ticket is one block, never split
    context.execution_no_progress_timeout_s = -1  # waiting for nodes is not a failure
    context.max_consecutive_actor_init_deaths = 3  # a generator that cannot start ends the run with its own error
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.custom_execution_callback_classes = [Pace]  # type: ignore[list-item]
    # The look-ahead alone limits what may wait for the learners. This option would also hold blocks back in the
    # generators, which would then count as busy.
    context.downstream_capacity_backpressure_ratio = None
    context.op_resource_reservation_ratio = 0.0  # the whole look-ahead is for blocks; half would go to ticket numbers
    # In tickets per generator, waiting or running. The pool grows when nearly all generators have two, by a part of
    # its range at a time; it shrinks when fewer than half have one, so that a single idle generator can stay.
    context.autoscaling_config = AutoscalingConfig(
        actor_pool_util_upscaling_threshold=1.9,
        actor_pool_util_downscaling_threshold=0.45,
        actor_pool_max_upscaling_delta=max(1, -(-(high - low) // GROWTH_STEPS)),
    )


def blocks_of_shard(shard: ray.data.DataIterator) -> Iterator[Block]:
    """A learner's blocks from its shard, as numpy arrays that share the object store's memory."""
    yield from shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
