"""Views used more than once: the batches of a learner, of which only some are fresh.

With `stream.reuse = K`, fresh steps are counted in windows of `stream.reuse_window`. The steps of the first window are
all fresh. From then on every K-th step is, and those between two fresh ones show the window before: the first after
each fresh step goes through it in one order, the second in another, and so on, so that each of its anchors is shown K
times in all. Fresh steps are evenly spread, so generators never stand still for it. In these orders every place in the
batch has its own order of the window's steps; it depends on nothing but (seed, window, use), so neither a restart nor
another number of learners changes it. Each use has its own pixel augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

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
        fresh: its fresh batches, from `plan.first_needed(step)` on.
        rank: which of the learners it is.
        step: steps that have been made.

    Yields:
        The batches, with `use`, how often their views have been shown before.
    """
    part = slice(rank * plan.local_batch, (rank + 1) * plan.local_batch)
    before: list[Block] = []
    window: list[Block] = []
    order: list[np.ndarray] = []
    for number in count(plan.step_of(plan.first_needed(step))):
        use, at = plan.shown_in(number)
        if use == 0:
            batch = next(fresh, {})
            if not batch:
                return
            if plan.reuse > 1:
                if at % plan.window == 0:
                    before, window = window, []
                    order = [
                        orders(seed, at // plan.window - 1, use, plan.window, plan.batch_size)[:, part]
                        for use in range(1, plan.reuse)
                    ]
                # A copy, since the blocks themselves would fill the object store.
                window.append({name: column.copy() for name, column in batch.items()})
        if number < step:
            continue
        if use:
            sources = order[use - 1][at % plan.window]
            batch = {name: _gathered(before, sources, name) for name in before[0]}
        yield {**batch, "use": np.full_like(batch["epoch"], use)}


def _gathered(window: list[Block], sources: np.ndarray, name: str) -> np.ndarray:
    """One batch, whose row at each place comes from that place of another fresh batch."""
    return np.stack([window[source][name][place] for place, source in enumerate(sources)])
