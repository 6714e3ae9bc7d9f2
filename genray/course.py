"""The order in which a run goes through its stream, from any step on and for any number of learners.

The stream is cut into portions that the learners take in turn. A portion is a ticket, and every learner's share of a
round of tickets is a whole number of its batches. Only where a run was stopped within a round, what is left of that
round comes first, in smaller portions that any number of learners can share: each anchor is used exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genray.plan import Plan


@dataclass(frozen=True)
class Place:
    """Where a run stands: all tickets before `next_ticket` have been used, and of the round after them some steps."""

    step: int = 0
    next_ticket: int = 0
    batch: int = 0
    """Steps that were made of the round which begins at `next_ticket`."""
    num_workers: int = 0
    """Learners that began that round; 0 between two rounds."""

    def after_step(self, plan: Plan) -> Place:
        """Where the run stands one step later."""
        workers = self.num_workers or plan.num_workers
        if self.batch + 1 == plan.ticket_batches * workers:
            return Place(self.step + 1, self.next_ticket + workers)
        return Place(self.step + 1, self.next_ticket, self.batch + 1, workers)


@dataclass(frozen=True)
class Course:
    """The portions from a place to the end of the run, numbered from 0."""

    plan: Plan
    place: Place = Place()

    def __len__(self) -> int:
        return self._parts + self.plan.tickets_from(self._whole)

    def positions(self, portion: int) -> np.ndarray:
        """Places in the stream, counted in anchors from the start of the run, that a portion shows: int64 `[n]`."""
        if portion >= self._parts:
            return self.plan.positions(self._whole + portion - self._parts)
        place = self.place
        share = self.plan.batch_size // place.num_workers
        steps = [
            self.plan.positions(place.next_ticket + learner).reshape(-1, share)[place.batch :][: self._rest]
            for learner in range(place.num_workers)
        ]
        pieces = np.split(np.concatenate(steps, axis=1), self._parts, axis=1)
        of_each, rest = divmod(self._parts, place.num_workers)
        if not rest:  # as many learners as before then go on with what each of them had
            learner, piece = portion % place.num_workers, portion // place.num_workers
            portion = learner * of_each + piece
        return pieces[portion].reshape(-1)

    def of_learner(self, rank: int) -> Iterator[list[np.ndarray]]:
        """The positions of a learner's portions in order; those that only together make up its batches in one list."""
        mine = [self.positions(portion) for portion in range(rank, self._parts, self.plan.num_workers)]
        if mine:
            yield mine
        for portion in range(self._parts + rank, len(self), self.plan.num_workers):
            yield [self.positions(portion)]

    @property
    def _whole(self) -> int:
        """The first ticket that nobody has begun."""
        return self.place.next_ticket + self.place.num_workers

    @property
    def _rest(self) -> int:
        """Steps that are left of a round that was begun."""
        left = self.plan.ticket_batches * self.place.num_workers - self.place.batch
        return min(left, self.plan.steps - self.place.step)

    @property
    def _parts(self) -> int:
        return self.plan.parts if self._rest else 0
