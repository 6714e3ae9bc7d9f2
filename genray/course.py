"""What the learners see in each step of a run, and how that is cut into tickets.

Step s shows fresh anchors s B to (s + 1) B, B being the batch, whoever makes it; learner r of W takes the r-th part of
them. So the number of the next step is all that a run has to know to go on, with any number of learners. Where blocks
are used more than once (`stream.reuse`), see `genray.reuse`: then only some steps show fresh anchors.

A ticket is one learner's part of several fresh steps in a row. Learners take the tickets in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genray.plan import Plan


@dataclass(frozen=True)
class Ticket:
    """One block to render."""

    number: int
    """Tickets are numbered from the beginning of a run with this number of learners."""
    positions: np.ndarray
    """Places in the stream, counted in anchors from the start of the run: int64 `[n]`, the learner's steps in order."""


@dataclass(frozen=True)
class Course:
    """The tickets from a step to the end of the run.

    Where the step lies within tickets, these are rendered from there on only.
    """

    plan: Plan
    step: int = 0
    """Steps that have been made."""

    def __len__(self) -> int:
        return len(self._rounds) * self.plan.num_workers

    def ticket(self, index: int) -> Ticket:
        """The ticket that comes after so many others."""
        plan = self.plan
        turn, learner = divmod(index, plan.num_workers)
        turn += self._rounds.start
        first = max(turn * plan.ticket_steps, self._fresh.start)
        steps = np.arange(first, min((turn + 1) * plan.ticket_steps, self._fresh.stop))
        part = np.arange(learner * plan.local_batch, (learner + 1) * plan.local_batch)
        positions = (steps[:, None] * plan.batch_size + part).reshape(-1)
        return Ticket(turn * plan.num_workers + learner, positions)

    def of_learner(self, rank: int) -> Iterator[Ticket]:
        """A learner's tickets in order."""
        return (self.ticket(index) for index in range(rank, len(self), self.plan.num_workers))

    @property
    def _fresh(self) -> range:
        """The fresh steps that are still needed."""
        plan = self.plan
        if self.step >= plan.steps:
            return range(0)
        return range(plan.first_needed(self.step), plan.fresh_steps(plan.steps))

    @property
    def _rounds(self) -> range:
        """Rounds of one ticket for each learner."""
        size = self.plan.ticket_steps
        return range(self._fresh.start // size, -(-self._fresh.stop // size)) if self._fresh else range(0)
