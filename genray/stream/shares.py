"""How the learners share the stream. Ray Train's controller runs this whenever learners start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.data import ExecutionOptions, ExecutionResources
from ray.train import DataConfig

from genray.cluster.placement import GENERATOR_NODE
from genray.runs import checkpoint, processes
from genray.stream import pool
from genray.stream.run import Run
from genray.stream.tickets import Course

if TYPE_CHECKING:
    from ray.data import DataIterator, Dataset

NUMBER_BYTES = 4 * 8
"""Size of a ticket number in the object store, with a margin."""


def options(course: Course, by_labels: bool = False) -> ExecutionOptions:
    """Ray Data's execution options for a stream: in order, look-ahead bounded in bytes, on the generators' nodes.

    Ray Train replaces all of the dataset's own options with these, so everything that matters is set here.

    Args:
        course: the tickets.
        by_labels: whether the nodes have labels. If so, the whole stream stays on the generators' nodes: Ray Data uses
            the selector for all of its tasks and actors and for its requests to the cluster's autoscaler.
    """
    plan = course.plan
    # Ticket numbers are in the same store, twice; if they filled it, nothing could be rendered.
    numbers = NUMBER_BYTES * (len(course) + plan.num_workers)
    limits = ExecutionResources(object_store_memory=plan.look_ahead_bytes + numbers)
    selector = GENERATOR_NODE if by_labels else None
    return ExecutionOptions(preserve_order=True, resource_limits=limits, label_selector=selector)


@dataclass(frozen=True)
class DatasetPlaceholder:
    """Stands in for the dataset, which cannot be created before the number of learners is known; see `Shares`."""

    run: Run

    def __call__(self) -> None:
        processes.note(self.run.directory.processes, "controller")


class Shares(DataConfig):
    """Divides the tickets from the last checkpoint on among the learners, in order."""

    def __init__(self, run: Run, by_labels: bool = False):
        self.run = run
        super().__init__(execution_options=options(Course(run.plan), by_labels), enable_shard_locality=False)

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *args: Any, **more: Any
    ) -> list[dict[str, DataIterator]]:
        """Ray Train's hook: the shards of each of `world_size` learners."""
        run = self.run.with_learners(world_size)
        course = Course(run.plan, checkpoint.last_step(run.directory.path))
        return super().configure({pool.DATASET_NAME: pool.blocks(run, course)}, world_size, *args, **more)
