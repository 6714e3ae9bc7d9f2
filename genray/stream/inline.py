"""Rendering by the learners themselves, without a pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from genray.stream.attempts import Attempts
from genray.stream.renderer import Renderer, note_rendered
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.types import Block

if TYPE_CHECKING:
    import torch


class InlineGenerator:
    """A learner's own generator, which renders the same blocks as a pool."""

    def __init__(self, run: Run, device: torch.device):
        self.name, directory = run.config.name, run.directory
        self.renderer = Renderer(run.config, device)
        self.attempts = Attempts(
            directory.attempts / "inline", directory.faults, run.config.pool.max_attempts, count_deaths=False
        )

    def blocks(self, course: Course, rank: int) -> Iterator[Block]:
        """The blocks of a learner's tickets, each rendered on demand."""
        for ticket in course.of_learner(rank):
            with self.attempts.at(ticket):
                block = self.renderer.block(ticket)
            note_rendered(self.name, block)
            yield block
