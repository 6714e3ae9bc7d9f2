"""What `genray bench` runs in each of Ray Train's workers: it measures both sides of a run alone and together."""

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

from genray.commands.bench.rates import MAX_PHASE_TICKETS, Rates
from genray.learner.load import restored_learner
from genray.learner.worker import pool_blocks, synchronised
from genray.stream.inline import InlineGenerator
from genray.stream.plan import MIB
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.types import Block

if TYPE_CHECKING:
    from genray.learner.learner import Learner

STREAM_PHASES = ("stream", "together")
RENDER_PHASES = ("generator", "inline")
"""Phases in which the learners render."""
MIN_ROUNDS = 4
"""Tickets of each generator in a phase at least, since they arrive in bursts."""
ITERATOR_BLOCKS = 4
"""Blocks that the iterator of a learner may hold, with a margin."""


def bench_loop(arguments: dict[str, Any]) -> list[Rates]:
    """Ray Train's `train_loop_per_worker`; returns what `Phases.measure` returned in each repetition."""
    context = ray.train.get_context()
    world = context.get_world_size()
    run: Run = arguments["run"].with_learners(world)
    learner = restored_learner(run, context.get_world_rank())
    phases = Phases(learner, synchronised(pool_blocks(run), world), world, arguments["inline"])
    phases.prepare(arguments["seconds"])
    return [phases.measure() for _ in range(arguments["repeats"])]


class Phases:
    """The measurements of one learner; all learners make the same ones at the same time.

    The stream keeps running until its look-ahead is full, even in phases that do not use it. So a phase that uses it
    first skips the blocks that lie ready, and a phase that does not first waits until the stream has stopped.

    Args:
        learner: of this process.
        blocks: this learner's part of the stream.
        world: number of learners.
        inline: whether the learners also render; each then needs memory for a generator.
    """

    def __init__(self, learner: Learner, blocks: Iterator[Block], world: int, inline: bool = True):
        self.learner, self.world, self.blocks = learner, world, blocks
        self.generators, _ = learner.config.pool.bounds
        ready = learner.plan.look_ahead + 2 * self.generators  # each generator may have two tickets in work
        self.ready = -(-ready // world) + ITERATOR_BLOCKS
        """Tickets of this learner that may lie ready."""
        self.round = -(-self.generators // world)
        """Tickets of this learner in which each generator renders about one."""
        self.anchors = learner.plan.ticket_steps * learner.plan.local_batch
        """Anchors in a ticket."""
        self.idle_phases: tuple[str, ...] = ("learner", *RENDER_PHASES) if inline else ("learner",)
        """Phases that need the stream to stand still."""
        self.tickets = dict.fromkeys((*self.idle_phases, *STREAM_PHASES), 1)
        """Tickets of this learner in each phase."""
        self.stop_s, self.running = 0.0, True
        """Seconds until an unused stream has stopped, and whether it may be running."""
        self.previous: Rates | None = None
        """Rates of the idle phases at the end of the repetition before."""

    def prepare(self, seconds: float) -> None:
        """Warm up, and choose the number of tickets of each phase, so that it takes about this many seconds."""
        self.block = next(self._take(1))
        self.measure_idle()
        count = max(2, -(-2 * self.generators // self.world))
        render_s = sum(float(block["render_s"][0]) for block in self._take(count)) / count
        self.stop_s = 1.5 * (self.ready * self.world + self.generators) * render_s / self.generators
        anchors = self.anchors * self.world
        rates = self.measure_idle()
        rates["stream"] = self.generators * self.anchors / render_s
        rates["together"] = min(rates["stream"], rates["learner"])
        least = {name: MIN_ROUNDS * self.round if name in STREAM_PHASES else 1 for name in self.tickets}
        tickets = {
            name: max(least[name], min(MAX_PHASE_TICKETS, math.ceil(seconds * rates[name] / anchors)))
            for name in self.tickets
        }
        own = (tickets, self.stop_s)
        self.tickets, self.stop_s = broadcast_from_rank_zero(own) if self.world > 1 else own

    def measure(self) -> Rates:
        """One repetition: both sides alone, together, and alone again, so that a drift affects all of them alike.

        The last measurement of one repetition is also the first of the next.

        Returns:
            In anchors per second over all learners: `learner`, training on one block in memory; `stream`, without
            training; `together`; and `inline`, each learner rendering its own tickets. In anchors per second of one
            generator: `generator`, in a learner's process with everything else idle, and `rendering`, in the pool while
            it renders, with idle learners. Also `generators`, their number, and `blocks_per_s` and `mib_per_s` of the
            stream. Without `inline` rendering there is no `inline`, and `generator` is `rendering`.
        """
        values: dict[str, list[float]] = {}
        parts = [
            self.previous or self.measure_idle(),
            self._stream(),
            self._together(),
            self._stream(),
            self.measure_idle(),
        ]
        self.previous = parts[-1]
        for part in parts:
            for key, value in part.items():
                values.setdefault(key, []).append(value)
        rates = {key: sum(of) / len(of) for key, of in values.items()}
        return {"generator": rates["rendering"], **rates}

    def measure_idle(self) -> Rates:
        """The phases without the stream, after waiting until it has stopped."""
        if self.running:
            time.sleep(self.stop_s)
        self.running = False
        phases = {"learner": self._learner, "generator": self._generator, "inline": self._inline}
        return {name: phases[name]() for name in self.idle_phases}

    def _learner(self) -> float:
        course = Course(self.learner.plan, self.learner.step).of_learner(self.learner.rank)
        same_block = ({**self.block, "position": ticket.positions} for ticket in course)
        return self._train_aside("learner", same_block)

    def _generator(self) -> float:
        tickets = self.tickets["generator"]
        blocks = islice(self._rendered(), tickets)
        return self._rate(tickets, lambda: deque(blocks, maxlen=0)) / self.world

    def _inline(self) -> float:
        return self._train_aside("inline", self._rendered())

    def _rendered(self) -> Iterator[Block]:
        """The next tickets, rendered here."""
        return self._inline_generator.blocks(Course(self.learner.plan, self.learner.step), self.learner.rank)

    @cached_property
    def _inline_generator(self) -> InlineGenerator:
        return InlineGenerator(self.learner.run, self.learner.device)

    def _train_aside(self, phase: str, blocks: Iterator[Block]) -> float:
        """The rate of training on other blocks than the stream's; the learner's place in the stream is kept."""
        tickets, step = self.tickets[phase], self.learner.step
        rate = self._rate(tickets, lambda: self._train(blocks, tickets))
        self.learner.step = step
        return rate

    def _stream(self) -> Rates:
        for _ in self._take(self.ready):
            pass
        tickets, render_s = self.tickets["stream"], list[float]()
        rate = self._rate(tickets, lambda: render_s.extend(float(b["render_s"][0]) for b in self._take(tickets)))
        blocks_per_s = rate / self.anchors
        return {
            "stream": rate,
            "rendering": tickets * self.anchors / sum(render_s),
            "generators": self.generators,
            "blocks_per_s": blocks_per_s,
            "mib_per_s": blocks_per_s * self.learner.plan.ticket_bytes / MIB,
        }

    def _together(self) -> Rates:
        # After `_stream` no block lies ready, so the learners wait through the first round, which does not count.
        tickets = self.tickets["together"]
        self._train(self.blocks, self.round)
        return {"together": self._rate(tickets, lambda: self._train(self.blocks, tickets))}

    def _train(self, blocks: Iterator[Block], tickets: int) -> None:
        end = self.learner.step + tickets * self.learner.plan.ticket_steps
        for _ in self.learner.train(blocks, lambda step: "stop" if step == end else "continue"):
            pass

    def _take(self, tickets: int) -> Iterator[Block]:
        """The next blocks of the stream, which the learner skips."""
        self.running = True
        self.learner.step += tickets * self.learner.plan.ticket_steps
        return islice(self.blocks, tickets)

    def _rate(self, tickets: int, work: Callable[[], Any]) -> float:
        """Anchors per second of all learners together, from a common start to the end of the last one."""
        self._synchronise()
        began = time.perf_counter()
        work()
        self._synchronise()
        return tickets * self.anchors * self.world / (time.perf_counter() - began)

    def _synchronise(self) -> None:
        """Wait for this learner's device, then for all learners."""
        if self.learner.device.type == "cuda":
            torch.cuda.synchronize(self.learner.device)
        if self.world > 1:
            barrier()
