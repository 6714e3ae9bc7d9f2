"""Scaling out with simulated stages: `python benchmarks/scaling.py [--parts overlap balance ceiling long many pool]`.

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
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name

import numpy as np
import ray
import usage
from ray.data import DataContext

from genray import cluster, stream
from genray.config import Config
from genray.configure import build
from genray.course import Course
from genray.plan import Plan
from genray.shares import options
from genray.views import Block

Record = dict[str, Any]
WINDOW_S, ROUNDS = 10.0, 5
"""What counts: so many seconds at the ideal rate, and so many blocks of each generator, at the least."""
STILL_S = 300.0
"""Seconds without a block, or with processes of a stream that has ended, after which something is wrong."""


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
        self.step_s = step_s
        for _ in stream.from_stream(shard):
            self.arrivals.append(time.time())
            time.sleep(self.step_s)
            if self.over.is_set():
                return

    def seen(self) -> int:
        return len(self.arrivals)

    def take(self, step_s: float) -> None:
        """From now on, so many seconds for each block."""
        self.step_s = step_s

    def end(self) -> list[float]:
        """When each block arrived; ends the run."""
        self.over.set()
        return self.arrivals


def config_of(generators: int, learners: int, render_s: float, size: int, anchors: int, tickets: int = 5000) -> Config:
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
                "look_ahead_mib": max(1, -(-3 * (generators + learners) * ticket // 2**20)),
            },
            "learners": {"num_workers": learners, "num_gpus": 0},
        }
    )


class Stream:
    """A stream that simulated learners use, for as long as this is entered."""

    def __init__(self, config: Config, step_s: float, defaults: bool = False):
        self.plan, self.generators = Plan.of(config), config.generators.bounds[0]
        course = Course(self.plan)
        dataset = stream.blocks(config, course, Simulated)
        dataset.context.execution_options = options(course)
        if defaults:  # Ray Data's, for how it schedules
            for name in (
                "autoscaling_config",
                "downstream_capacity_backpressure_ratio",
                "op_resource_reservation_ratio",
            ):
                setattr(dataset.context, name, getattr(DataContext(), name))
        shards = dataset.streaming_split(self.plan.num_workers, equal=True)
        self.consumers = [ray.remote(Consumer).options(max_concurrency=3, num_cpus=0).remote() for _ in shards]
        pairs = zip(self.consumers, shards, strict=True)
        self.runs = [consumer.run.remote(shard, step_s) for consumer, shard in pairs]

    def __enter__(self) -> Stream:
        return self

    def seen(self) -> int:
        """Blocks that have arrived."""
        ray.get(ray.wait(self.runs, timeout=0)[0])  # raises what a consumer raised
        return sum(ray.get([consumer.seen.remote() for consumer in self.consumers]))

    def wait_for(self, blocks: int) -> int:
        """Wait until so many have arrived; returns how many have."""
        seen, since = -1, time.monotonic()
        while (now := self.seen()) < blocks:
            if now > seen:
                seen, since = now, time.monotonic()
            if time.monotonic() > since + STILL_S:
                raise RuntimeError(f"the stream stands still after {now} of {blocks} blocks")
            time.sleep(1)
        return now

    def take(self, step_s: float) -> None:
        """From now on every learner takes so long for a block."""
        ray.get([consumer.take.remote(step_s) for consumer in self.consumers])

    def arrivals(self) -> list[float]:
        """When each block arrived, in order."""
        return sorted(at for found in ray.get([consumer.end.remote() for consumer in self.consumers]) for at in found)

    def __exit__(self, *_: object) -> None:
        for consumer in self.consumers:
            ray.kill(consumer)
        del self.runs
        wait_until_gone()


def measured(config: Config, step_s: Sequence[float], blocks: Sequence[int]) -> list[Record]:
    """Blocks a second of a stream once its look-ahead has been through, and what all other processes cost for each.

    The learners take these times for a block, one after the other, for so many blocks. Generators that began together
    also end together, so what counts is the time of whole rounds of them.
    """
    plan, generators = Plan.of(config), config.generators.bounds[0]
    turn = math.lcm(generators, plan.num_workers)
    warm, *blocks = (-(-count // turn) * turn for count in (plan.look_ahead + 3 * generators, *blocks))
    over = generators + plan.num_workers  # of a phase, before the next one is counted
    tickets = warm + sum(blocks) + plan.look_ahead + 4 * over * (1 + len(blocks)) + 100
    config = replace(config, training=replace(config.training, steps=tickets))
    found, began = [], time.monotonic()
    with Stream(config, step_s[0]) as flow:
        first = flow.wait_for(warm)
        warm_s = time.monotonic() - began
        for taken, count in zip(step_s, blocks, strict=True):
            if taken != step_s[0]:
                flow.take(taken)
                first = flow.wait_for(flow.seen() + over)
            before, memory_mib = usage.cpu_s(), usage.memory_mib()
            last = flow.wait_for(first + count + over)
            cpu_s = usage.between(before, usage.cpu_s()) / (last - first)
            found.append((first, count, {"cpu_s_per_block": cpu_s, "memory_mib": memory_mib, "warm_s": warm_s}))
        seen, arrivals = usage.generators(), flow.arrivals()
    return [
        {
            "blocks_per_s": count / (arrivals[first + count - 1] - arrivals[first - 1]),
            "blocks": count,
            **costs,
            "generators_seen": seen,
        }
        for first, count, costs in found
    ]


def wait_until_gone() -> None:
    """Wait until the processes of the last stream have ended, so that the next one has the machine to itself."""
    deadline = time.monotonic() + STILL_S
    while any(usage.staged(title) or "SplitCoordinator" in title for title in usage.titles().values()):
        if time.monotonic() > deadline:
            return print("processes of the last stream are still there", file=sys.stderr)
        time.sleep(0.5)


def overlap(arguments: argparse.Namespace) -> Iterator[Record]:
    """Efficiency against the slower side's ideal: of generators with faster learners, then with slower ones."""
    for repeat in range(arguments.repeats):
        for learners in (1, 2):
            for generators in (1, 2, 4, 8, 16):
                rate = min(arguments.rate, generators)  # blocks a second that they render
                for found in of(generators, learners, rate, (1 / 1.5, 1.5), max(WINDOW_S * rate, ROUNDS * generators)):
                    yield found | {"repeat": repeat}


def many(arguments: argparse.Namespace) -> Iterator[Record]:
    """Large pools, once each; rendering takes longer with more generators, so that the stream is no limit."""
    for generators in (4, 8, 16, 32, 64, 128):
        blocks = max(WINDOW_S * arguments.rate, ROUNDS * generators)
        yield from of(generators, 4, arguments.rate, (1 / 1.5,), blocks)


def balance(arguments: argparse.Namespace) -> Iterator[Record]:
    """Both sides equally fast: against one process that renders and trains in turn."""
    for repeat in range(arguments.repeats):
        (found,) = of(1, 1, 1.0, (1.0,), WINDOW_S)
        began, count = time.monotonic(), 10
        for _ in range(count):
            time.sleep(1.0)  # renders
            time.sleep(1.0)  # trains
        in_turn = count / (time.monotonic() - began)
        yield found | {"in_turn": in_turn, "ratio": found["blocks_per_s"] / in_turn, "repeat": repeat}


def ceiling(arguments: argparse.Namespace) -> Iterator[Record]:
    """Blocks a second at which the stream itself is the limit, by their size."""
    for repeat in range(arguments.repeats):
        for size, anchors in ((32, 16), (32, 128), (128, 64), (128, 256)):
            config = config_of(4, 1, 0.0, size, anchors)
            mib = Plan.of(config).ticket_bytes / 2**20
            (found,) = measured(config, [0.0], [300])
            yield found | {"mib": round(mib, 2), "repeat": repeat}


def long(arguments: argparse.Namespace) -> Iterator[Record]:
    """Many small blocks: time, CPU and memory of each thousand, from the first to the last."""
    with Stream(config_of(2, 1, 0.0, 8, 16, arguments.blocks + 1000), 0.0) as flow:
        seen = flow.wait_for(1)
        began, before = time.monotonic(), usage.cpu_s()
        while seen < arguments.blocks:
            more = flow.wait_for(min(seen + 1000, arguments.blocks)) - seen
            now, after = time.monotonic(), usage.cpu_s()
            seen += more
            yield {
                "blocks": seen,
                "s_per_block": (now - began) / more,
                "cpu_s_per_block": usage.between(before, after) / more,
                "memory_mib": usage.memory_mib(),
            }
            began, before = now, after


def pool(arguments: argparse.Namespace) -> Iterator[Record]:
    """How a pool of 1 to 6 generators follows a learner that is fast, slow (it needs 1.5 of them) and fast again."""
    for name, defaults in (("Ray Data's defaults", True), ("genray", False)):
        yield {"settings": name, **followed(defaults, arguments)}
        time.sleep(cluster.RESERVED_S + 10)  # until what this stream had can be had by the next one


def followed(defaults: bool, arguments: argparse.Namespace) -> Record:
    """Generators over time; for each phase when it began, the learner's seconds for a block, and blocks a second."""
    config = config_of(6, 1, 1.0, 32, 32)
    look_ahead = -(-24 * Plan.of(config).ticket_bytes // 2**20)
    config = replace(config, generators=replace(config.generators, num=(1, 6), look_ahead_mib=look_ahead))
    phases: list[Record] = []
    trace: list[tuple[float, int]] = []
    with Stream(config, 0.05, defaults) as flow:
        flow.wait_for(1)
        began = time.monotonic()
        for step_s in (0.05, 1 / 1.5, 0.05):
            flow.take(step_s)
            at, seen = time.monotonic() - began, flow.seen()
            while (now := time.monotonic() - began) < at + arguments.phase:
                trace.append((round(now, 1), usage.generators()))
                time.sleep(1)
            rate = (flow.seen() - seen) / (now - at)
            phases.append({"at": round(at, 1), "step_s": step_s, "blocks_per_s": round(rate, 2)})
    return {"phases": phases, "trace": trace}


def of(generators: int, learners: int, rate: float, slower: Sequence[float], blocks: float) -> list[Record]:
    """Generators of so many blocks a second, with learners slower by these factors; each beside its ideal."""
    render_s = generators / rate
    step_s = [learners / rate * factor for factor in slower]
    counts = [math.ceil(blocks / max(1, factor)) for factor in slower]
    found = measured(config_of(generators, learners, render_s, 32, 32), step_s, counts)
    ideal = [rate / max(1, factor) for factor in slower]
    return [
        {
            "generators": generators,
            "learners": learners,
            "render_s": render_s,
            "step_s": took,
            "slower": "learners" if factor > 1 else "generators",
            **record,
            "ideal": best,
            "efficiency": record["blocks_per_s"] / best,
        }
        for record, took, factor, best in zip(found, step_s, slower, ideal, strict=True)
    ]


PARTS = {part.__name__: part for part in (overlap, balance, ceiling, long, many, pool)}


def main() -> None:
    """Measure, and write the report after each measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rate", type=float, default=8.0, help="blocks a second of the slower side, at the most")
    parser.add_argument("--phase", type=float, default=60.0, help="seconds of each phase of the pool")
    parser.add_argument("--blocks", type=int, default=20_000, help="of the long stream")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    report: Record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    report |= {"machine": {"cpus": os.cpu_count(), "python": platform.python_version()}}
    report |= {"versions": {name: version(name) for name in ("genray", "ray")}}
    for part in arguments.parts:
        found: list[Record] = []
        try:
            with cluster.joined():  # one for each: what a stream had stays reserved for a while after its end
                for record in PARTS[part](arguments):
                    found.append(record | {"load": os.getloadavg()[0]})
                    print(part, json.dumps(found[-1]), flush=True)
                    arguments.out.write_text(json.dumps(report | {f"{part}, unfinished": found}, indent=1) + "\n")
        except Exception:
            traceback.print_exc()  # the other parts may still do
            continue
        report[part] = found
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.out == Path(__file__).with_suffix(".json"):
        import plots  # not in the processes that stand for generators and learners: they import this module

        plots.draw(report)


if __name__ == "__main__":
    main()
