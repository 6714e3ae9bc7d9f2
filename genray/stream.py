"""Tickets to blocks to learners: one ordered Ray Data pass over a pool of generator actors.

Ray Data schedules, grows and shrinks the pool, holds it back and rebuilds what is lost. A ticket is an integer and its
block a pure function of it, so nothing has to be stored to be reproducible.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from genray.config import Config
from genray.plan import MIB, Plan
from genray.views import Block, Renderer

if TYPE_CHECKING:
    import ray.data
    import torch
    from ray.train import DataConfig

NAME = "views"


class PoolGenerator:
    """An actor of the pool; Ray Data calls it with one ticket at a time."""

    def __init__(self, config: Config, first_ticket: int):
        self.first_ticket = first_ticket
        # An actor that asked for no GPU may see one all the same.
        self.renderer = Renderer(config, None if config.generators.num_gpus else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> Block:
        return self.renderer.block(self.first_ticket + int(batch["id"][0]))


def blocks(config: Config, plan: Plan, first_ticket: int) -> ray.data.Dataset:
    """The blocks from this ticket to the end of the run, in order, rendered as they are consumed."""
    import ray.data

    prepare_context(plan)
    low, high = config.generators.bounds
    return (
        ray.data.range(plan.tickets_from(first_ticket), override_num_blocks=1)
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            PoolGenerator,
            fn_constructor_args=(config, first_ticket),
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
        resource_limits=ExecutionResources(object_store_memory=plan.look_ahead_bytes),
    )
    return DataConfig(execution_options={NAME: options}, enable_shard_locality=False)


def from_stream(shard: ray.data.DataIterator) -> Iterator[Block]:
    """This learner's blocks as numpy arrays that share the object store's memory."""
    yield from shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)


def rendered_here(config: Config, plan: Plan, next_ticket: int, rank: int, device: torch.device) -> Iterator[Block]:
    """The same blocks, rendered by the learner itself; the generator is loaded before the first is asked for."""
    renderer = Renderer(config, device)
    return map(
        renderer.block, range(next_ticket + rank, next_ticket + plan.tickets_from(next_ticket), plan.num_workers)
    )
