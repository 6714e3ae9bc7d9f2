"""What runs in each of Ray Train's workers: restore, train, report, judge, export."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.collective import barrier, broadcast_from_rank_zero

from genray.config.errors import UserError
from genray.config.probe import DIGIT_SCENES
from genray.learner import validation
from genray.runs import processes, store
from genray.stream import pool
from genray.stream.inline import InlineGenerator
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.types import Block

if TYPE_CHECKING:
    from genray.learner.learner import Learner, Request

PREVIEW_ANCHORS = 8
"""Rows of a preview that is drawn during training."""
POLL_EVERY_S = 2.0
"""Seconds between two checks for a stop request or a preemption notice."""
SAVE_EVERY_S = 15.0
"""Seconds between two checkpoints once a node has given notice that it will be taken away."""


def train_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's `train_loop_per_worker`.

    Returns:
        From rank 0 `marks`, the start-up's milestones in seconds since 1970, and `probes`, the final results; from
        other ranks nothing. From all ranks `stopped`, the step reached, if the run was asked to stop before its end.
    """
    started, context = time.time(), ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    run: Run = arguments["run"].with_learners(world)
    config, directory = run.config, run.directory
    processes.note(directory.processes, f"learner {rank}")
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(pool_blocks, run)  # starts the generators while this process imports torch
        from genray.learner.load import restored_learner

        learner = restored_learner(run, rank)
        blocks = pending.result()
    if config.render_on == "learners":
        blocks = InlineGenerator(run, learner.device).blocks(Course(run.plan, learner.step), rank)
    judge = quick_probe(learner)
    poll = StopPoll(run, learner.step)
    if world > 1:
        barrier()  # from here on torch's collective operations have a time limit
    for record, checkpoint_due in learner.train(with_previews(synchronised(blocks, world), learner), poll):
        if judge and record and record["step"] % config.probe.every == 0:
            record["knn"] = judge(learner.features)
        if not checkpoint_due or rank != 0:
            ray.train.report(record)
            continue
        with tempfile.TemporaryDirectory() as path:
            learner.save(Path(path))
            validate = validation.due(config, learner.step)
            ray.train.report(record, ray.train.Checkpoint.from_directory(path), validation=validate)
    if learner.step < run.plan.steps:
        return {"stopped": learner.step}
    if rank != 0:
        return {}
    from genray.learner.export import export_encoder

    export_encoder(learner.encoder.state_dict(), config, directory.export, learner.policy.size)
    store.upload(directory.export, directory.path)
    probes = final_probes(learner) if config.probe.data else {}
    return {"marks": {"learner started": started, **learner.marks}, "probes": probes}


class StopPoll:
    """Asks, after a step, what the learners are to do; all of them ask at the same steps and get the same answer.

    They ask every few seconds, and at least once for each block, since waiting for a block may take long. A `stop` file
    in the run's directory stops the run. After notice that a node of theirs will be taken away, checkpoints are written
    until it is gone; Ray Train then restarts the learners without it.

    Args:
        run: the run.
        step: steps made so far.
    """

    def __init__(self, run: Run, step: int):
        self.run, self.plan, self.rank = run.directory, run.plan, ray.train.get_context().get_world_rank()
        self.next = step + 1
        self.last_step, self.last_time = step, time.monotonic()
        self.next_save = self.last_time
        """When a checkpoint is due if a node is about to be taken away."""

    def __call__(self, step: int) -> Request:
        if step < self.next:
            return "continue"
        preempted = ray.train.get_preemption_info() is not None
        request, later = broadcast_from_rank_zero(self._request(step, preempted) if self.rank == 0 else None)
        self.next = min(later, self.plan.next_ticket_step(step) + 1)
        return request

    def _request(self, step: int, preempted: bool) -> tuple[Request, int]:
        """For all learners: what to do now, and the step after which to ask again if no new block comes first."""
        now = time.monotonic()
        per_step = (now - self.last_time) / (step - self.last_step)
        self.last_step, self.last_time = step, now
        if self.run.stop_requested():
            return "stop", step
        save = preempted and now + per_step / 2 >= self.next_save  # at the step that is nearest to when it is due
        if save:
            self.next_save = now + SAVE_EVERY_S
        wait_s = min(POLL_EVERY_S, self.next_save - now) if preempted else POLL_EVERY_S
        return "save" if save else "continue", step + max(1, round(wait_s / per_step))


def synchronised(blocks: Iterator[Block], world: int) -> Iterator[Block]:
    """The same blocks, each released once every learner has its own.

    So no learner waits within a step for another one's block, and the time limit of a step's collective operations need
    not allow for rendering.
    """
    for block in blocks:
        if world > 1:
            barrier()
        yield block


def final_probes(learner: Learner) -> dict[str, dict[str, float]]:
    """Accuracies of the trained encoder, of the same encoder untrained and of raw pixels, on the test images."""
    from genray.probes.run_probes import probe_report

    untrained = type(learner)(learner.run, learner.rank, learner.device)
    encoders = {"trained": learner.features, "untrained": untrained.features, "raw_pixels": None}
    return probe_report(encoders, learner.config.probe, "test", learner.policy.size)


def pool_blocks(run: Run) -> Iterator[Block]:
    """This learner's blocks from the pool, once the first has arrived; none if learners render their own."""
    if run.config.render_on == "learners":
        return iter(())
    blocks = pool.blocks_of_shard(ray.train.get_dataset_shard(pool.DATASET_NAME))
    first = next(blocks, None)
    return iter(()) if first is None else chain([first], blocks)


def quick_probe(learner: Learner) -> Any:
    """The quick probe of rank 0, if the run has labelled images; else None."""
    probe = learner.config.probe
    if learner.rank != 0 or not probe.data:
        return None
    from genray.probes.data import of_run
    from genray.probes.run_probes import QuickProbe

    if probe.data != DIGIT_SCENES and of_run(probe).multi_label:
        return None  # kNN does not support multi-label images
    return QuickProbe(probe, learner.policy.size)


def with_previews(blocks: Iterator[Block], learner: Learner) -> Iterator[Block]:
    """The same blocks; rank 0 draws the first anchors of one every `tracking.previews_every` steps."""
    from genray.runs import previews
    from genray.views import preview

    directory, every = learner.run.directory.previews, learner.config.tracking.previews_every
    due = max(previews.existing(directory), default=-every) + every
    for block in blocks:
        if learner.rank == 0 and learner.step >= due:
            first = {name: column[:PREVIEW_ANCHORS] for name, column in block.items()}
            preview.save(previews.path_of(directory, learner.step), first["views"], learner.images(first))
            with suppress(UserError):  # a store out of reach must not end the run over a picture
                store.upload(previews.path_of(directory, learner.step), directory.parent)
            due = (learner.step // every + 1) * every
        yield block
