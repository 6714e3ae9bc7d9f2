"""Finds the number of images that a generator renders fastest at once: `generator.micro_batch = "auto"`.

A short search before a run begins, in a process with the resources of one that renders. All processes of the run then
use the same number, because it affects the last bits of the pixels.
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

from genray.cluster import ray_cluster
from genray.cluster.placement import GENERATOR_NODE, LEARNER_NODE
from genray.config.errors import RunFailed, reason_of
from genray.config.generator import BigGANGenerator
from genray.config.run import Config
from genray.stream.plan import Plan
from genray.views.generators import describe, load
from genray.views.sources.generated import render

if TYPE_CHECKING:
    import torch

SMALLEST = 4
"""Smallest number of images tried; it is doubled from there."""
MIN_GAIN = 0.03
"""Share of the time that a larger micro-batch has to save."""
PATIENCE = 2
"""Sizes in a row without such a gain after which the search ends."""
SLOW_S = 5.0
"""Seconds for a micro-batch above which no larger one is tried."""
SIZE_MEASURE_S = 0.5
"""Seconds over which a size is measured; each is rendered at least twice, unless it takes longer than SLOW_S."""
GPU_MEMORY_SHARE, HOST_MEMORY_SHARE = 0.5, 0.25
"""Shares of a GPU's memory and of the machine's that rendering may take."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Holds the memory limit of a container, if there is one."""


def with_measured(config: Config, say: Callable[[str], None]) -> Config:
    """The configuration with the number that `measure_by_task` returns."""
    size = measure_by_task(config)
    say(f"generator.micro_batch = {size}")
    return replace(config, generator=replace(config.generator, micro_batch=size))


def measure_by_task(config: Config) -> int:
    """The number for a configuration, measured by a Ray task with the resources of a process that renders.

    Ray must have been joined, and must have room for the task.

    Raises:
        UserError: the generator cannot be loaded.
        RunFailed: the measurement failed.
    """
    import ray
    from ray.exceptions import RayError

    pool = config.render_on == "pool"
    side, node = (config.pool, GENERATOR_NODE) if pool else (config.learners, LEARNER_NODE)
    labels = node if ray_cluster.by_labels(config) else {}
    task = ray.remote(num_cpus=side.num_cpus, num_gpus=side.num_gpus, label_selector=labels, max_retries=1)(measure)
    try:
        return int(ray.get(task.remote(config)))
    except RayError as error:
        if reason := reason_of(error):
            raise reason.error() from error
        raise RunFailed(str(error).strip().splitlines()[-1]) from error


def measure(config: Config) -> int:
    """The number for a configuration, measured in this process.

    Compilation and CUDA graphs are left out, since they would take long for each size. A process without a GPU in the
    configuration renders on the CPU.
    """
    import torch

    inline = config.render_on == "learners"
    side = config.learners if inline else config.pool
    device = torch.device("cuda" if side.num_gpus and torch.cuda.is_available() else "cpu")
    generator = config.generator
    if isinstance(generator, BigGANGenerator):
        generator = replace(generator, compile=False, cuda_graphs=False)
    loaded, spec, plan = load(generator, device), describe(generator), Plan.of(config)
    random, images = np.random.default_rng(0), plan.ticket_steps * plan.local_batch * plan.rendered_views

    def once(size: int) -> None:
        latents = random.standard_normal((size, spec.latent_dim), np.float32).clip(-2, 2) * generator.truncation
        classes = random.integers(spec.num_classes, size=size) if spec.num_classes else np.full(size, -1)
        render(loaded, latents, classes, np.arange(size), size, device)

    memory = Memory(device, min(1, side.num_gpus) / (2 if inline else 1), side.bounds.most)

    def seconds(size: int) -> float | None:
        try:
            return least_time(once, size) if memory.holds(size, once) else None
        except torch.OutOfMemoryError:
            return None

    return fastest(seconds, images)


def fastest(seconds: Callable[[int], float | None], images: int) -> int:
    """The smallest size that renders this many images in about the least time; 1 if there is no memory for any.

    Args:
        seconds: time of a micro-batch of a given size; None if there is no memory for it.
        images: of a ticket. Its last micro-batch is padded, so it costs as much as a full one.
    """
    costs: dict[int, float] = {}
    best, without_gain = math.inf, 0
    for size in (SMALLEST * 2**doublings for doublings in count()):
        taken = seconds(size)
        if taken is None:
            break
        costs[size] = taken * -(-images // size)
        without_gain = without_gain + 1 if costs[size] > (1 - MIN_GAIN) * best else 0
        best = min(best, costs[size])
        if size >= images or without_gain == PATIENCE or taken > SLOW_S:
            break
    return next((size for size, cost in costs.items() if cost <= (1 + MIN_GAIN) * best), 1)


def least_time(once: Callable[[int], None], size: int) -> float:
    """Seconds of the fastest of several renderings; the first is a warm-up, and counts only if it is slow."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - began < SIZE_MEASURE_S:
        start = time.perf_counter()
        once(size)
        times.append(time.perf_counter() - start)
        if times[-1] > SLOW_S:
            break
    return min(times)


class Memory:
    """Predicts from a micro-batch of half the size whether there is memory for the next.

    Args:
        device: where it is rendered.
        gpus: share of a GPU that rendering may use.
        processes: how many may render on this machine's CPUs.
    """

    def __init__(self, device: torch.device, gpus: float, processes: int):
        import torch

        self.device, self.last = device, 0
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            self.limit = min(free, GPU_MEMORY_SHARE * gpus * total)
        else:
            self.limit = HOST_MEMORY_SHARE * _machine_memory() / processes

    def holds(self, size: int, once: Callable[[int], None]) -> bool:
        """Render once, unless twice the memory of the last size is too much, and measure what it takes."""
        import torch

        if 2 * self.last > self.limit:
            return False
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            once(size)
            self.last = torch.cuda.max_memory_allocated(self.device) - before
        else:
            before = peak_memory()
            once(size)
            self.last += peak_memory() - before  # a peak never falls, so each size adds to it
        return self.last <= self.limit


def _machine_memory() -> int:
    """Bytes of memory of this machine, or of its container."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # there is no such file, or it holds "max"
        return min(physical, int(CGROUP_LIMIT.read_text()))
    return physical


def peak_memory() -> int:
    """Most bytes of memory that this process has used so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
