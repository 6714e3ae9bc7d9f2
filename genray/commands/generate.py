"""`genray generate`: renders a range of a run's tickets once, into files that later runs train on.

The actors of the pool write what they render, a file for each ticket, whole or not at all. So the same command resumes
a job that was cut off: it renders only the files that are missing. The manifest is written once none is missing.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genray.cluster import ray_cluster
from genray.cluster.placement import GENERATOR_NODE
from genray.commands.bench.auto import INLINE_TICKET_BATCHES
from genray.commands.configured import prepared
from genray.commands.manifest import complete_manifest, draft_manifest, earlier_manifest, with_own_versions
from genray.commands.progress import Progress
from genray.config.errors import RunStopped, UserError
from genray.config.files import write_atomically
from genray.config.rules import check
from genray.config.run import Config
from genray.config.sections import Learners, Training
from genray.runs import jsonl, processes
from genray.runs.directory import RunDirectory
from genray.runs.stopping import Stopping, StopRequested
from genray.stream.plan import MIB, Plan
from genray.stream.pool import PoolGenerator
from genray.stream.run import Run
from genray.stream.tickets import Course, Ticket
from genray.views import sources
from genray.views.sources.shards import ShardFormat, Shards
from genray.views.sources.stored import MANIFEST, Manifest

if TYPE_CHECKING:
    from genray.views.types import Block

JOB_NAME = ".job"
"""Name of the job as a run, and of its directory among the files."""


@dataclass(frozen=True)
class MissingTickets(Course):
    """A course of those tickets alone that have these numbers."""

    numbers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def ticket(self, index: int) -> Ticket:
        return super().ticket(self.numbers[index])


class TicketWriter(PoolGenerator):
    """An actor of the pool that writes each block to its file; it returns the ticket's number and the file's size."""

    def __init__(self, run: Run, course: Course, execution: str, shards: Shards):
        super().__init__(run, course, execution)
        self.shards = shards

    def __call__(self, batch: dict[str, np.ndarray]) -> Block:
        block = super().__call__(batch)
        number = int(block["ticket"][0])
        return {"ticket": np.array([number]), "bytes": np.array([self.shards.write(number, block)])}


def generate(
    config: Config,
    out: Path | str,
    tickets: tuple[int, int] | None = None,
    anchors: int | None = None,
    format: ShardFormat = "parquet",
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Manifest:
    """Render anchors into files. Resumes unfinished work; finished files are kept.

    Args:
        config: the run that the anchors are for.
        out: directory of the files; on a cluster, one that all nodes share.
        tickets: the first, and the one after the last; a ticket is `stream.ticket_batches` batches.
        anchors: how many, from the first on, rounded up to whole tickets; by default as many as the run uses.
        format: of the files.
        address: of the Ray cluster to join; by default RAY_ADDRESS, else a Ray started on this machine.
        say: called with each line for the user.

    Returns:
        The manifest, also written to `manifest.json`.

    Raises:
        UserError: the request cannot be carried out as it stands.
        RunFailed: a ticket could not be rendered or written.
        RunStopped: SIGTERM or Ctrl-C was received.
    """
    out, requested = Path(out), prepared(config)
    config = job_config(requested, out)
    first, last = ticket_range(config, requested, tickets, anchors)
    config = replace(config, training=Training(steps=last * _ticket_batches(config)))
    run = Run.of(config)
    directory = run.directory
    with claimed(directory, out):
        sources.fetch(config)
        run, draft = begin(run, requested, out, format, address, say)
        shards = draft.shards(out.absolute())  # the writers have other working directories
        shards.remove_partial()
        course = MissingTickets(run.plan, numbers=missing_tickets(shards, first, last))
        say(f"{len(course)} of {last - first} files are missing in {out}, each of {shards.anchors} anchors")
        if len(course):
            draft = replace(draft, versions=with_own_versions(draft.versions))
            write_atomically(directory.path / MANIFEST, draft.to_json())
            render_tickets(run, course, shards, address, say)
        manifest = complete_manifest(draft, shards, directory)
        write_atomically(out / MANIFEST, manifest.to_json())
    shutil.rmtree(directory.path)
    return manifest


def job_config(config: Config, out: Path) -> Config:
    """The configuration of a job that renders a run's anchors in a pool: without learners and reuse, in its directory.

    Raises:
        UserError: the run trains on stored anchors itself.
    """
    if config.source.kind == "stored":
        raise UserError("source.kind must be one that can be rendered into files, got 'stored'")
    batches = INLINE_TICKET_BATCHES if config.stream.ticket_batches == "auto" else config.stream.ticket_batches
    config = replace(
        config,
        name=JOB_NAME,
        storage_path=str(out.absolute()),
        stream=replace(config.stream, reuse=1, ticket_batches=batches),
        learners=Learners(num_workers=1, num_cpus=0, num_gpus=0),
    )
    spec = sources.describe(config)
    ticket = batches * config.stream.batch_size * spec.views * 3 * spec.image_size**2
    look_ahead = max(config.pool.look_ahead_mib, -(-2 * ticket // MIB))  # no block is kept, but the plan requires this
    config = replace(config, render_on="pool", pool=replace(config.pool, look_ahead_mib=look_ahead))
    check(config)
    return config


def ticket_range(
    config: Config, requested: Config, tickets: tuple[int, int] | None, anchors: int | None
) -> tuple[int, int]:
    """The tickets to render: the first, and the one after the last.

    Args:
        config: of the job.
        requested: of the run that the anchors are for.
        tickets: see `generate`.
        anchors: see `generate`.

    Raises:
        UserError: there are none, or both tickets and anchors are given.
    """
    size = _ticket_batches(config) * config.stream.batch_size
    if tickets and anchors is not None:
        raise UserError("--tickets or --anchors must be given, not both")
    if tickets:
        if not 0 <= tickets[0] < tickets[1]:
            raise UserError(f"--tickets must be FIRST:LAST with 0 <= FIRST < LAST, got {tickets[0]}:{tickets[1]}")
        return tickets
    if anchors is None:
        plan = Plan.of(requested)
        anchors = plan.fresh_steps(plan.steps) * plan.batch_size
    if anchors < 1:
        raise UserError(f"--anchors must be at least 1, got {anchors}")
    return 0, -(-anchors // size)


def _ticket_batches(config: Config) -> int:
    batches = config.stream.ticket_batches
    assert isinstance(batches, int)  # not "auto": see `job_config`
    return batches


@contextmanager
def claimed(run: RunDirectory, out: Path) -> Iterator[None]:
    """Hold the job's directory for this process, and remove it if the job is refused."""
    with ExitStack() as stack:
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run.locked())
        except OSError as error:
            raise UserError(f"--out must be a directory that can be written, got '{out}' ({error.strerror})") from None
        except UserError:
            raise UserError(f"--out must not be that of a job in progress, got '{out}'") from None
        processes.kill_left_over(run.processes)
        shutil.rmtree(run.attempts, ignore_errors=True)
        try:
            yield
        finally:
            processes.kill_left_over(run.processes)
            if not (run.path / MANIFEST).exists():
                shutil.rmtree(run.path)


def begin(
    run: Run, requested: Config, out: Path, format: ShardFormat, address: str | None, say: Callable[[str], None]
) -> tuple[Run, Manifest]:
    """Draft the manifest of a job and write it to the job's directory.

    Returns:
        The run with `generator.micro_batch` as a number, and the manifest, without tickets.

    Raises:
        UserError: the files that are there were rendered with other settings.
    """
    earlier = earlier_manifest(run.directory, out)
    if earlier is None and run.config.source.renders and run.config.generator.micro_batch == "auto":
        run = replace(run, config=_with_micro_batch(run.config, address, say))
    draft = draft_manifest(run, requested, format, earlier, out)
    if earlier is not None and run.config.source.renders:
        size = earlier.decided_by["generator"]["micro_batch"]
        run = replace(run, config=replace(run.config, generator=replace(run.config.generator, micro_batch=size)))
    write_atomically(run.directory.path / MANIFEST, draft.to_json())
    return run, draft


def _with_micro_batch(config: Config, address: str | None, say: Callable[[str], None]) -> Config:
    from genray.commands.bench import micro_batch

    say("measuring for generator.micro_batch")
    with ray_cluster.joined(address) as autoscaling:
        ray_cluster.check_placement(config, autoscaling)
        return micro_batch.with_measured(config, say)


def missing_tickets(shards: Shards, first: int, last: int) -> tuple[int, ...]:
    """The tickets of a range that have no file."""
    return tuple(sorted({*range(first, last)} - {*shards.tickets()}))


def render_tickets(
    run: Run, course: MissingTickets, shards: Shards, address: str | None, say: Callable[[str], None]
) -> None:
    """Have a pool write every ticket of the course; raises RunFailed, UserError or RunStopped."""
    try:
        with Stopping(run.directory.stop, say, 0) as stopping, ray_cluster.joined(address) as autoscaling:
            say(ray_cluster.check_placement(run.config, autoscaling).line)
            stopping.while_training(lambda: _write(run, course, shards))
    except StopRequested as stop:
        left = sum(not shards.path(number).exists() for number in course.numbers)
        raise RunStopped(
            f"{shards.directory} was stopped with {left} files missing; the same command resumes it",
            interrupted=stop.number == signal.SIGINT,
        ) from None


def _write(run: Run, course: MissingTickets, shards: Shards) -> None:
    """Run the pool over the course; each ticket written becomes a line of the job's metrics.jsonl."""
    from ray.exceptions import RayError

    from genray.learner.trainer import run_error
    from genray.stream import pool

    metrics = run.directory.metrics
    images, began = shards.anchors * course.plan.rendered_views, time.time()
    metrics.unlink(missing_ok=True)
    progress = Progress(metrics, len(course), log=run.directory.faults, unit="file")
    try:
        progress.phase("starting generators")
        dataset = pool.blocks(run, course, TicketWriter, shards)
        dataset.context.execution_options.label_selector = GENERATOR_NODE if ray_cluster.by_labels(run.config) else None
        for number, _ in enumerate(dataset.iter_batches(batch_size=None, batch_format="numpy"), start=1):
            rate = number * images / max(time.time() - began, 1e-3)
            jsonl.append(metrics, {"step": number, "time": time.time(), "images_per_s": rate})
    except RayError as error:
        raise run_error(error) from error
    finally:
        progress.close()
