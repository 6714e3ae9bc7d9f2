"""The ways to feed a training that benchmarks/side_by_side.py compares."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import usage

from genray.config.run import Config
from genray.stream.plan import Plan
from genray.stream.run import Run

if TYPE_CHECKING:
    from genray.learner.learner import Learner
    from genray.views.types import Block

Record = dict[str, Any]
WARM_UP_TICKETS, READY_TICKETS = 4, 8
"""Tickets that are not measured, and tickets that may lie ready in the stream."""
SKIPPED_TICKETS = READY_TICKETS + 4
"""Tickets that are skipped first, so that none lies ready."""
SAMPLE_S = 3.0
"""Seconds between two samples of the CPU time of the other processes."""


def streamed(config: Config, tickets: int, workers: int) -> Record:
    """Generators and a learner connected by the stream."""
    from genray.cluster import ray_cluster
    from genray.learner.trainer import run_learners

    run = Run.of(config)
    run.directory.path.mkdir(parents=True, exist_ok=True)
    samples, ended = list[tuple[float, dict[int, float]]](), threading.Event()
    coordinators = set[int]()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            samples.append((time.time(), usage.cpu_s()))
            coordinators.update(pid for pid, title in usage.titles().items() if "SplitCoordinator" in title)

    with ray_cluster.joined():
        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            arguments = {"run": run, "tickets": tickets}
            anchors_per_s, end = run_learners(run, train_from_stream, arguments).return_value
        finally:
            ended.set()
            sampler.join()
    anchors = tickets * config.stream.ticket_batches * config.stream.batch_size
    during = [one for one in samples if end - anchors / anchors_per_s <= one[0] <= end]
    (first, before), *_, (last, after) = during if len(during) > 1 else samples[-2:]
    machine_s = (last - first) * (os.cpu_count() or 1)
    scheduling = {pid: seconds for pid, seconds in after.items() if pid in coordinators}
    return {
        "anchors_per_s": anchors_per_s,
        "overhead": usage.between(before, after) / machine_s,
        "scheduling": usage.between(before, scheduling) / machine_s,
    }


def train_from_stream(arguments: Record) -> tuple[float, float]:
    """Ray Train's `train_loop_per_worker`; returns anchors per second, and when the last of them was used."""
    from genray.learner.load import restored_learner
    from genray.learner.worker import pool_blocks

    run: Run = arguments["run"]
    learner, blocks = restored_learner(run, 0), pool_blocks(run)
    for _ in range(SKIPPED_TICKETS):
        next(blocks)
        learner.step += learner.plan.ticket_steps
    return rate(learner, blocks, arguments["tickets"]), time.time()


def in_turn(config: Config, tickets: int, workers: int) -> Record:
    """One process that renders and trains in turn, each on all CPU cores."""
    from genray.stream.renderer import Renderer
    from genray.stream.tickets import Course

    learner, renderer = new_learner(config, threads=os.cpu_count() or 1), Renderer(config, "cpu")
    blocks = map(renderer.block, Course(learner.plan).of_learner(0))
    return {"anchors_per_s": rate(learner, blocks, tickets)}


def apart(config: Config, tickets: int, workers: int) -> Record:
    """Generators and the learner at the same time, on one CPU core each, without a connection."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from genray.stream.renderer import Renderer
    from genray.stream.tickets import Course

    learner = new_learner(config)
    course = Course(learner.plan)
    block = Renderer(config, "cpu").block(course.ticket(0))
    blocks = ({**block, "position": ticket.positions} for ticket in course.of_learner(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(load_renderer, [config] * workers))  # start-up does not count
        began = time.perf_counter()
        rendering = [pool.submit(render_rate, config, tickets) for _ in range(workers)]

        def poll(step: int) -> Any:
            return "stop" if rendering[0].done() else "continue"

        for _ in learner.train(blocks, poll):
            pass
        learned = learner.step * learner.plan.batch_size / (time.perf_counter() - began)
        rates = {"generator": sum(one.result() for one in rendering), "learner": learned}
    return {**rates, "anchors_per_s": min(rates.values())}


def render_rate(config: Config, tickets: int) -> float:
    """Anchors per second of one process that only renders."""
    from genray.stream.tickets import Course

    renderer, course = _renderers[config.name], Course(Plan.of(config))
    began = time.perf_counter()
    anchors = sum(len(renderer.block(course.ticket(index))["views"]) for index in range(tickets))
    return anchors / (time.perf_counter() - began)


def loader(config: Config, tickets: int, workers: int) -> Record:
    """Tickets rendered by the workers of a DataLoader, in turn."""
    from torch.utils.data import DataLoader

    loaded = DataLoader(
        Tickets(config),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",
        collate_fn=as_tensors,
    )
    blocks = ({name: np.asarray(column) for name, column in block.items()} for block in loaded)
    return {"anchors_per_s": rate(new_learner(config), blocks, tickets)}


def as_tensors(block: Block) -> dict[str, Any]:
    """A block in the form that a DataLoader passes on fastest: tensors, which go through shared memory."""
    import torch

    return {name: torch.from_numpy(column) if column.dtype.kind in "iuf" else column for name, column in block.items()}


class Tickets:
    """A map-style data set of rendered tickets."""

    def __init__(self, config: Config):
        from genray.stream.tickets import Course

        self.config, self.course, self.renderer = config, Course(Plan.of(config)), None

    def __len__(self) -> int:
        return len(self.course)

    def __getitem__(self, index: int) -> Block:
        if self.renderer is None:
            import torch

            from genray.stream.renderer import Renderer

            torch.set_num_threads(1)
            self.renderer = Renderer(self.config, "cpu")
        return self.renderer.block(self.course.ticket(index))


def files(config: Config, tickets: int, workers: int) -> Record:
    """PNG files of all tickets, written by one process for each CPU core and then read in order."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    from genray.stream.tickets import Course

    learner = new_learner(config)
    numbers = list(range(tickets + WARM_UP_TICKETS))
    with tempfile.TemporaryDirectory() as directory:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            list(pool.map(load_renderer, [config] * (os.cpu_count() or 1)))  # start-up does not count
            began = time.perf_counter()
            list(pool.map(write_files, [config] * len(numbers), numbers, [directory] * len(numbers)))
            writing_s = time.perf_counter() - began
        written = [path for path in Path(directory).rglob("*.png")]
        size = sum(path.stat().st_size for path in written)
        folder = ImageFolder(directory, transform=np.asarray)
        views = learner.plan.rendered_views
        anchors = learner.plan.ticket_steps * learner.plan.local_batch

        def read() -> Iterator[Block]:
            loaded = DataLoader(
                folder,
                batch_size=anchors * views,
                num_workers=workers,
                multiprocessing_context="spawn",
                collate_fn=stack,
            )
            for images, ticket in zip(loaded, Course(learner.plan).of_learner(0), strict=False):
                yield {
                    "views": images.numpy().reshape(anchors, views, *images.shape[1:]),
                    "latent": np.zeros((anchors, views, 1), np.float32),
                    "label": np.zeros(anchors, np.int64),
                    "anchor": ticket.positions,
                    "epoch": np.zeros(anchors, np.int64),
                    "position": ticket.positions,
                    "ticket": np.full(anchors, ticket.number),
                    "created_at": np.full(anchors, time.time()),
                    "render_s": np.zeros(anchors),
                    "generator": np.full(anchors, "files"),
                }

        read_rate = rate(learner, read(), tickets)
    return {
        "anchors_per_s": read_rate,
        "written_per_s": len(numbers) * anchors / writing_s,
        "bytes_per_anchor": size / (len(numbers) * anchors),
    }


def stack(samples: list[tuple[Any, int]]) -> Any:
    """The images of ImageFolder's samples as a tensor `[n, 3, H, W]`."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.stack([image for image, _ in samples]).transpose(0, 3, 1, 2)))


_renderers: dict[str, Any] = {}


def load_renderer(config: Config) -> None:
    """Load the generator in this process, once."""
    import torch

    from genray.stream.renderer import Renderer

    torch.set_num_threads(1)
    _renderers.setdefault(config.name, Renderer(config, "cpu"))


def write_files(config: Config, number: int, directory: str) -> None:
    """Write a ticket as PNG files, whose names sort in the order of the stream."""
    from PIL import Image

    from genray.stream.tickets import Course

    load_renderer(config)
    block = _renderers[config.name].block(Course(Plan.of(config)).ticket(number))
    folder = Path(directory) / f"{number:06}"
    folder.mkdir()
    for anchor, views in enumerate(block["views"]):
        for view, image in enumerate(views):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{anchor:06}-{view}.png")


WAYS: dict[str, Callable[[Config, int, int], Record]] = {
    "genray": streamed,
    "in turn": in_turn,
    "loader": loader,
    "files": files,
    "apart": apart,
}


def new_learner(config: Config, threads: int = 1) -> Learner:
    """The learner of a run, on the CPU with this many threads."""
    import torch

    torch.set_num_threads(threads)

    from genray.learner.learner import Learner

    return Learner(Run.of(config), 0, torch.device("cpu"))


def rate(learner: Learner, blocks: Iterator[Block], tickets: int) -> float:
    """Anchors per second of a learner that trains on this many tickets, after a warm-up."""
    start = learner.step + WARM_UP_TICKETS * learner.plan.ticket_steps
    end = start + tickets * learner.plan.ticket_steps
    at_start = time.perf_counter()

    def poll(step: int) -> Any:
        nonlocal at_start
        if step == start:
            at_start = time.perf_counter()
        return "stop" if step == end else "continue"

    for _ in learner.train(blocks, poll):
        pass
    return (end - start) * learner.plan.batch_size / (time.perf_counter() - at_start)
