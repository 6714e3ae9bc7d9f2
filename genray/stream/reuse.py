"""Reuse of views: a learner's batches, only some of which are fresh.

With `stream.reuse = K`, fresh steps come in windows of `stream.reuse_window`. All steps of the first window are fresh.
From then on every K-th step is fresh, and the K - 1 steps after it reuse the window before: the first of them goes
through it in one order, the second in another, and so on, so that each anchor is used K times. Fresh steps are evenly
spread, so that generators are never idle because of reuse. Each row of the batch goes through the window's steps in an
order of its own, which depends only on (seed, window, use), not on restarts or the number of learners. Each use has its
own pixel augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np

from genray.stream.plan import Plan
from genray.views.random import words
from genray.views.types import Block


def orders(seed: int, window: int, use: int, steps: int, batch_size: int) -> np.ndarray:
    """For each step of one use of a window and each row of the batch, the fresh step to take it from: `[steps, B]`."""
    drawn = words(seed, f"reuse.{window}", np.arange(steps), batch_size, use=use)
    return np.argsort(drawn, axis=0, kind="stable")


def batches(fresh: Iterator[Block], plan: Plan, seed: int, rank: int, step: int) -> Iterator[Block]:
    """A learner's batches from a step on.

    Args:
        fresh: its fresh batches, from `plan.first_needed(step)` on.
        plan: the run's plan.
        seed: the run's seed.
        rank: the learner's rank.
        step: steps completed.

    Yields:
        The batches, with a column `use`: how often their views were used before.
    """
    part = slice(rank * plan.local_batch, (rank + 1) * plan.local_batch)
    before: list[Block] = []
    window: list[Block] = []
    order: list[np.ndarray] = []
    for number in count(plan.step_of(plan.first_needed(step))):
        use, fresh_step = plan.use_of(number)
        if use == 0:
            batch = next(fresh, {})
            if not batch:
                return
            if plan.reuse > 1:
                if fresh_step % plan.window == 0:
                    before, window = window, []
                    order = [
                        orders(seed, fresh_step // plan.window - 1, use, plan.window, plan.batch_size)[:, part]
                        for use in range(1, plan.reuse)
                    ]
                # Copied, because the blocks themselves would fill the object store.
                window.append({name: column.copy() for name, column in batch.items()})
        if number < step:
            continue
        if use:
            steps = order[use - 1][fresh_step % plan.window]
            batch = {name: _gathered(before, steps, name) for name in before[0]}
        yield {**batch, "use": np.full_like(batch["epoch"], use)}


def _gathered(window: list[Block], steps: np.ndarray, name: str) -> np.ndarray:
    """One column of a batch whose row r is row r of the fresh batch `steps[r]`."""
    return np.stack([window[step][name][row] for row, step in enumerate(steps)])
