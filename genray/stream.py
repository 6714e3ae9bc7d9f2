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
from typing import TYPE_CHECKING

import numpy as np

from genray import processes
from genray.config import Config
from genray.course import Course
from genray.faults import Attempts, NotCounted, TicketFailed, starting
from genray.plan import MIB, Plan
from genray.rundir import RunDirectory
from genray.settings import UserError
from genray.views import Block, Renderer
from genray.watchdog import Watchdog

if TYPE_CHECKING:
    import ray.data
    import torch
    from ray.train import DataConfig

NAME = "views"
NUMBER_BYTES = 4 * 8
"""What the number of a ticket takes in the object store, with a margin."""
PATIENCE = 10
"""Times its longest ticket that a generator may take before it counts as hung."""


class PoolGenerator:
    """An actor of the pool; Ray Data calls it with the number of one portion of the course at a time.

    A ticket that fails costs the process its life, so that the next attempt is made by a fresh one.
    """

    def __init__(self, config: Config, course: Course, execution: str):
        self.config, self.course = config.generators, course
        run = RunDirectory.of(config)
        processes.note(run.processes, "generator")
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
        positions = self.course.positions(int(batch["id"][0]))
        # The first may compile.
        limit = PATIENCE * self.longest if self.warm else self.config.start_timeout_s
        limit = max(self.config.ticket_timeout_s, limit)
        try:
            with self.attempts.at(*self.course.plan.ticket_at(positions)) as file, self.watchdog.over(limit, file):
                block = self.renderer.block(positions)
        except (NotCounted, TicketFailed, UserError):
            raise
        except Exception:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.warm:
            self.longest = max(self.longest, float(block["render_s"][0]))
        self.warm = True
        return block


def blocks(config: Config, course: Course) -> ray.data.Dataset:
    """The portions of the course as blocks, in order, rendered as they are consumed."""
    import ray.data

    prepare_context(course.plan)
    low, high = config.generators.bounds
    fewest, most = config.learners.bounds
    spare = most - fewest and most - 1  # whichever number of learners there is, its last round is complete
    return (
        ray.data.range(len(course) + spare, override_num_blocks=1)
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            PoolGenerator,
            fn_constructor_args=(config, course, f"{time.time():.3f}"),
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


def prepare_context(plan: Plan) -> None:
    """Set this process's options of Ray Data; the learners get the driver's."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.target_max_block_size = max(128 * MIB, 2 * plan.ticket_bytes)  # a ticket is one block, never split
    context.execution_no_progress_timeout_s = -1  # waiting for nodes is not a failure
    context.max_consecutive_actor_init_deaths = 3  # a generator that cannot start ends the run with its own error
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def data_config(plan: Plan) -> DataConfig:
    """How the learners share the stream: in ticket order, with a look-ahead bounded in bytes."""
    from ray.data import ExecutionOptions, ExecutionResources
    from ray.train import DataConfig

    # These options replace the dataset's own wholesale, so everything that matters is stated here.
    options = ExecutionOptions(
        preserve_order=True,
        # The numbers of the tickets lie in the same store, twice; were they to fill it, no ticket could be rendered.
        resource_limits=ExecutionResources(
            object_store_memory=plan.look_ahead_bytes + NUMBER_BYTES * (plan.tickets_from(0) + plan.parts)
        ),
    )
    return DataConfig(execution_options={NAME: options}, enable_shard_locality=False)


def from_stream(shard: ray.data.DataIterator) -> Iterator[Block]:
    """This learner's blocks as numpy arrays that share the object store's memory."""
    yield from shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)


def rendered_here(config: Config, course: Course, rank: int, device: torch.device) -> Iterator[Block]:
    """The same blocks, rendered by the learner itself; the generator is loaded before the first is asked for."""
    renderer, run = Renderer(config, device), RunDirectory.of(config)
    attempts = Attempts(run.attempts / "inline", run.faults, config.generators.max_attempts, deaths=False)

    def rendered() -> Iterator[Block]:
        for together in course.of_learner(rank):
            for positions in together:
                with attempts.at(*course.plan.ticket_at(positions)):
                    block = renderer.block(positions)
                yield block

    return rendered()
