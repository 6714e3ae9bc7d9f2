"""Scaling out with simulated stages: `python benchmarks/scaling.py [--parts overlap balance long ceiling many pool]`.

A simulated generator sleeps for a fixed time and hands out a block, a simulated learner sleeps for each block it gets;
everything between them is a run's own stream. So two processors are no limit, and what is missing to the ideal rate is
what the stream costs. The rate counts what arrives within a window, after the look-ahead has been through.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name

import numpy as np
import ray

from genray import cluster, processes, stream
from genray.config import Config
from genray.configure import build
from genray.course import Course
from genray.plan import Plan
from genray.shares import options
from genray.views import Block

Record = dict[str, Any]
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
STAGES = ("MapWorker", "Consumer")
"""Titles of the processes that stand for generators and learners."""


class Simulated:
    """Sleeps in place of rendering, and gives out the same pixels each time."""

    def __init__(self, config: Config, course: Course, execution: str):
        self.course, self.render_s = course, config.generator.options["render_s"]  # type: ignore[union-attr]
        self.size, self.name = config.generator.image_size, f"{os.getpid()}"  # type: ignore[union-attr]

    def __call__(self, batch: dict[str, np.ndarray]) -> Block:
        time.sleep(self.render_s)
        positions = self.course.ticket(int(batch["id"][0])).positions
        n = len(positions)
        return {
            "views": np.zeros((n, 2, 3, self.size, self.size), np.uint8),
            "position": positions,
            "created_at": np.full(n, time.time()),
            "generator": np.full(n, self.name),
        }


class Consumer:
    """Sleeps in place of training; counts what arrives."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self.over = threading.Event()

    def run(self, shard: Any, step_s: float) -> None:
        """Use block after block until it is told to end."""
        for _ in stream.from_stream(shard):
            self.arrivals.append(time.time())
            time.sleep(step_s)
            if self.over.is_set():
                return

    def seen(self) -> int:
        return len(self.arrivals)

    def end(self) -> list[float]:
        """When each block arrived; ends the run."""
        self.over.set()
        return self.arrivals


def config_of(generators: int, learners: int, render_s: float, size: int, anchors: int, tickets: int) -> Config:
    """A run whose tickets have so many anchors of two square views, `size` pixels a side."""
    ticket = anchors * 2 * 3 * size**2
    return build(
        {
            "name": "simulated",
            "generator": {
                "kind": "custom",
                "target": "scaling:Simulated",
                "image_size": size,
                "latent_dim": 8,
                "options": {"render_s": render_s},
            },
            "stream": {"batch_size": anchors, "ticket_batches": 1},
            "training": {"steps": tickets},
            "generators": {
                "num": generators,
                "num_gpus": 0,
                "num_cpus": 0.001,
                "look_ahead_mib": max(1, -(-8 * (generators + learners) * ticket // 2**20)),
            },
            "learners": {"num_workers": learners, "num_gpus": 0},
        }
    )


def measured(config: Config, step_s: float, rounds: int) -> Record:
    """Blocks a second of a stream once its look-ahead has been through, and what all other processes cost for each.

    Generators that began together also end together, so what counts is the time of whole rounds of them.
    """
    plan = Plan.of(config)
    course, generators = Course(plan), config.generators.bounds[0]
    dataset = stream.blocks(config, course, Simulated)
    dataset.context.execution_options = options(course)
    shards = dataset.streaming_split(plan.num_workers, equal=True)
    consumers = [ray.remote(Consumer).options(max_concurrency=3, num_cpus=0).remote() for _ in shards]
    began = time.monotonic()
    runs = [consumer.run.remote(shard, step_s) for consumer, shard in zip(consumers, shards, strict=True)]

    def wait_for(blocks: int) -> None:
        while sum(ray.get([consumer.seen.remote() for consumer in consumers])) < blocks:
            ray.get(ray.wait(runs, timeout=0.2)[0])  # raises what a consumer raised

    turn = math.lcm(generators, plan.num_workers)
    warm = -(-(plan.look_ahead + 3 * generators) // turn) * turn
    wait_for(warm)
    warm_s, before = time.monotonic() - began, usage()
    wait_for(warm + rounds * turn)
    after = usage()
    arrivals = sorted(at for found in ray.get([consumer.end.remote() for consumer in consumers]) for at in found)
    for consumer in consumers:
        ray.kill(consumer)
    elapsed = arrivals[warm + rounds * turn - 1] - arrivals[warm - 1]
    cpu_s = sum(after[pid][1] - before.get(pid, ("", 0.0, 0))[1] for pid in after if not staged(after[pid][0]))
    pool = sum(generator(found) for found in after.values())
    assert pool == generators, f"{pool} of {generators} generators run"
    del dataset, shards
    wait_until_gone()
    return {
        "blocks_per_s": rounds * turn / elapsed,
        "blocks": rounds * turn,
        "cpu_s_per_block": cpu_s / (rounds * turn),
        "rss_mib": sum(found[2] for found in after.values() if not staged(found[0])) / 2**20,
        "warm_s": warm_s,
    }


def wait_until_gone(patience_s: float = 60.0) -> None:
    """Wait until the processes of the last stream have ended, so that the next one has the machine to itself."""
    deadline = time.monotonic() + patience_s
    while any(staged(found[0]) or "SplitCoordinator" in found[0] for found in usage().values()):
        assert time.monotonic() < deadline, "the last stream has not ended"
        time.sleep(0.5)


def staged(title: str) -> bool:
    """Whether a process stands for a generator or a learner."""
    return any(name in title for name in STAGES)


def usage() -> dict[int, tuple[str, float, int]]:
    """Title, seconds of CPU and bytes in memory of this process and all below it."""
    found = {}
    for pid in (os.getpid(), *processes.below(os.getpid())):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            title = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        found[pid] = (title, (int(fields[11]) + int(fields[12])) / TICKS, int(fields[21]) * PAGE)
    return found


def ideal(generators: int, learners: int, render_s: float, step_s: float) -> float:
    """Blocks a second of the slower side."""
    return min(generators / render_s if render_s else np.inf, learners / step_s if step_s else np.inf)


def overlap(arguments: argparse.Namespace) -> Iterator[Record]:
    """Efficiency against the slower side's ideal, with one side 1.5 times slower than the other."""
    for repeat in range(arguments.repeats):
        for learners in (1, 2):
            for generators in (1, 2, 4, 8, 16):
                for slower in ("generators", "learners"):
                    rate = min(arguments.rate, generators)  # blocks a second of the slower side
                    render_s = generators / rate / (1 if slower == "generators" else 1.5)
                    step_s = learners / rate / (1 if slower == "learners" else 1.5)
                    yield of(generators, learners, render_s, step_s, arguments) | {"slower": slower, "repeat": repeat}


def many(arguments: argparse.Namespace) -> Iterator[Record]:
    """Large pools, once each; rendering takes longer with more generators, so that the stream is no limit."""
    for generators in (32, 64, 128):
        rate = arguments.rate
        yield of(generators, 4, generators / rate, 4 / rate / 1.5, arguments) | {"slower": "generators"}


def balance(arguments: argparse.Namespace) -> Iterator[Record]:
    """Both sides equally fast: against one process that renders and trains in turn."""
    for repeat in range(arguments.repeats):
        found = of(1, 1, 1.0, 1.0, arguments)
        began, count = time.monotonic(), 0
        for _ in range(10):
            time.sleep(1.0)  # renders
            time.sleep(1.0)  # trains
            count += 1
        in_turn = count / (time.monotonic() - began)
        yield found | {"in_turn": in_turn, "ratio": found["blocks_per_s"] / in_turn, "repeat": repeat}


def ceiling(arguments: argparse.Namespace) -> Iterator[Record]:
    """Blocks a second at which the stream itself is the limit, by their size."""
    for repeat in range(arguments.repeats):
        for size, anchors in ((32, 16), (32, 128), (128, 64), (128, 256)):
            config = config_of(4, 1, 0.0, size, anchors, 20_000)
            found = measured(config, 0.0, 25 * arguments.rounds)
            mib = Plan.of(config).ticket_bytes / 2**20
            yield found | {"mib": round(mib, 2), "repeat": repeat}


def long(arguments: argparse.Namespace) -> Iterator[Record]:
    """Many small blocks: time and memory for each, from the first to the last."""
    config = config_of(2, 1, 0.0, 8, 16, arguments.blocks)
    course = Course(Plan.of(config))
    dataset = stream.blocks(config, course, Simulated)
    dataset.context.execution_options = options(course)
    began, before, count = time.monotonic(), usage(), 0
    for count, _ in enumerate(stream.from_stream(dataset.iterator()), start=1):
        if count % 1000 == 0:
            now, after = time.monotonic(), usage()
            cpu_s = sum(
                found[1] - before.get(pid, ("", 0.0, 0))[1] for pid, found in after.items() if not staged(found[0])
            )
            rss = sum(found[2] for found in after.values() if not staged(found[0])) / 2**20
            yield {
                "blocks": count,
                "s_per_block": (now - began) / 1000,
                "cpu_s_per_block": cpu_s / 1000,
                "rss_mib": rss,
            }
            began, before = now, after


def pool(arguments: argparse.Namespace) -> Iterator[Record]:
    """How a pool of 1 to 6 generators follows a learner that is fast, slow (it needs 1.5 of them) and fast again."""
    from ray.data.context import AutoscalingConfig

    for up, down, most in ((1.75, 0.5, None), (1.75, 0.5, 1), (2.0, 0.5, 1), (2.0, 0.25, 1), (2.0, 0.1, 1)):
        config = config_of(6, 1, 1.0, 32, 32, 100_000)
        config = replace(config, generators=replace(config.generators, num=(1, 6), look_ahead_mib=arguments.look_ahead))
        course = Course(Plan.of(config))
        dataset = stream.blocks(config, course, Simulated)
        dataset.context.execution_options = options(course)
        dataset.context.autoscaling_config = AutoscalingConfig(up, down, most)
        trace, began, over = [], time.monotonic(), threading.Event()

        def sample(trace: list[list[float]] = trace, began: float = began, over: threading.Event = over) -> None:
            while not over.wait(1.0):
                trace.append([round(time.monotonic() - began, 1), sum(map(generator, usage().values()))])

        sampler = threading.Thread(target=sample)
        sampler.start()
        changes = []
        blocks = stream.from_stream(dataset.iterator())
        try:
            for step_s in (0.05, 1 / 1.5, 0.05):
                changes.append([round(time.monotonic() - began, 1), step_s])
                phase, count = time.monotonic(), 0
                while time.monotonic() - phase < arguments.phase:
                    next(blocks)
                    time.sleep(step_s)
                    count += 1
                changes[-1].append(round(count / (time.monotonic() - phase), 2))
        finally:
            over.set()
            sampler.join()
            blocks.close()
        del dataset
        wait_until_gone()
        yield {"up": up, "down": down, "most": most, "phases": changes, "trace": trace}


def generator(found: tuple[str, float, int]) -> bool:
    """Whether a process stands for a generator."""
    return STAGES[0] in found[0]


def of(generators: int, learners: int, render_s: float, step_s: float, arguments: argparse.Namespace) -> Record:
    """One measurement beside its ideal."""
    config = config_of(generators, learners, render_s, 32, 32, 100_000)
    found = measured(config, step_s, arguments.rounds)
    best = ideal(generators, learners, render_s, step_s)
    return {
        "generators": generators,
        "learners": learners,
        "render_s": render_s,
        "step_s": step_s,
        **found,
        "ideal": best,
        "efficiency": found["blocks_per_s"] / best,
    }


PARTS = {part.__name__: part for part in (overlap, balance, ceiling, long, many, pool)}


def main() -> None:
    """Measure, and write the report after each measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each generator that count")
    parser.add_argument("--rate", type=float, default=4.0, help="blocks a second of the slower side, at the most")
    parser.add_argument("--phase", type=float, default=90.0, help="seconds of each phase of the pool")
    parser.add_argument("--look-ahead", type=int, default=2, help="MiB, of the pool: tickets have .2")
    parser.add_argument("--blocks", type=int, default=20_000, help="of the long stream")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    report: Record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with cluster.joined():
        for part in arguments.parts:
            report[part] = []
            for record in PARTS[part](arguments):
                record["load"] = os.getloadavg()[0]
                report[part].append(record)
                print(part, json.dumps(record), flush=True)
                report["machine"] = {"cpus": os.cpu_count(), "python": platform.python_version()}
                report["versions"] = {name: version(name) for name in ("genray", "ray")}
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for part in arguments.parts:
        values = [record["efficiency"] for record in report[part] if "efficiency" in record]
        if values:
            print(part, "efficiency: median", statistics.median(values), "least", min(values), file=sys.stderr)


if __name__ == "__main__":
    main()
