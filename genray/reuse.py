"""Blocks used more than once: the batches of a learner, of which only some are fresh.

With `stream.reuse = K` the fresh steps come in windows of `stream.reuse_window`. A window is shown K times before the
next one begins: first as it arrives, then each time in another order, in which every place in the batch has its own
order of the window's steps. So no batch comes twice, and as the order of a place depends on nothing but (seed, window,
use), neither a restart nor another number of learners changes it. Each use has its own pixel augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from genray.plan import Plan
from genray.random import words
from genray.views import Block


def orders(seed: int, window: int, use: int, steps: int, batch_size: int) -> np.ndarray:
    """For each step of a use of a window and each place in the batch, the fresh step that shows there: `[steps, B]`."""
    drawn = words(seed, f"reuse.{window}", np.arange(steps), batch_size, use=use)
    return np.argsort(drawn, axis=0, kind="stable")


def shown(fresh: Iterator[Block], plan: Plan, seed: int, rank: int, step: int) -> Iterator[Block]:
    """A learner's batches from a step on.

    Args:
        fresh: its fresh batches, from the beginning of the window that the step lies in.
        rank: which of the learners it is.
        step: steps that have been made.

    Yields:
        The batches, with `use`, how often their window has been shown before.
    """
    part = slice(rank * plan.local_batch, (rank + 1) * plan.local_batch)
    cycle = plan.reuse * plan.window
    start = step - step % cycle
    while True:
        held = []
        for batch in islice(fresh, plan.window):
            # A copy, since the blocks themselves would fill the object store.
            held.append({name: column.copy() for name, column in batch.items()} if plan.reuse > 1 else batch)
            if start + len(held) > step:
                yield {**batch, "use": np.zeros_like(batch["epoch"])}
        if len(held) < plan.window:
            return
        for use in range(1, plan.reuse):
            order = orders(seed, start // cycle, use, plan.window, plan.batch_size)[:, part]
            for number, sources in enumerate(order, start=start + use * plan.window):
                if number >= step:
                    batch = {name: _gathered(held, sources, name) for name in held[0]}
                    yield {**batch, "use": np.full_like(batch["epoch"], use)}
        start += cycle


def _gathered(held: list[Block], sources: np.ndarray, name: str) -> np.ndarray:
    """One batch, whose row at each place comes from that place of another fresh batch."""
    return np.stack([held[source][name][place] for place, source in enumerate(sources)])
