"""The learners' side of a run under Ray Train: restore, train, report, judge, export."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.collective import barrier, broadcast_from_rank_zero

from genray import processes, storage, stream
from genray.config import Config
from genray.course import Course
from genray.plan import Plan
from genray.probes import beside
from genray.probes.settings import DIGITS
from genray.rundir import RunDirectory
from genray.settings import UserError
from genray.views import Block

if TYPE_CHECKING:
    from genray.learner import Learner, Wish

PREVIEWED = 8  # anchors
LOOK_EVERY_S = 2.0
"""Seconds between two looks whether the run is to stop."""
SAVE_EVERY_S = 15.0
"""Seconds between two checkpoints while a node is about to be taken away."""


def train_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's `train_loop_per_worker`.

    Returns:
        Rank 0's `marks` (when what happened, unix seconds) and `probes` (the final ones), nothing for the others; or
        `stopped`, the step at which the run was asked to stop.
    """
    started, config = time.time(), arguments["config"]
    context, run = ray.train.get_context(), RunDirectory.of(config)
    rank, world = context.get_world_rank(), context.get_world_size()
    processes.note(run.processes, f"learner {rank}")
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(pool_blocks, config)  # generators start while this process imports torch
        learner = learner_here(config, rank, world)
        blocks = first.result()
    if config.generators.mode == "inline":
        blocks = stream.Here(config, learner.device).blocks(Course(learner.plan, learner.step), rank)
    judge = _judge(learner)
    asked = Asked(run, learner.plan, learner.step)
    if world > 1:
        barrier()  # from here on the collective operations of torch have a time limit
    for record, checkpoint_due in learner.train(_drawn(together(blocks, world), learner), asked):
        if judge and record and record["step"] % config.probe.every == 0:
            record["knn"] = judge(learner.features)
        if not checkpoint_due or rank != 0:
            ray.train.report(record)
            continue
        with tempfile.TemporaryDirectory() as path:
            learner.save(Path(path))
            judged = beside.due(config, learner.step)
            ray.train.report(record, ray.train.Checkpoint.from_directory(path), validation=judged)
    if learner.step < learner.plan.steps:
        return {"stopped": learner.step}
    if rank != 0:
        return {}
    from genray.export import export_run

    export_run(learner.encoder.state_dict(), config, run.export, learner.policy.size)
    storage.carry(run.export, run.path)
    probes = final_probes(learner) if config.probe.data else {}
    return {"marks": {"learner started": started, **learner.marks}, "probes": probes}


class Asked:
    """What is asked of the learners after a step, looked up at the same steps on all of them.

    That is every few seconds, and once for each block at the least, since waiting for one may take long.

    The run is stopped where its directory has a `stop` file. Where a node of the learners is about to be taken away,
    checkpoints are written until it is: Ray Train then starts the learners again without it.
    """

    def __init__(self, run: RunDirectory, plan: Plan, step: int):
        self.run, self.plan, self.rank = run, plan, ray.train.get_context().get_world_rank()
        self.next = step + 1
        self.seen, self.at = step, time.monotonic()

    def __call__(self, step: int) -> Wish:
        if step < self.next:
            return "go on"
        preempted = ray.train.get_preemption_info() is not None
        wish, later = broadcast_from_rank_zero(self._wish(step, preempted) if self.rank == 0 else None)
        self.next = min(later, self.plan.next_tickets(step) + 1)
        return wish

    def _wish(self, step: int, preempted: bool) -> tuple[Wish, int]:
        """For all learners: what to do now, and the step after which to ask again if no new block comes first."""
        now = time.monotonic()
        per_step = (now - self.at) / (step - self.seen)
        self.seen, self.at = step, now
        if self.run.asked_to_stop():
            return "stop", step
        if preempted:
            return "save", step + max(1, round(SAVE_EVERY_S / per_step))
        return "go on", step + max(1, round(LOOK_EVERY_S / per_step))


def together(blocks: Iterator[Block], world: int) -> Iterator[Block]:
    """The same blocks, each only when every learner has its own.

    No learner then waits within a step for another one's block, however long that takes, and the time limit of the
    collective operations of a step need not allow for it.
    """
    for block in blocks:
        if world > 1:
            barrier()
        yield block


def final_probes(learner: Learner) -> dict[str, dict[str, float]]:
    """The trained encoder, the same encoder untrained and raw pixels, on images that nothing else has seen."""
    from genray.probes.quick import probe_report

    untrained = type(learner)(learner.config, learner.rank, learner.device, learner.plan.num_workers)
    encoders = {"trained": learner.features, "untrained": untrained.features, "raw_pixels": None}
    return probe_report(encoders, learner.config.probe, "test", learner.policy.size)


def pool_blocks(config: Config) -> Iterator[Block]:
    """This learner's blocks from the pool, once the first one is here; none where learners render their own."""
    if config.generators.mode == "inline":
        return iter(())
    blocks = stream.from_stream(ray.train.get_dataset_shard(stream.NAME))
    first = next(blocks, None)
    return iter(()) if first is None else chain([first], blocks)


def learner_here(config: Config, rank: int, world: int) -> Learner:
    """The learner of this process, where its last checkpoint left it."""
    import ray.train.torch

    from genray import checkpoint
    from genray.learner import Learner

    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # blocks are only read
    learner = Learner(config, rank, ray.train.torch.get_device(), world)
    if (last := checkpoint.last(RunDirectory.of(config).path)) is not None:
        learner.restore(last)
    return learner


def _judge(learner: Learner) -> Any:
    """The quick probe, where one is asked for; rank 0's task alone."""
    probe = learner.config.probe
    if learner.rank != 0 or not probe.data:
        return None
    from genray.probes.data import of_run
    from genray.probes.quick import Judge

    if probe.data != DIGITS and of_run(probe).several:
        return None  # kNN has no word on them
    return Judge(probe, learner.policy.size)


def _drawn(blocks: Iterator[Block], learner: Learner) -> Iterator[Block]:
    """The same blocks; the first anchors of some of them, `tracking.previews_every` steps apart, are drawn."""
    from genray import grids, preview

    directory, every = RunDirectory.of(learner.config).previews, learner.config.tracking.previews_every
    due = max(grids.drawn(directory), default=-every) + every
    for block in blocks:
        if learner.rank == 0 and learner.step >= due:
            few = {name: column[:PREVIEWED] for name, column in block.items()}
            preview.save(grids.path_of(directory, learner.step), few["views"], learner.images(few))
            with suppress(UserError):  # a picture is not worth a run
                storage.carry(grids.path_of(directory, learner.step), directory.parent)
            due = (learner.step // every + 1) * every
        yield block
