"""How many images a generator renders at once in the least time for each: what `generator.micro_batch = "auto"` means.

A short search in one process with the CPUs and GPUs of one that renders, before a run begins. All of the run's
processes then use the number that was found, because it decides the pixels' last bits.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genray import cluster
from genray.config import BigGANGenerator, Config
from genray.generators import describe, load
from genray.placement import GENERATOR_NODE, LEARNER_NODE
from genray.plan import Plan
from genray.settings import UserError, reason_in
from genray.sources.generated import render

if TYPE_CHECKING:
    import torch

SMALLEST = 4
"""Images from which on their number is doubled."""
GAIN = 0.03
"""Share of the time by which a larger micro-batch has to be faster."""
IN_VAIN = 2
"""Sizes in a row without such a gain that end the search."""
LONG_S = 5.0
"""Seconds for a micro-batch after which no larger one is tried."""
ENOUGH_S = 0.5
"""Seconds over which a size is measured, but for a slow one, which is rendered twice."""
OF_THE_GPU, OF_THE_MEMORY = 0.5, 0.25
"""Shares of a GPU's memory, where it does nothing else, and of the machine's, that rendering may take."""
LIMIT = Path("/sys/fs/cgroup/memory.max")
"""What a container may use, where there is one."""


def settled(config: Config, say: Callable[[str], None]) -> Config:
    """The configuration with the number in it that `where_it_renders` measures."""
    size = where_it_renders(config)
    say(f"generator.micro_batch = {size}")
    return replace(config, generator=replace(config.generator, micro_batch=size))


def where_it_renders(config: Config) -> int:
    """The number for this configuration, measured by a Ray task with the resources of a process that renders.

    Ray must have been joined, and have room for it.

    Raises:
        UserError: the generator cannot be loaded.
        RunFailed: the measurement failed.
    """
    import ray
    from ray.exceptions import RayError

    from genray.fit import RunFailed

    pool = config.generators.mode == "pool"
    side, node = (config.generators, GENERATOR_NODE) if pool else (config.learners, LEARNER_NODE)
    where = node if cluster.by_labels(config) else {}
    task = ray.remote(num_cpus=side.num_cpus, num_gpus=side.num_gpus, label_selector=where, max_retries=1)(measured)
    try:
        return int(ray.get(task.remote(config)))
    except RayError as error:
        reason = reason_in(str(error))
        if reason is None:
            raise RunFailed(str(error).strip().splitlines()[-1]) from error
        raise (UserError if reason.mendable else RunFailed)(reason.message) from error


def measured(config: Config) -> int:
    """The number for this configuration, measured in this process.

    Without compilation and CUDA graphs, which each size would have to wait for. What lacks a GPU by its configuration
    renders on the CPU.
    """
    import torch

    inline = config.generators.mode == "inline"
    side = config.learners if inline else config.generators
    device = torch.device("cuda" if side.num_gpus and torch.cuda.is_available() else "cpu")
    generator = config.generator
    if isinstance(generator, BigGANGenerator):
        generator = replace(generator, compile=False, cuda_graphs=False)
    loaded, spec, plan = load(generator, device), describe(generator), Plan.of(config)
    drawn, most = np.random.default_rng(0), plan.ticket_steps * plan.local_batch * plan.rendered_views

    def once(size: int) -> None:
        latents = drawn.standard_normal((size, spec.latent_dim), np.float32).clip(-2, 2) * generator.truncation
        classes = drawn.integers(spec.num_classes, size=size) if spec.num_classes else np.full(size, -1)
        render(loaded, latents, classes, np.arange(size), size, device)

    memory = Memory(device, min(1, side.num_gpus) / (2 if inline else 1), side.bounds[1])

    def seconds(size: int) -> float | None:
        try:
            return _seconds(once, size) if memory.holds(size, once) else None
        except torch.OutOfMemoryError:
            return None

    return fastest(seconds, most)


def fastest(seconds: Callable[[int], float | None], images: int) -> int:
    """The smallest size that renders so many images in about the least time.

    Args:
        seconds: time of a micro-batch of a size; None where there is no memory for it.
        images: of a ticket. The last micro-batch is filled up, so that its size counts too.
    """
    costs: dict[int, float] = {}
    best, in_vain = math.inf, 0
    for size in (SMALLEST * 2**doublings for doublings in count()):
        taken = seconds(size)
        if taken is None:
            break
        costs[size] = taken * -(-images // size)
        in_vain = in_vain + 1 if costs[size] > (1 - GAIN) * best else 0
        best = min(best, costs[size])
        if size >= images or in_vain == IN_VAIN or taken > LONG_S:
            break
    return next((size for size, cost in costs.items() if cost <= (1 + GAIN) * best), 1)


def _seconds(once: Callable[[int], None], size: int) -> float:
    """Least time of several renderings; the first one, which warms up, counts only if it is slow."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - began < ENOUGH_S:
        start = time.perf_counter()
        once(size)
        times.append(time.perf_counter() - start)
        if times[-1] > LONG_S:
            break
    return min(times)


class Memory:
    """Whether there is memory for a micro-batch, told from what one of half its size took.

    Args:
        device: where it is rendered.
        gpus: share of a GPU that rendering may use.
        processes: that may render on one machine, where they do so on its CPUs.
    """

    def __init__(self, device: torch.device, gpus: float, processes: int):
        import torch

        self.device, self.last = device, 0
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            self.most = min(free, OF_THE_GPU * gpus * total)
        else:
            self.most = OF_THE_MEMORY * _of_the_machine() / processes

    def holds(self, size: int, once: Callable[[int], None]) -> bool:
        """Render once, if twice the last size should fit, and see what it takes."""
        import torch

        if 2 * self.last > self.most:
            return False
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            once(size)
            self.last = torch.cuda.max_memory_allocated(self.device) - before
        else:
            before = _peak()
            once(size)
            self.last += _peak() - before  # a peak never falls, so each size adds to it
        return self.last <= self.most


def _of_the_machine() -> int:
    """Bytes of memory, or what the container allows of it."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such limit, or "max"
        return min(physical, int(LIMIT.read_text()))
    return physical


def _peak() -> int:
    """Most bytes that this process has had in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
