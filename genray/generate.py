"""`genray generate`: a range of a run's tickets rendered once, into files that later runs are trained on.

The actors of the pool write what they render themselves, a file for each ticket, whole or not at all. So a job that was
cut off goes on with the files that are missing. The manifest is written when none is.
"""

from __future__ import annotations

import platform
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genray import cluster, faults, generators, processes, records, sources
from genray.config import Config, Learners, Training, check
from genray.configure import settled
from genray.console import Progress
from genray.course import Course, Ticket
from genray.placement import GENERATOR_NODE
from genray.plan import MIB, Plan
from genray.rundir import RunDirectory, write_atomically
from genray.settings import UserError
from genray.sources.shards import Format, Shards
from genray.sources.stored import MANIFEST, Manifest, changes, decided_by, read_manifest
from genray.stopping import Asked, Stopping
from genray.stream import PoolGenerator
from genray.tune import INLINE_BATCHES

if TYPE_CHECKING:
    from genray.sources import Block

JOB = ".job"
"""Directory below the files for what belongs to the job that writes them."""
PACKAGES = ("genray", "torch", "numpy", "pillow", "pyarrow", "ray")


@dataclass(frozen=True)
class Missing(Course):
    """Some tickets of a course, by their numbers."""

    numbers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def ticket(self, index: int) -> Ticket:
        return super().ticket(self.numbers[index])


class Writer(PoolGenerator):
    """An actor of the pool that writes each block to its file, and hands on what it has written."""

    def __init__(self, config: Config, course: Course, execution: str, shards: Shards):
        super().__init__(config, course, execution)
        self.shards = shards

    def __call__(self, batch: dict[str, np.ndarray]) -> Block:
        block = super().__call__(batch)
        number = int(block["ticket"][0])
        return {"ticket": np.array([number]), "bytes": np.array([self.shards.write(number, block)])}


def generate(
    config: Config,
    out: Path,
    tickets: tuple[int, int] | None = None,
    anchors: int | None = None,
    format: Format = "parquet",
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Manifest:
    """Render anchors into files; what has been begun there is gone on with, what is there stays.

    Args:
        config: the run that the anchors are for.
        out: directory of the files; on a cluster, one that all nodes see.
        tickets: the first, and the one after the last; a ticket is `stream.ticket_batches` batches.
        anchors: so many from the first on, in whole tickets. As many as the run shows where neither is given.
        format: of the files.
        address: see `genray.fit.fit`.
        say: takes lines for the user.

    Returns:
        The manifest, also written to `manifest.json`.

    Raises:
        UserError: the request cannot be carried out as it stands.
        RunFailed: a ticket could not be rendered or written.
        Stopped: SIGTERM or Ctrl-C came.
    """
    asked = settled(config)
    config = for_job(asked, out)
    first, last = wanted(config, asked, tickets, anchors)
    config = replace(config, training=Training(steps=last * _batches(config)))
    run, plan = RunDirectory.of(config), Plan.of(config)
    with claimed(run, out):
        sources.fetch(config)
        config, draft = begun(config, asked, plan, out, format, address, say)
        shards = draft.shards(out.absolute())  # its writers run elsewhere
        shards.tidy()
        course = Missing(plan, numbers=missing(shards, first, last))
        say(f"{len(course)} of {last - first} files are missing in {out}, each of {shards.anchors} anchors")
        if len(course):
            draft = replace(draft, versions=with_ours(draft.versions))
            write_atomically(run.path / MANIFEST, draft.to_json())
            _render(config, course, shards, run, address, say)
        manifest = finished(draft, shards, run)
        write_atomically(out / MANIFEST, manifest.to_json())
    shutil.rmtree(run.path)
    return manifest


def for_job(config: Config, out: Path) -> Config:
    """The same anchors, rendered by a pool for nobody: no learners, no reuse, and a directory of the job's own."""
    if config.source.kind == "stored":
        raise UserError("source.kind must be one that can be stored, got 'stored', which is")
    batches = INLINE_BATCHES if config.stream.ticket_batches == "auto" else config.stream.ticket_batches
    config = replace(
        config,
        name=JOB,
        storage_path=str(out.absolute()),
        stream=replace(config.stream, reuse=1, ticket_batches=batches),
        learners=Learners(num_workers=1, num_cpus=0, num_gpus=0),
    )
    spec = sources.describe(config)
    ticket = batches * config.stream.batch_size * spec.views * 3 * spec.image_size**2
    look_ahead = max(config.generators.look_ahead_mib, -(-2 * ticket // MIB))  # blocks do not travel, but Ray is told
    config = replace(config, generators=replace(config.generators, mode="pool", look_ahead_mib=look_ahead))
    check(config)
    return config


def wanted(config: Config, asked: Config, tickets: tuple[int, int] | None, anchors: int | None) -> tuple[int, int]:
    """The tickets that are asked for: the first, and the one after the last.

    Raises:
        UserError: there are none, or both ways to ask are used.
    """
    size = _batches(config) * config.stream.batch_size
    if tickets and anchors is not None:
        raise UserError("--tickets or --anchors must be given, not both")
    if tickets:
        if not 0 <= tickets[0] < tickets[1]:
            raise UserError(f"--tickets must be FIRST:LAST with 0 <= FIRST < LAST, got {tickets[0]}:{tickets[1]}")
        return tickets
    if anchors is None:
        plan = Plan.of(asked)
        anchors = plan.fresh_steps(plan.steps) * plan.batch_size
    if anchors < 1:
        raise UserError(f"--anchors must be at least 1, got {anchors}")
    return 0, -(-anchors // size)


def _batches(config: Config) -> int:
    batches = config.stream.ticket_batches
    assert isinstance(batches, int)  # `for_job` has settled it
    return batches


@contextmanager
def claimed(run: RunDirectory, out: Path) -> Iterator[None]:
    """Hold the directory for this process; a request that was refused leaves nothing in it."""
    with ExitStack() as stack:
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run.locked())
        except OSError as error:
            raise UserError(f"--out must be a directory that can be written, got '{out}' ({error.strerror})") from None
        except UserError:
            raise UserError(f"--out must not be that of a job in progress, got '{out}'") from None
        processes.end_left_over(run.processes)
        shutil.rmtree(run.attempts, ignore_errors=True)
        try:
            yield
        finally:
            processes.end_left_over(run.processes)
            if not (run.path / MANIFEST).exists():
                shutil.rmtree(run.path)


def begun(
    config: Config,
    asked: Config,
    plan: Plan,
    out: Path,
    format: Format,
    address: str | None,
    say: Callable[[str], None],
) -> tuple[Config, Manifest]:
    """What the files of the directory hold, or will: that of the job that began them, or a new one.

    Returns:
        The configuration with the number of images that are rendered at once, and a manifest without tickets.

    Raises:
        UserError: the files that are there were asked for with other settings.
    """
    note = RunDirectory.of(config).path / MANIFEST
    # A note is of a job that was cut off, which may have added to what others had finished.
    theirs = next((read_manifest(path) for path in (note, out / MANIFEST) if path.exists()), None)
    if theirs is None and config.source.renders and config.generator.micro_batch == "auto":
        config = _with_micro_batch(config, address, say)
    spec = sources.describe(config)
    draft = Manifest(
        name=spec.name,
        image_size=spec.image_size,
        latent_dim=spec.latent_dim,
        num_classes=spec.num_classes,
        views=spec.views,
        format=format,
        ticket_anchors=plan.ticket_steps * plan.local_batch,
        decided_by=decided_by(config),
        generator_sha256=generators.fingerprint(config.generator) if config.source.renders else None,
        config=asked.to_dict(),
    )
    if theirs is not None:
        changed = changes(theirs, config)
        told = {"format": "--format", "ticket_anchors": "anchors in a ticket", "generator_sha256": "generator weights"}
        for name, what in told.items():
            if (was := getattr(theirs, name)) != (now := getattr(draft, name)):
                changed.append(f"{what} was {was!r}, is {now!r}")
        if changed:
            raise UserError(
                f"--out must be new for other settings, got '{out}', begun with {'; '.join(changed)}. Choose another, "
                "or leave these as they were to go on"
            )
        if config.source.renders:
            size = theirs.decided_by["generator"]["micro_batch"]
            config = replace(config, generator=replace(config.generator, micro_batch=size))
        draft = replace(draft, decided_by=theirs.decided_by, faults=theirs.faults, versions=theirs.versions)
    write_atomically(note, draft.to_json())
    return config, draft


def _with_micro_batch(config: Config, address: str | None, say: Callable[[str], None]) -> Config:
    from genray import microbatch

    say("measuring for generator.micro_batch")
    with cluster.joined(address) as may_grow:
        cluster.check_placement(config, may_grow)
        size = microbatch.where_it_renders(config)
    say(f"generator.micro_batch = {size}")
    return replace(config, generator=replace(config.generator, micro_batch=size))


def missing(shards: Shards, first: int, last: int) -> tuple[int, ...]:
    """Tickets of a range that have no file."""
    return tuple(sorted({*range(first, last)} - {*shards.there()}))


def _render(
    config: Config, course: Missing, shards: Shards, run: RunDirectory, address: str | None, say: Callable[[str], None]
) -> None:
    """Have a pool write every ticket of the course; raises RunFailed, UserError or Stopped."""
    from genray.fit import Stopped

    try:
        with Stopping(run.stop, say, 0) as stopping, cluster.joined(address) as may_grow:
            say(cluster.check_placement(config, may_grow))
            stopping.while_training(lambda: _written(config, course, shards, run))
    except Asked as asked:
        left = sum(not shards.path(number).exists() for number in course.numbers)
        raise Stopped(
            f"{shards.directory} was stopped with {left} files missing; give the same command again to go on",
            interrupted=asked.number == signal.SIGINT,
        ) from None


def _written(config: Config, course: Missing, shards: Shards, run: RunDirectory) -> None:
    """Every ticket of the course, with a line of the job's metrics.jsonl for each."""
    from ray.exceptions import RayError

    from genray import stream
    from genray.fit import failure

    images, began = shards.anchors * course.plan.rendered_views, time.time()
    run.metrics.unlink(missing_ok=True)
    progress = Progress(run.metrics, len(course), log=run.faults, unit="file")
    try:
        progress.phase("starting generators")
        dataset = stream.blocks(config, course, Writer, shards)
        dataset.context.execution_options.label_selector = GENERATOR_NODE if cluster.by_labels(config) else None
        for number, _ in enumerate(dataset.iter_batches(batch_size=None, batch_format="numpy"), start=1):
            rate = number * images / max(time.time() - began, 1e-3)
            records.append(run.metrics, {"step": number, "time": time.time(), "images_per_s": rate})
    except RayError as error:
        raise failure(error) from error
    finally:
        progress.close()


def finished(draft: Manifest, shards: Shards, run: RunDirectory) -> Manifest:
    """The manifest of all files that are there."""
    there = shards.there()
    return replace(
        draft,
        tickets=tuple(ranges(there)),
        anchors=len(there) * shards.anchors,
        faults=dict(Counter(draft.faults or {}) + Counter(faults.counts(run.faults))),
    )


def with_ours(versions: dict[str, str] | None) -> dict[str, str]:
    """These versions of the programs that have rendered, each with that of this job where it is another.

    >>> with_ours({"torch": "2.0.0"})["torch"].startswith("2.0.0, ")
    True
    """
    ours = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    known = {name: (versions or {}).get(name, now).split(", ") for name, now in ours.items()}
    return {name: ", ".join(dict.fromkeys([*was, ours[name]])) for name, was in known.items()}


def ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges [first, the one after the last].

    >>> ranges([0, 1, 2, 5])
    [(0, 3), (5, 6)]
    """
    gaps = [number for number, (a, b) in enumerate(pairwise(numbers), start=1) if b > a + 1]
    bounds = [0, *gaps, len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(bounds) if a < b]
