"""Which anchors each step shows, and how they are divided into tickets.

Step s shows the fresh anchors s B to (s + 1) B, where B is the batch size; learner r of W takes the r-th part of them.
A run thus resumes from the number of its next step alone, with any number of learners. If views are used more than once
(`stream.reuse`), only some steps show fresh anchors; see `genray.stream.reuse`.

A ticket is one learner's part of several consecutive fresh steps. Learners take the tickets in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genray.stream.plan import Plan


@dataclass(frozen=True)
class Ticket:
    """One block to render.

    With batches of 4, two learners and tickets of two steps, the positions of the stream are divided like this:

                    step 0   step 1   step 2   step 3
        learner 0   0 1      4 5      8 9      12 13     tickets 0: [0 1 4 5] and 2: [8 9 12 13]
        learner 1   2 3      6 7      10 11    14 15     tickets 1: [2 3 6 7] and 3: [10 11 14 15]
    """

    number: int
    """Counts from the start of the run, for this number of learners."""
    positions: np.ndarray
    """Positions in the stream, in anchors from the start of the run: int64 `[n]`, step by step."""


@dataclass(frozen=True)
class Course:
    """The tickets from a step to the end of the run.

    If the step lies within a ticket, only the rest of that ticket is rendered.

    >>> course = Course(Plan.of(config), step=6)  # the preset `demo`: batches of 128, one learner, tickets of 4 steps
    >>> len(course), course.ticket(0).number, course.ticket(0).positions
    (99, 1, array([ 768,  769, ..., 1022, 1023]))
    """

    plan: Plan
    step: int = 0
    """Steps completed."""

    def __len__(self) -> int:
        return len(self._rounds) * self.plan.num_workers

    def ticket(self, index: int) -> Ticket:
        """The ticket with this index in the course, from 0."""
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
        """Rounds, each of one ticket for every learner."""
        size = self.plan.ticket_steps
        return range(self._fresh.start // size, -(-self._fresh.stop // size)) if self._fresh else range(0)
