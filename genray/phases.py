"""The learners' side of `genray bench`: both sides of a run alone and together, in the processes of one run."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import ray.train
import torch
from ray.train.collective import barrier, broadcast_from_rank_zero

from genray import stream
from genray.bench import MOST, Rates
from genray.course import Course
from genray.plan import MIB
from genray.train import learner_here, pool_blocks, together
from genray.views import Block

if TYPE_CHECKING:
    from genray.learner import Learner

STREAMED = ("stream", "together")
ASIDE = ("generator", "inline")
ROUNDS = 4
"""Tickets of each generator in a phase, at the least: they come in bursts."""
HELD = 4
"""Blocks that a learner's own iterator may hold ready, with a margin."""


def bench_loop(arguments: dict[str, Any]) -> list[Rates]:
    """Ray Train's `train_loop_per_worker`; returns what `Phases.measure` found in each repetition."""
    config, context = arguments["config"], ray.train.get_context()
    world = context.get_world_size()
    learner = learner_here(config, context.get_world_rank(), world)
    phases = Phases(learner, together(pool_blocks(config), world), world, arguments["aside"])
    phases.prepare(arguments["seconds"])
    return [phases.measure() for _ in range(arguments["repeats"])]


class Phases:
    """What one learner's process can measure with its stream and its device; all learners do the same at a time.

    The stream goes on by itself during a phase that does not use it, until its look-ahead is full. So what had lain
    ready is passed over before a phase that uses it, and one that does not waits until it stands still.

    Args:
        blocks: this learner's part of the stream.
        world: how many learners there are.
        aside: whether the learners also render; they need the memory for a generator of their own then.
    """

    def __init__(self, learner: Learner, blocks: Iterator[Block], world: int, aside: bool = True):
        self.learner, self.world, self.blocks = learner, world, blocks
        self.generators, _ = learner.config.generators.bounds
        ready = learner.plan.look_ahead + 2 * self.generators  # each may have two tickets in hand
        self.ready = -(-ready // world) + HELD
        self.round = -(-self.generators // world)
        self.anchors = learner.plan.ticket_steps * learner.plan.local_batch
        self.aside: tuple[str, ...] = ("learner", *ASIDE) if aside else ("learner",)
        self.tickets = dict.fromkeys((*self.aside, *STREAMED), 1)
        self.still_s, self.flowing = 0.0, True
        self.before: Rates | None = None
        """What the phases aside have just measured, at the end of the repetition before."""

    def prepare(self, seconds: float) -> None:
        """Warm everything up, and choose for each phase how many tickets take about so many seconds."""
        self.resident = next(self._taken(1))
        self._asides()
        some = max(2, -(-2 * self.generators // self.world))
        render_s = sum(float(block["render_s"][0]) for block in self._taken(some)) / some
        self.still_s = 1.5 * (self.ready * self.world + self.generators) * render_s / self.generators
        anchors = self.anchors * self.world
        rates = self._asides()
        rates["stream"] = self.generators * self.anchors / render_s
        rates["together"] = min(rates["stream"], rates["learner"])
        fewest = ROUNDS * self.round
        tickets = {
            name: max(fewest if name in STREAMED else 1, min(MOST, math.ceil(seconds * rates[name] / anchors)))
            for name in self.tickets
        }
        agreed = (tickets, self.still_s)
        self.tickets, self.still_s = broadcast_from_rank_zero(agreed) if self.world > 1 else agreed

    def measure(self) -> Rates:
        """Both sides alone, together, and alone again, so that what drifts meanwhile weighs on all alike.

        What stands at the end of one repetition is also the beginning of the next.

        Returns:
            Anchors a second over all learners: `learner` on a block that stays, `stream` into nothing, `together`, and
            `inline`, each learner rendering its own tickets; `generator`, those of one that renders in a learner's
            process with all else at rest; `rendering`, those of one generator of the stream in the time in which it
            renders, with the learners at rest; `generators`, how many there are; `blocks_per_s` and `mib_per_s` of the
            stream. Without `aside` there is no `inline`, and `generator` is `rendering`.
        """
        found: dict[str, list[float]] = {}
        rounds = [self.before or self._asides(), self._stream(), self._together(), self._stream(), self._asides()]
        self.before = rounds[-1]
        for part in rounds:
            for key, value in part.items():
                found.setdefault(key, []).append(value)
        rates = {key: sum(values) / len(values) for key, values in found.items()}
        return {"generator": rates["rendering"], **rates}

    def _asides(self) -> Rates:
        """What needs no stream, once that stands still."""
        if self.flowing:
            time.sleep(self.still_s)
        self.flowing = False
        phases = {"learner": self._learner, "generator": self._generator, "inline": self._inline}
        return {name: phases[name]() for name in self.aside}

    def _learner(self) -> float:
        course = Course(self.learner.plan, self.learner.step).of_learner(self.learner.rank)
        resident = ({**self.resident, "position": ticket.positions} for ticket in course)
        return self._trained("learner", resident)

    def _generator(self) -> float:
        tickets = self.tickets["generator"]
        blocks = islice(self._rendered(), tickets)
        return self._rate(tickets, lambda: deque(blocks, maxlen=0)) / self.world

    def _inline(self) -> float:
        return self._trained("inline", self._rendered())

    def _rendered(self) -> Iterator[Block]:
        """The next tickets, rendered here."""
        return self._here.blocks(Course(self.learner.plan, self.learner.step), self.learner.rank)

    @cached_property
    def _here(self) -> stream.Here:
        return stream.Here(self.learner.config, self.learner.device)

    def _trained(self, phase: str, blocks: Iterator[Block]) -> float:
        """The rate of training on something else than the stream, where the learner then stands as before."""
        tickets, at = self.tickets[phase], self.learner.step
        rate = self._rate(tickets, lambda: self._train(blocks, tickets))
        self.learner.step = at
        return rate

    def _stream(self) -> Rates:
        for _ in self._taken(self.ready):
            pass
        tickets, render_s = self.tickets["stream"], list[float]()
        rate = self._rate(tickets, lambda: render_s.extend(float(b["render_s"][0]) for b in self._taken(tickets)))
        blocks_per_s = rate / self.anchors
        return {
            "stream": rate,
            "rendering": tickets * self.anchors / sum(render_s),
            "generators": self.generators,
            "blocks_per_s": blocks_per_s,
            "mib_per_s": blocks_per_s * self.learner.plan.ticket_bytes / MIB,
        }

    def _together(self) -> Rates:
        # Nothing lies ready after blocks were taken as fast as they came, so the learners wait through the first round,
        # which is not counted.
        tickets = self.tickets["together"]
        self._train(self.blocks, self.round)
        return {"together": self._rate(tickets, lambda: self._train(self.blocks, tickets))}

    def _train(self, blocks: Iterator[Block], tickets: int) -> None:
        end = self.learner.step + tickets * self.learner.plan.ticket_steps
        for _ in self.learner.train(blocks, lambda step: "stop" if step == end else "go on"):
            pass

    def _taken(self, tickets: int) -> Iterator[Block]:
        """The next blocks of the stream, used for nothing; the learner steps over them."""
        self.flowing = True
        self.learner.step += tickets * self.learner.plan.ticket_steps
        return islice(self.blocks, tickets)

    def _rate(self, tickets: int, work: Callable[[], Any]) -> float:
        """Anchors a second of all learners, from when all begin to when all have ended."""
        self._meet()
        began = time.perf_counter()
        work()
        self._meet()
        return tickets * self.anchors * self.world / (time.perf_counter() - began)

    def _meet(self) -> None:
        if self.learner.device.type == "cuda":
            torch.cuda.synchronize(self.learner.device)
        if self.world > 1:
            barrier()
