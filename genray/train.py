"""The learners' side of a run under Ray Train: restore, train, report, judge, export."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train

from genray import stream
from genray.config import Config
from genray.rundir import RunDirectory
from genray.settings import UserError, reason_in
from genray.views import Block

if TYPE_CHECKING:
    from genray.learner import Learner

PREVIEWED = 8  # anchors


def train_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's `train_loop_per_worker`.

    Returns:
        Rank 0's `marks` (when what happened, unix seconds) and `probes` (the final ones), nothing for the others; or
        `refused`, what the user must mend: raised here, it would only be tried again.
    """
    started, config = time.time(), arguments["config"]
    try:
        with ThreadPoolExecutor(1) as beside:
            first = beside.submit(_pool_blocks, config)  # generators start while this process imports torch
            learner = _learner(config)
            blocks = first.result()
        if config.generators.mode == "inline":
            blocks = stream.rendered_here(config, learner.plan, learner.place.next_ticket, learner.rank, learner.device)
    except Exception as error:
        if isinstance(error, UserError):
            return {"refused": str(error)}
        if (reason := reason_in(str(error))) and reason.mendable:  # of a generator
            return {"refused": reason.message}
        raise
    judge = _judge(learner)
    for record, place in learner.train(_drawn(blocks, learner)):
        if judge and record and record["step"] % config.probe.every == 0:
            record["knn"] = judge(learner.features)
        if place is None or learner.rank != 0:
            ray.train.report(record)
            continue
        with tempfile.TemporaryDirectory() as path:
            learner.save(Path(path), place)
            ray.train.report(record, ray.train.Checkpoint.from_directory(path))
    if learner.rank != 0:
        return {}
    from genray.export import export_run

    export_run(learner.encoder.state_dict(), config, RunDirectory.of(config).export, learner.policy.size)
    probes = final_probes(learner) if judge else {}
    return {"marks": {"learner started": started, **learner.marks}, "probes": probes}


def final_probes(learner: Learner) -> dict[str, dict[str, float]]:
    """The trained encoder, the same encoder untrained and raw pixels, on images that nothing else has seen."""
    from genray.evaluate import probe_report

    untrained = type(learner)(learner.config, learner.rank, learner.device)
    encoders = {"trained": learner.features, "untrained": untrained.features, "raw_pixels": None}
    return probe_report(encoders, learner.config.probe, "test", learner.policy.size)


def _pool_blocks(config: Config) -> Iterator[Block]:
    """This learner's blocks from the pool, once the first one is here; none where learners render their own."""
    if config.generators.mode == "inline":
        return iter(())
    blocks = stream.from_stream(ray.train.get_dataset_shard(stream.NAME))
    first = next(blocks, None)
    return iter(()) if first is None else chain([first], blocks)


def _learner(config: Config) -> Learner:
    """The learner of this process, where its last checkpoint left it."""
    import ray.train.torch

    from genray.learner import Learner

    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # blocks are only read
    learner = Learner(config, ray.train.get_context().get_world_rank(), ray.train.torch.get_device())
    if (last := ray.train.get_checkpoint()) is not None:
        with last.as_directory() as path:
            learner.restore(Path(path))
    return learner


def _judge(learner: Learner) -> Any:
    """The quick probe, where one is asked for; rank 0's task alone."""
    if learner.rank != 0 or not learner.config.probe.data:
        return None
    from genray.evaluate import Judge

    return Judge(learner.config.probe, learner.policy.size)


def _drawn(blocks: Iterator[Block], learner: Learner) -> Iterator[Block]:
    """The same blocks; at the start of a run the first anchors are drawn into `previews/`."""
    from genray import preview

    for block in blocks:
        if learner.rank == 0 and int(block["ticket"][0]) == 0:
            few = {name: column[:PREVIEWED] for name, column in block.items()}
            path = RunDirectory.of(learner.config).previews / "views.png"
            preview.save(path, few["views"], learner.images(few))
        yield block
