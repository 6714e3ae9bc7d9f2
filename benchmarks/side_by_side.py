"""The same training fed in several ways, side by side: `python benchmarks/side_by_side.py [--parts ways sizes]`.

    genray    generators render into the stream, the learner trains from it
    in turn   one process renders a ticket, then trains on it, and so on
    loader    a PyTorch DataLoader whose workers render the tickets
    files     the reference code's way: PNG files written first, then read back by a DataLoader with ImageFolder
    apart     generator and learner at the same time with nothing between them, the slower one counts

Each way has the same generator, the same learner and the same number of steps, in a process tree of its own; the ways
take turns, and what counts is the anchors a second once all of them work. The ratios are those of one round. The last
way trains nothing: it says what this machine allows any way that keeps one processor for each side. `sizes` compares
the first and the third way with ever larger tickets.
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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name

import numpy as np
import usage

from genray.config import Config
from genray.configure import build, load
from genray.plan import MIB, Plan

if TYPE_CHECKING:
    from genray.learner import Learner
    from genray.views import Block

Record = dict[str, Any]
WARM, READY = 4, 8
"""Tickets that do not count, and those that may lie ready in the stream: they are passed over before."""
PASSED = READY + 4
LOOK_S = 3.0
"""Seconds between two looks at what the other processes take."""
SIZED = 3200
"""Anchors for each measurement of `sizes`, at the least."""


def streamed(config: Config, tickets: int, workers: int) -> Record:
    """The stream and its learner."""
    from genray import cluster
    from genray.fit import run_learners
    from genray.rundir import RunDirectory

    RunDirectory.of(config).path.mkdir(parents=True, exist_ok=True)
    looks, over = list[tuple[float, dict[int, float]]](), threading.Event()
    coordinators = set[int]()

    def look() -> None:
        while not over.wait(LOOK_S):
            looks.append((time.time(), usage.cpu_s()))
            coordinators.update(pid for pid, title in usage.titles().items() if "SplitCoordinator" in title)

    with cluster.joined():
        looking = threading.Thread(target=look)
        looking.start()
        try:
            arguments = {"config": config, "tickets": tickets}
            found, ended = run_learners(config, trained_from_stream, arguments).return_value
        finally:
            over.set()
            looking.join()
    anchors = tickets * config.stream.ticket_batches * config.stream.batch_size
    during = [taken for taken in looks if ended - anchors / found <= taken[0] <= ended]
    (first, before), *_, (last, after) = during if len(during) > 1 else looks[-2:]
    machine_s = (last - first) * (os.cpu_count() or 1)
    scheduling = {pid: seconds for pid, seconds in after.items() if pid in coordinators}
    return {
        "anchors_per_s": found,
        "overhead": usage.between(before, after) / machine_s,
        "scheduling": usage.between(before, scheduling) / machine_s,
    }


def trained_from_stream(arguments: Record) -> tuple[float, float]:
    """Ray Train's loop: anchors a second, and when the last of them was used."""
    from genray.train import learner_here, pool_blocks

    config = arguments["config"]
    learner, blocks = learner_here(config, 0, 1), pool_blocks(config)
    for _ in range(PASSED):
        next(blocks)
        learner.step += learner.plan.ticket_steps
    return rate(learner, blocks, arguments["tickets"]), time.time()


def in_turn(config: Config, tickets: int, workers: int) -> Record:
    """One process, all processors for each of the two in turn."""
    from genray.course import Course
    from genray.views import Renderer

    learner, renderer = made(config, threads=os.cpu_count() or 1), Renderer(config, "cpu")
    blocks = map(renderer.block, Course(learner.plan).of_learner(0))
    return {"anchors_per_s": rate(learner, blocks, tickets)}


def apart(config: Config, tickets: int, workers: int) -> Record:
    """A generator and the learner at the same time, on one processor each, with nothing between them."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from genray.course import Course
    from genray.views import Renderer

    learner = made(config)
    course = Course(learner.plan)
    block = Renderer(config, "cpu").block(course.ticket(0))
    blocks = ({**block, "position": ticket.positions} for ticket in course.of_learner(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(write_nothing, [config] * workers))  # start-up does not count
        began = time.perf_counter()
        rendering = [pool.submit(rendered, config, tickets) for _ in range(workers)]

        def asked(step: int) -> Any:
            return "stop" if rendering[0].done() else "go on"

        for _ in learner.train(blocks, asked):
            pass
        learned = learner.step * learner.plan.batch_size / (time.perf_counter() - began)
        rates = {"generator": sum(one.result() for one in rendering), "learner": learned}
    return {**rates, "anchors_per_s": min(rates.values())}


def rendered(config: Config, tickets: int) -> float:
    """Anchors a second of one process that renders and does nothing else."""
    from genray.course import Course

    renderer = _renderers[config.name]
    course = Course(renderer.plan)
    began = time.perf_counter()
    anchors = sum(len(renderer.block(course.ticket(index))["views"]) for index in range(tickets))
    return anchors / (time.perf_counter() - began)


def loader(config: Config, tickets: int, workers: int) -> Record:
    """Tickets rendered by a DataLoader's workers, which take them in turn."""
    from torch.utils.data import DataLoader

    loaded = DataLoader(
        Tickets(config),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",
        collate_fn=shared,
    )
    blocks = ({name: np.asarray(column) for name, column in block.items()} for block in loaded)
    return {"anchors_per_s": rate(made(config), blocks, tickets)}


def shared(block: Block) -> dict[str, Any]:
    """A block as a DataLoader hands it on fastest: tensors, which go through shared memory."""
    import torch

    return {name: torch.from_numpy(column) if column.dtype.kind in "iuf" else column for name, column in block.items()}


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
        "written_per_s": len(wanted) * anchors / writing_s,
        "bytes_per_anchor": size / (len(wanted) * anchors),
    }


def stacked(samples: list[tuple[Any, int]]) -> Any:
    """Images `[n, 3, H, W]` of ImageFolder's samples, as a tensor."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.stack([image for image, _ in samples]).transpose(0, 3, 1, 2)))


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
    "apart": apart,
}


def made(config: Config, threads: int = 1) -> Learner:
    """The learner, on this machine's processors."""
    import torch

    torch.set_num_threads(threads)

    from genray.learner import Learner

    return Learner(config, 0, torch.device("cpu"))


def rate(learner: Learner, blocks: Iterator[Block], tickets: int) -> float:
    """Anchors a second of a learner that trains on so many tickets, after some that do not count."""
    start = learner.step + WARM * learner.plan.ticket_steps
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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--way", choices=WAYS, help="measure this one and print it")
    parser.add_argument("--tickets", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="generators, and workers of a DataLoader")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    if arguments.way:
        return one(arguments)
    report: Record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    report |= {"workers": arguments.workers}
    report |= {"machine": {"cpus": os.cpu_count(), "python": platform.python_version()}}
    report |= {"versions": {name: version(name) for name in ("genray", "ray", "torch", "torchvision")}}
    for part in arguments.parts:
        for found in PARTS[part](arguments):
            report[part] = found
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def ways(arguments: argparse.Namespace) -> Iterator[Record]:
    """All ways, with the preset as it is."""
    for rounds in taken_in_turns(arguments, list(WAYS), arguments.tickets):
        rates = {way: [found[way]["anchors_per_s"] for found in rounds] for way in WAYS}
        ratios = {way: ratio(rates["genray"], rates[way]) for way in ("in turn", "loader", "files")}
        for found in rounds:
            written = found["files"]
            more = 1 / found["genray"]["anchors_per_s"] - 1 / written["anchors_per_s"]  # seconds an anchor, each epoch
            written["ahead_after_epochs"] = 1 / written["written_per_s"] / more if more > 0 else None
            written["first_epoch"] = 1 / (1 / written["written_per_s"] + 1 / written["anchors_per_s"])
        first = [found["files"]["first_epoch"] for found in rounds]
        yield {
            "preset": arguments.preset,
            "tickets": arguments.tickets,
            "overhead": spread([found["genray"]["overhead"] for found in rounds]),
            "scheduling": spread([found["genray"]["scheduling"] for found in rounds]),
            "anchors_per_s": {way: spread(values) for way, values in rates.items()},
            "genray_over": {**ratios, "files, written first": ratio(rates["genray"], first)},
            "apart_over_in_turn": ratio(rates["apart"], rates["in turn"]),
            "genray_over_apart": ratio(rates["genray"], rates["apart"]),
            "rounds": rounds,
        }


def sizes(arguments: argparse.Namespace) -> Iterator[list[Record]]:
    """The stream and a DataLoader with tickets of ever more anchors, in batches of 16."""
    done: list[Record] = []
    for batches in (1, 4, 16):
        tickets, rounds = max(arguments.tickets, SIZED // (16 * batches)), []
        overrides = ["--stream.batch_size", "16", "--stream.ticket_batches", str(batches)]
        for rounds in taken_in_turns(arguments, ["genray", "loader"], tickets, overrides):  # noqa: B007
            pass
        rates = {way: [found[way]["anchors_per_s"] for found in rounds] for way in ("genray", "loader")}
        done.append(
            {
                "preset": arguments.preset,
                "anchors": 16 * batches,
                "genray_over_loader": ratio(rates["genray"], rates["loader"]),
                "blocks_per_s": {way: spread([rate / 16 / batches for rate in found]) for way, found in rates.items()},
                "rounds": rounds,
            }
        )
        yield done


PARTS = {part.__name__: part for part in (ways, sizes)}


def taken_in_turns(
    arguments: argparse.Namespace, names: list[str], tickets: int, overrides: Sequence[str] = ()
) -> Iterator[list[dict[str, Record]]]:
    """Rounds of these ways, one more each time, every second round in the other order."""
    rounds: list[dict[str, Record]] = []
    with tempfile.TemporaryDirectory() as directory:
        config = load(arguments.preset, overrides)
        values = config.to_dict() | {"name": "side", "storage_path": directory}
        # As many as are needed: each ticket that is never used would cost the stream a little.
        steps = (PASSED + WARM + tickets + PASSED) * Plan.of(config, 1).ticket_steps
        values["training"] |= {"steps": steps, "warmup_steps": 0, "checkpoint_every": steps}
        # On processors alone, one thread for each process but where one process does all.
        values["generators"] |= {"num": arguments.workers, "mode": "pool", "num_gpus": 0, "num_cpus": 0.5}
        values["generators"] |= {"look_ahead_mib": -(-READY * Plan.of(config).ticket_bytes // MIB)}
        values["learners"] |= {"num_workers": 1, "num_gpus": 0, "num_cpus": 0.5}
        values["tracking"] |= {"mlflow": False}
        file = Path(directory) / "side.json"
        file.write_text(json.dumps(values))
        for number in range(arguments.repeats):
            found = {}
            for way in names if number % 2 == 0 else reversed(names):
                command = [sys.executable, __file__, str(file), "--way", way, "--tickets", str(tickets)]
                command += ["--workers", str(arguments.workers)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[way] = json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]}
            shutil.rmtree(Path(directory) / "side", ignore_errors=True)
            rounds.append(found)
            print(json.dumps(found), flush=True)
            yield rounds


def ratio(ours: list[float], theirs: list[float]) -> Record:
    """Of what was found in the same round."""
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])


def spread(values: list[float]) -> Record:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()
