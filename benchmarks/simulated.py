"""Simulated generators and learners, and a run's own stream between them."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import numpy as np
import ray
import usage
from ray.data import DataContext

from genray.config.load import build
from genray.config.run import Config
from genray.stream import pool
from genray.stream.run import Run
from genray.stream.shares import options
from genray.stream.tickets import Course
from genray.views.types import Block

STALLED_S = 300.0
"""Seconds without a block, or with processes left from the last stream, after which the benchmark gives up."""


class Simulated:
    """Sleeps instead of rendering, and always returns the same pixels."""

    def __init__(self, run: Run, course: Course, execution: str):
        config = run.config
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
    """Sleeps instead of training, and records when blocks arrive."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self.ended = threading.Event()

    def run(self, shard: Any, step_s: float) -> None:
        """Use block after block until `end` is called."""
        self.step_s = step_s
        for _ in pool.blocks_of_shard(shard):
            self.arrivals.append(time.time())
            time.sleep(self.step_s)
            if self.ended.is_set():
                return

    def count(self) -> int:
        """Blocks that have arrived."""
        return len(self.arrivals)

    def set_step(self, step_s: float) -> None:
        """Take this many seconds for each block from now on."""
        self.step_s = step_s

    def end(self) -> list[float]:
        """End the run; returns when each block arrived."""
        self.ended.set()
        return self.arrivals


def config_of(generators: int, learners: int, render_s: float, size: int, anchors: int, tickets: int = 5000) -> Config:
    """A run whose tickets have this many anchors with two square views each, `size` pixels a side."""
    ticket = anchors * 2 * 3 * size**2
    return build(
        {
            "name": "simulated",
            "generator": {
                "kind": "custom",
                "target": "simulated:Simulated",
                "image_size": size,
                "latent_dim": 8,
                "options": {"render_s": render_s},
            },
            "stream": {"batch_size": anchors, "ticket_batches": 1},
            "training": {"steps": tickets},
            "pool": {
                "num": generators,
                "num_gpus": 0,
                "num_cpus": 0.001,
                "look_ahead_mib": max(1, -(-3 * (generators + learners) * ticket // 2**20)),
            },
            "learners": {"num_workers": learners, "num_gpus": 0},
        }
    )


class Stream:
    """A context with a stream that simulated learners use."""

    def __init__(self, config: Config, step_s: float, defaults: bool = False):
        run = Run.of(config)
        self.plan, self.generators = run.plan, config.pool.bounds.least
        course = Course(self.plan)
        dataset = pool.blocks(run, course, Simulated)
        dataset.context.execution_options = options(course)
        if defaults:  # Ray Data's own scheduling
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

    def count(self) -> int:
        """Blocks that have arrived."""
        ray.get(ray.wait(self.runs, timeout=0)[0])  # raises what a consumer raised
        return sum(ray.get([consumer.count.remote() for consumer in self.consumers]))

    def wait_for(self, blocks: int) -> int:
        """Wait until this many blocks have arrived; returns how many have."""
        last, since = -1, time.monotonic()
        while (count := self.count()) < blocks:
            if count > last:
                last, since = count, time.monotonic()
            if time.monotonic() > since + STALLED_S:
                raise RuntimeError(f"the stream has stalled after {count} of {blocks} blocks")
            time.sleep(1)
        return count

    def set_step(self, step_s: float) -> None:
        """Let every learner take this many seconds for a block from now on."""
        ray.get([consumer.set_step.remote(step_s) for consumer in self.consumers])

    def arrivals(self) -> list[float]:
        """End the stream; returns when each block arrived, in order."""
        return sorted(at for times in ray.get([consumer.end.remote() for consumer in self.consumers]) for at in times)

    def __exit__(self, *_: object) -> None:
        for consumer in self.consumers:
            ray.kill(consumer)
        del self.runs
        wait_until_gone()


def wait_until_gone() -> None:
    """Wait until the processes of the last stream have ended, so that the next stream has the machine to itself."""
    deadline = time.monotonic() + STALLED_S
    while any(usage.is_stage(title) or "SplitCoordinator" in title for title in usage.titles().values()):
        if time.monotonic() > deadline:
            return print("some processes of the last stream have not ended", file=sys.stderr)
        time.sleep(0.5)
