"""The learners' side of `genray bench`: both sides of a run alone and together, in the processes of one run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray.train
import torch
from ray.train.collective import barrier, broadcast_from_rank_zero

from genray import stream
from genray.course import Course
from genray.train import learner_here, pool_blocks
from genray.views import Block

if TYPE_CHECKING:
    from genray.learner import Learner

FEWEST, MOST = 4, 200
"""Tickets of each learner in a phase."""
MIB = 2**20
Rates = dict[str, float]


def bench_loop(arguments: dict[str, Any]) -> list[Rates]:
    """Ray Train's `train_loop_per_worker`; returns what `Phases.measure` found in each repetition."""
    config, context = arguments["config"], ray.train.get_context()
    learner = learner_here(config, context.get_world_rank(), context.get_world_size())
    phases = Phases(learner, pool_blocks(config), context.get_world_size())
    phases.prepare(arguments["seconds"])
    return [phases.measure() for _ in range(arguments["repeats"])]


class Phases:
    """What one learner's process can measure with its stream and its device; all learners do the same at a time.

    The stream goes on by itself during a phase that does not use it, until its look-ahead is full. So each phase that
    uses it begins with what had lain ready, which does not count, and each that does not waits until it stands still.
    """

    def __init__(self, learner: Learner, blocks: Iterator[Block], world: int):
        self.learner, self.world, self.blocks = learner, world, blocks
        self.ready = -(-learner.plan.look_ahead // world)
        self.still_s = 0.0
        self.tickets = dict.fromkeys(("learner", "stream", "together", "inline"), 1)

    def prepare(self, seconds: float) -> None:
        """Warm everything up, and choose for each phase how many tickets take about so many seconds."""
        self.resident = self._taken(1)[0]
        self.measure()
        found = self._agreed(self.measure())
        anchors = len(self.resident["anchor"]) * self.world
        for name in self.tickets:
            self.tickets[name] = min(MOST, max(FEWEST, math.ceil(seconds * found[name] / anchors)))
        self.still_s = 1.5 * self.learner.plan.look_ahead * anchors / self.world / found["stream"]

    def measure(self) -> Rates:
        """Both sides alone, together, and alone again, so that what drifts meanwhile weighs on all alike.

        Returns:
            Anchors a second over all learners: `learner` on a block that stays, `stream` into nothing, `together`, and
            `inline`, each learner rendering its own tickets; `generator`, those of one generator while it renders with
            the learners at rest; `generators`, how many there are; `blocks_per_s` and `mib_per_s` of the stream.
        """
        found: dict[str, list[float]] = {}
        for phase in (self._learner, self._stream, self._together, self._inline, self._stream, self._learner):
            for key, value in phase().items():
                found.setdefault(key, []).append(value)
        return {key: sum(values) / len(values) for key, values in found.items()}

    def _learner(self) -> Rates:
        time.sleep(self.still_s)
        tickets, at = self.tickets["learner"], self.learner.step
        course = Course(self.learner.plan, at).of_learner(self.learner.rank)
        resident = ({**self.resident, "position": ticket.positions} for ticket in course)
        rate = self._rate(tickets, lambda: self._train(resident, tickets))
        self.learner.step = at
        return {"learner": rate}

    def _stream(self) -> Rates:
        self._taken(self.ready)
        tickets, taken = self.tickets["stream"], list[Block]()
        rate = self._rate(tickets, lambda: taken.extend(self._taken(tickets)))
        anchors = sum(len(block["anchor"]) for block in taken)
        blocks_per_s = rate * len(taken) / anchors
        return {
            "stream": rate,
            "generator": anchors / sum(float(block["render_s"][0]) for block in taken),
            "generators": len({str(block["generator"][0]) for block in taken}),
            "blocks_per_s": blocks_per_s,
            "mib_per_s": blocks_per_s * taken[0]["views"].nbytes / MIB,
        }

    def _together(self) -> Rates:
        self._train(self.blocks, self.ready)
        tickets = self.tickets["together"]
        return {"together": self._rate(tickets, lambda: self._train(self.blocks, tickets))}

    def _inline(self) -> Rates:
        time.sleep(self.still_s)
        learner, tickets = self.learner, self.tickets["inline"]
        at = learner.step
        if not hasattr(self, "here"):
            self.here = stream.Here(learner.config, learner.device)
        blocks = self.here.blocks(Course(learner.plan, at), learner.rank)
        rate = self._rate(tickets, lambda: self._train(blocks, tickets))
        learner.step = at
        return {"inline": rate}

    def _train(self, blocks: Iterator[Block], tickets: int) -> None:
        end = self.learner.step + tickets * self.learner.plan.ticket_steps
        for _ in self.learner.train(blocks, lambda step: "stop" if step == end else "go on"):
            pass

    def _taken(self, tickets: int) -> list[Block]:
        """The next blocks of the stream, used for nothing; the learner steps over them."""
        taken = [next(self.blocks) for _ in range(tickets)]
        self.learner.step += tickets * self.learner.plan.ticket_steps
        return taken

    def _rate(self, tickets: int, work: Callable[[], Any]) -> float:
        """Anchors a second of all learners, from when all begin to when all have ended."""
        self._together_now()
        began = time.perf_counter()
        work()
        self._together_now()
        return tickets * len(self.resident["anchor"]) * self.world / (time.perf_counter() - began)

    def _together_now(self) -> None:
        if self.learner.device.type == "cuda":
            torch.cuda.synchronize(self.learner.device)
        if self.world > 1:
            barrier()

    def _agreed(self, found: Rates) -> Rates:
        return broadcast_from_rank_zero(found if self.learner.rank == 0 else None) if self.world > 1 else found
