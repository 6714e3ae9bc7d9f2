"""The same training fed in four ways, side by side: `python benchmarks/side_by_side.py [PRESET] [--repeats 5]`.

    genray    generators render into the stream, the learner trains from it
    in turn   one process renders a ticket, then trains on it, and so on
    loader    a PyTorch DataLoader whose workers render the tickets
    files     the reference code's way: PNG files written first, then read back by a DataLoader with ImageFolder

Each way has the same generator, the same learner and the same number of steps, in a process tree of its own; the ways
take turns, and what counts is the anchors a second once all of them work. The ratios are those of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name

from genray.config import Config
from genray.configure import build, load
from genray.plan import MIB, Plan

if TYPE_CHECKING:
    from genray.learner import Learner
    from genray.views import Block

Record = dict[str, Any]
WARM = 8
"""Tickets that do not count."""


def streamed(config: Config, tickets: int, workers: int) -> Record:
    """The stream and its learner."""
    from genray import cluster
    from genray.fit import run_learners
    from genray.rundir import RunDirectory

    RunDirectory.of(config).path.mkdir(parents=True, exist_ok=True)
    with cluster.joined():
        arguments = {"config": config, "tickets": tickets}
        return {"anchors_per_s": run_learners(config, trained_from_stream, arguments).return_value}


def trained_from_stream(arguments: Record) -> float:
    """Ray Train's loop: anchors a second."""
    from genray.train import learner_here, pool_blocks

    config = arguments["config"]
    return rate(learner_here(config, 0, 1), pool_blocks(config), arguments["tickets"])


def in_turn(config: Config, tickets: int, workers: int) -> Record:
    """One process, all processors for each of the two in turn."""
    from genray.course import Course
    from genray.views import Renderer

    learner, renderer = made(config, threads=os.cpu_count() or 1), Renderer(config, "cpu")
    blocks = map(renderer.block, Course(learner.plan).of_learner(0))
    return {"anchors_per_s": rate(learner, blocks, tickets)}


def loader(config: Config, tickets: int, workers: int) -> Record:
    """Tickets rendered by a DataLoader's workers, which take them in turn."""
    from torch.utils.data import DataLoader

    loaded = DataLoader(
        Tickets(config),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",
        collate_fn=unchanged,
    )
    return {"anchors_per_s": rate(made(config), iter(loaded), tickets)}


def unchanged(block: Block) -> Block:
    """What a DataLoader is to do with a block."""
    return block


class Tickets:
    """A map-style data set of rendered tickets."""

    def __init__(self, config: Config):
        from genray.course import Course

        self.config, self.course, self.renderer = config, Course(Plan.of(config)), None

    def __len__(self) -> int:
        return len(self.course)

    def __getitem__(self, index: int) -> Block:
        if self.renderer is None:
            import torch

            from genray.views import Renderer

            torch.set_num_threads(1)
            self.renderer = Renderer(self.config, "cpu")
        return self.renderer.block(self.course.ticket(index))


def files(config: Config, tickets: int, workers: int) -> Record:
    """PNG files, as many as the tickets show, written by one process for each processor and read back in order."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import numpy as np
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    from genray.course import Course

    learner = made(config)
    wanted = list(range(tickets + WARM))
    with tempfile.TemporaryDirectory() as directory:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            list(pool.map(write_nothing, [config] * (os.cpu_count() or 1)))  # start-up does not count
            began = time.perf_counter()
            list(pool.map(write_files, [config] * len(wanted), wanted, [directory] * len(wanted)))
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
                collate_fn=stacked,
            )
            for images, ticket in zip(loaded, Course(learner.plan).of_learner(0), strict=False):
                yield {
                    "views": images.reshape(anchors, views, *images.shape[1:]),
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
        "written_per_s": len(wanted) * anchors / writing_s,
        "bytes_per_anchor": size / (len(wanted) * anchors),
    }


def stacked(samples: list[tuple[Any, int]]) -> Any:
    """Images `[n, 3, H, W]` of ImageFolder's samples."""
    import numpy as np

    return np.ascontiguousarray(np.stack([image for image, _ in samples]).transpose(0, 3, 1, 2))


_renderers: dict[str, Any] = {}


def write_nothing(config: Config) -> None:
    """Load what writing needs."""
    import torch

    from genray.views import Renderer

    torch.set_num_threads(1)
    _renderers.setdefault(config.name, Renderer(config, "cpu"))


def write_files(config: Config, number: int, directory: str) -> None:
    """One ticket as PNG files that sort in the order of the stream."""
    from PIL import Image

    from genray.course import Course

    write_nothing(config)
    renderer = _renderers[config.name]
    block = renderer.block(Course(renderer.plan).ticket(number))
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
}


def made(config: Config, threads: int = 1) -> Learner:
    """The learner, on this machine's processors."""
    import torch

    torch.set_num_threads(threads)

    from genray.learner import Learner

    return Learner(config, 0, torch.device("cpu"))


def rate(learner: Learner, blocks: Iterator[Block], tickets: int) -> float:
    """Anchors a second of a learner that trains on so many tickets, after some that do not count."""
    start = WARM * learner.plan.ticket_steps
    end = start + tickets * learner.plan.ticket_steps
    at_start = time.perf_counter()

    def asked(step: int) -> Any:
        nonlocal at_start
        if step == start:
            at_start = time.perf_counter()
        return "stop" if step == end else "go on"

    for _ in learner.train(blocks, asked):
        pass
    return (end - start) * learner.plan.batch_size / (time.perf_counter() - at_start)


def one(arguments: argparse.Namespace) -> None:
    """Measure one way, and print what was found as the last line."""
    config = build(json.loads(Path(arguments.preset).read_text()))
    print(json.dumps(WAYS[arguments.way](config, arguments.tickets, arguments.workers)))


def main() -> None:
    """Take turns, and write the report after each round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", nargs="?", default="demo")
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--tickets", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="generators, and workers of a DataLoader")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments, overrides = parser.parse_known_args()
    if arguments.way:
        return one(arguments)
    rounds: list[dict[str, Record]] = []
    with tempfile.TemporaryDirectory() as directory:
        config = load(arguments.preset, overrides)
        values = config.to_dict() | {"name": "side", "storage_path": directory}
        values["training"] |= {"steps": 10**6, "warmup_steps": 0, "checkpoint_every": 10**6}
        # On processors alone, one thread for each process but where one process does all; little lies ready.
        values["generators"] |= {"num": arguments.workers, "mode": "pool", "num_gpus": 0, "num_cpus": 0.5}
        values["generators"] |= {"look_ahead_mib": max(1, -(-WARM * Plan.of(config).ticket_bytes // (2 * MIB)))}
        values["learners"] |= {"num_workers": 1, "num_gpus": 0, "num_cpus": 0.5}
        values["tracking"] |= {"mlflow": False}
        file = Path(directory) / "side.json"
        file.write_text(json.dumps(values))
        for number in range(arguments.repeats):
            order = list(WAYS) if number % 2 == 0 else list(WAYS)[::-1]
            rounds.append({way: measured(way, file, arguments) | {"load": os.getloadavg()[0]} for way in order})
            shutil.rmtree(Path(directory) / "side", ignore_errors=True)
            print(json.dumps(rounds[-1]), flush=True)
            arguments.out.write_text(json.dumps(report(config, arguments, rounds), indent=1) + "\n")


def measured(way: str, file: Path, arguments: argparse.Namespace) -> Record:
    """What a process of its own finds."""
    command = [sys.executable, __file__, str(file), "--way", way, "--tickets", str(arguments.tickets)]
    done = subprocess.run(
        [*command, "--workers", str(arguments.workers)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(config: Config, arguments: argparse.Namespace, rounds: list[dict[str, Record]]) -> Record:
    """Medians and spread of the rates, and of genray's ratio to each other way within a round."""

    def spread(values: list[float]) -> Record:
        return {"median": statistics.median(values), "least": min(values), "most": max(values)}

    rates = {way: [found[way]["anchors_per_s"] for found in rounds] for way in WAYS}
    ratios = {
        way: spread([ours / theirs for ours, theirs in zip(rates["genray"], rates[way], strict=True)])
        for way in WAYS
        if way != "genray"
    }
    first_epoch = [
        found["genray"]["anchors_per_s"] * (1 / found["files"]["written_per_s"] + 1 / found["files"]["anchors_per_s"])
        for found in rounds
    ]
    return {
        "preset": config.name,
        "workers": arguments.workers,
        "tickets": arguments.tickets,
        "anchors_per_s": {way: spread(values) for way, values in rates.items()},
        "genray_over": {**ratios, "files, first epoch": spread(first_epoch)},
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("genray", "ray", "torch", "torchvision")},
        "rounds": rounds,
    }


if __name__ == "__main__":
    main()
