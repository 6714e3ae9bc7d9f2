"""Scaling with simulated stages: `python benchmarks/scaling.py [--parts overlap balance ceiling long many pool]`.

A simulated generator sleeps for a fixed time and returns a block, and a simulated learner sleeps for each block it
gets; the stream between them is that of a run. So two CPU cores are enough, and the difference from the ideal rate is
the cost of the stream. Rates are those of the blocks within a window, after the first look-ahead has been used.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name

import usage
from simulated import Stream, config_of

from genray.cluster import ray_cluster
from genray.config.run import Config
from genray.stream.plan import Plan

Record = dict[str, Any]
WINDOW_S, WINDOW_ROUNDS = 10.0, 5
"""The shortest window: seconds at the ideal rate, and blocks of each generator."""


def measured(config: Config, step_s: Sequence[float], blocks: Sequence[int]) -> list[Record]:
    """Blocks per second of a stream after its first look-ahead, and what the other processes cost for each block.

    Args:
        config: of the run.
        step_s: seconds that a learner takes for a block, one value for each phase.
        blocks: how many to measure in each phase, rounded up to whole rounds of all generators: generators that start
            together also finish together.
    """
    plan, generators = Plan.of(config), config.pool.bounds.least
    turn = math.lcm(generators, plan.num_workers)
    warm_up, *blocks = (-(-count // turn) * turn for count in (plan.look_ahead + 3 * generators, *blocks))
    margin = generators + plan.num_workers  # between two phases
    tickets = warm_up + sum(blocks) + plan.look_ahead + 4 * margin * (1 + len(blocks)) + 100
    config = replace(config, training=replace(config.training, steps=tickets))
    windows, began = [], time.monotonic()
    with Stream(config, step_s[0]) as running:
        first = running.wait_for(warm_up)
        warm_s = time.monotonic() - began
        for seconds, count in zip(step_s, blocks, strict=True):
            if seconds != step_s[0]:
                running.set_step(seconds)
                first = running.wait_for(running.count() + margin)
            before, memory_mib = usage.cpu_s(), usage.memory_mib()
            last = running.wait_for(first + count + margin)
            cpu_s = usage.between(before, usage.cpu_s()) / (last - first)
            windows.append((first, count, {"cpu_s_per_block": cpu_s, "memory_mib": memory_mib, "warm_s": warm_s}))
        generators_seen, arrivals = usage.generators(), running.arrivals()
    return [
        {
            "blocks_per_s": count / (arrivals[first + count - 1] - arrivals[first - 1]),
            "blocks": count,
            **costs,
            "generators_seen": generators_seen,
        }
        for first, count, costs in windows
    ]


def overlap(arguments: argparse.Namespace) -> Iterator[Record]:
    """Efficiency relative to the ideal of the slower side: first the generators are slower, then the learners."""
    for repeat in range(arguments.repeats):
        for learners in (1, 2):
            for generators in (1, 2, 4, 8, 16):
                rate = min(arguments.rate, generators)  # blocks per second that they render
                blocks = max(WINDOW_S * rate, WINDOW_ROUNDS * generators)
                for record in efficiencies(generators, learners, rate, (1 / 1.5, 1.5), blocks):
                    yield record | {"repeat": repeat}


def many(arguments: argparse.Namespace) -> Iterator[Record]:
    """Large pools, once each; rendering takes longer with more generators, so that the stream is not the limit."""
    for generators in (4, 8, 16, 32, 64, 128):
        blocks = max(WINDOW_S * arguments.rate, WINDOW_ROUNDS * generators)
        yield from efficiencies(generators, 4, arguments.rate, (1 / 1.5,), blocks)


def balance(arguments: argparse.Namespace) -> Iterator[Record]:
    """Both sides equally fast, compared with one process that renders and trains in turn."""
    for repeat in range(arguments.repeats):
        (record,) = efficiencies(1, 1, 1.0, (1.0,), WINDOW_S)
        began, count = time.monotonic(), 10
        for _ in range(count):
            time.sleep(1.0)  # renders
            time.sleep(1.0)  # trains
        in_turn = count / (time.monotonic() - began)
        yield record | {"in_turn": in_turn, "ratio": record["blocks_per_s"] / in_turn, "repeat": repeat}


def ceiling(arguments: argparse.Namespace) -> Iterator[Record]:
    """Blocks per second if the stream itself is the limit, by the size of the blocks."""
    for repeat in range(arguments.repeats):
        for size, anchors in ((32, 16), (32, 128), (128, 64), (128, 256)):
            config = config_of(4, 1, 0.0, size, anchors)
            mib = Plan.of(config).ticket_bytes / 2**20
            (record,) = measured(config, [0.0], [300])
            yield record | {"mib": round(mib, 2), "repeat": repeat}


def long(arguments: argparse.Namespace) -> Iterator[Record]:
    """A long stream of small blocks: time, CPU and memory of each thousand."""
    with Stream(config_of(2, 1, 0.0, 8, 16, arguments.blocks + 1000), 0.0) as running:
        count = running.wait_for(1)
        began, before = time.monotonic(), usage.cpu_s()
        while count < arguments.blocks:
            more = running.wait_for(min(count + 1000, arguments.blocks)) - count
            now, after = time.monotonic(), usage.cpu_s()
            count += more
            yield {
                "blocks": count,
                "s_per_block": (now - began) / more,
                "cpu_s_per_block": usage.between(before, after) / more,
                "memory_mib": usage.memory_mib(),
            }
            began, before = now, after


def pool(arguments: argparse.Namespace) -> Iterator[Record]:
    """How a pool of 1 to 6 generators adapts to a learner that is fast, slow (1.5 generators do) and fast again."""
    for name, defaults in (("Ray Data's defaults", True), ("genray", False)):
        yield {"settings": name, **pool_sizes(defaults, arguments)}
        time.sleep(ray_cluster.RESERVATION_S + 10)  # until Ray has released the resources of this stream


def pool_sizes(defaults: bool, arguments: argparse.Namespace) -> Record:
    """The number of generators over time; for each phase its start, the learner's seconds per block, and its rate."""
    config = config_of(6, 1, 1.0, 32, 32)
    look_ahead = -(-24 * Plan.of(config).ticket_bytes // 2**20)
    config = replace(config, pool=replace(config.pool, num=(1, 6), look_ahead_mib=look_ahead))
    phases: list[Record] = []
    trace: list[tuple[float, int]] = []
    with Stream(config, 0.05, defaults) as running:
        running.wait_for(1)
        began = time.monotonic()
        for step_s in (0.05, 1 / 1.5, 0.05):
            running.set_step(step_s)
            at, count = time.monotonic() - began, running.count()
            while (now := time.monotonic() - began) < at + arguments.phase:
                trace.append((round(now, 1), usage.generators()))
                time.sleep(1)
            rate = (running.count() - count) / (now - at)
            phases.append({"at": round(at, 1), "step_s": step_s, "blocks_per_s": round(rate, 2)})
    return {"phases": phases, "trace": trace}


def efficiencies(
    generators: int, learners: int, rate: float, slowdowns: Sequence[float], blocks: float
) -> list[Record]:
    """Measured and ideal rates of generators that render `rate` blocks per second, with learners of several speeds.

    Args:
        generators: how many.
        learners: how many.
        rate: blocks per second of all generators.
        slowdowns: how many times slower than the generators the learners are, one value for each phase.
        blocks: how many to measure at the generators' rate.
    """
    render_s = generators / rate
    step_s = [learners / rate * factor for factor in slowdowns]
    counts = [math.ceil(blocks / max(1, factor)) for factor in slowdowns]
    records = measured(config_of(generators, learners, render_s, 32, 32), step_s, counts)
    ideal = [rate / max(1, factor) for factor in slowdowns]
    return [
        {
            "generators": generators,
            "learners": learners,
            "render_s": render_s,
            "step_s": seconds,
            "slower": "learners" if factor > 1 else "generators",
            **record,
            "ideal": best,
            "efficiency": record["blocks_per_s"] / best,
        }
        for record, seconds, factor, best in zip(records, step_s, slowdowns, ideal, strict=True)
    ]


PARTS = {part.__name__: part for part in (overlap, balance, ceiling, long, many, pool)}


def main() -> None:
    """Run the parts, and write the report after each measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rate", type=float, default=8.0, help="largest rate of the slower side, in blocks per second")
    parser.add_argument("--phase", type=float, default=60.0, help="seconds of each phase of the part pool")
    parser.add_argument("--blocks", type=int, default=20_000, help="length of the long stream")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    report: Record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    report |= {"machine": {"cpus": os.cpu_count(), "python": platform.python_version()}}
    report |= {"versions": {name: version(name) for name in ("genray", "ray")}}
    for part in arguments.parts:
        records: list[Record] = []
        try:
            with ray_cluster.joined():  # a new Ray for each part: a stream's resources stay reserved for a while
                for record in PARTS[part](arguments):
                    records.append(record | {"load": os.getloadavg()[0]})
                    print(part, json.dumps(records[-1]), flush=True)
                    arguments.out.write_text(json.dumps(report | {f"{part}, unfinished": records}, indent=1) + "\n")
        except Exception:
            traceback.print_exc()  # the other parts may still succeed
            continue
        report[part] = records
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.out == Path(__file__).with_suffix(".json"):
        import plots  # lazily, because the simulated generators and learners import this module

        plots.draw(report)


if __name__ == "__main__":
    main()
