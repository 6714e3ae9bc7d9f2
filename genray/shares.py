"""How the learners share the stream; runs beside Ray Train's controller whenever learners start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.data import ExecutionOptions, ExecutionResources
from ray.train import DataConfig

from genray import checkpoint, processes, stream
from genray.config import Config
from genray.course import Course
from genray.placement import GENERATOR_NODE
from genray.plan import Plan
from genray.rundir import RunDirectory

if TYPE_CHECKING:
    from ray.data import DataIterator, Dataset

NUMBER_BYTES = 4 * 8
"""What the number of a ticket takes in the object store, with a margin."""


def options(course: Course, by_labels: bool = False) -> ExecutionOptions:
    """Ray Data's for a stream: in order, with a look-ahead bounded in bytes, on the generators' nodes.

    Ray Train lets these replace the dataset's own wholesale, so everything that matters is stated here.

    Args:
        course: the tickets.
        by_labels: whether the nodes carry labels. Then all of the stream is kept on those of the generators: Ray Data
            takes the selector for each of its tasks and actors, and for what it asks of the cluster's autoscaler.
    """
    plan = course.plan
    # The numbers of the tickets lie in the same store, twice; were they to fill it, nothing could be rendered.
    numbers = NUMBER_BYTES * (len(course) + plan.num_workers)
    limits = ExecutionResources(object_store_memory=plan.look_ahead_bytes + numbers)
    where = GENERATOR_NODE if by_labels else None
    return ExecutionOptions(preserve_order=True, resource_limits=limits, label_selector=where)


@dataclass(frozen=True)
class Nothing:
    """Stands in for a dataset, which can be made only when the number of learners is known; see `Shares`."""

    config: Config

    def __call__(self) -> None:
        processes.note(RunDirectory.of(self.config).processes, "controller")


class Shares(DataConfig):
    """Deals the tickets from the last checkpoint on to the learners, in order."""

    def __init__(self, config: Config, by_labels: bool = False):
        self.config = config
        super().__init__(execution_options=options(Course(Plan.of(config)), by_labels), enable_shard_locality=False)

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *args: Any, **more: Any
    ) -> list[dict[str, DataIterator]]:
        """Ray Train's hook: the shards of each of `world_size` learners."""
        step = checkpoint.last_step(RunDirectory.of(self.config).path)
        course = Course(Plan.of(self.config, world_size), step)
        return super().configure({stream.NAME: stream.blocks(self.config, course)}, world_size, *args, **more)
