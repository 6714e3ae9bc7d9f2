"""The learners' side of a run under Ray Train: restore, train, report, judge, export."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch

from genray import evaluate, export, preview, stream
from genray.config import Config
from genray.learner import Learner
from genray.rundir import RunDirectory
from genray.views import Block

PREVIEWED = 8  # anchors


def train_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's `train_loop_per_worker`.

    Returns:
        Rank 0's `marks` (when what happened, unix seconds) and `probes` (the final ones); nothing for the others.
    """
    entered = time.time()
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # blocks are only read
    config: Config = arguments["config"]
    run, rank = RunDirectory.of(config), ray.train.get_context().get_world_rank()
    learner = Learner(config, rank, ray.train.torch.get_device())
    if (last := ray.train.get_checkpoint()) is not None:
        with last.as_directory() as path:
            learner.restore(Path(path))
    judge = evaluate.Judge(config.probe, learner.policy.size) if config.probe.data and rank == 0 else None

    for record, place in learner.train(_blocks(learner, run)):
        if judge and record.get("step", 0) % config.probe.every == 0 and record:
            record["knn"] = judge(learner.features)
        if place is None or rank != 0:
            ray.train.report(record)
            continue
        with tempfile.TemporaryDirectory() as path:
            learner.save(Path(path), place)
            ray.train.report(record, ray.train.Checkpoint.from_directory(path))
    if rank != 0:
        return {}
    export.export_run(learner.encoder.state_dict(), config, run.export, learner.policy.size)
    probes = final_probes(learner) if config.probe.data else {}
    return {"marks": {"learner started": entered, **learner.marks}, "probes": probes}


def final_probes(learner: Learner) -> dict[str, dict[str, float]]:
    """The trained encoder, the same encoder untrained and raw pixels, on images that nothing else has seen."""
    untrained = Learner(learner.config, learner.rank, learner.device)
    encoders = {"trained": learner.features, "untrained": untrained.features, "raw_pixels": None}
    return evaluate.probe_report(encoders, learner.config.probe, "test", learner.policy.size)


def _blocks(learner: Learner, run: RunDirectory) -> Iterator[Block]:
    """This learner's blocks from where the run stands; at the start of a run they are also drawn."""
    config, plan, place = learner.config, learner.plan, learner.place
    if plan.tickets_from(place.next_ticket) == 0:
        return
    if config.generators.mode == "inline":
        blocks = stream.rendered_here(config, plan, place.next_ticket, learner.rank, learner.device)
    else:
        blocks = stream.from_stream(ray.train.get_dataset_shard(stream.NAME))
    for index, block in enumerate(blocks):
        if index == 0 and place.step == 0 and learner.rank == 0:
            few = {name: column[:PREVIEWED] for name, column in block.items()}
            preview.save(run.previews / "views.png", few["views"], learner.images(few))
        yield block
