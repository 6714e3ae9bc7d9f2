"""A learner on a small encoder, and the blocks of its whole run, rendered once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch

from genray.config.load import build
from genray.config.run import Config
from genray.learner.learner import Learner, Request
from genray.stream.renderer import Renderer
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.types import Block

CPU = torch.device("cpu")
BATCH, TICKETS = 16, 8


def tiny(**sections: Any) -> Config:
    """32 steps at the most, of 16 anchors on a small encoder; four steps a ticket."""
    values: dict[str, Any] = {
        "name": "tiny",
        "generator": {"micro_batch": 128},
        "view": {"std": 0.2},  # an easy task, so that few steps show
        "stream": {"batch_size": BATCH, "ticket_batches": 4},
        "augment": {"policy": "digits"},
        "objective": {"temperature": 0.2},
        "model": {
            "backbone": "resnet18",
            "model_args": {
                "layers": [1, 1, 0, 0],
                "channels": [16, 32, 32, 32],
                "stem_width": 8,
                "zero_init_last": False,
            },
            "projection": [32, 16],
        },
        "optimizer": {"kind": "adamw", "lr": 3e-3},
        "training": {"steps": 4 * TICKETS, "log_every": 1},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return build(values)


def rendered(config: Config) -> list[Block]:
    """The tickets of a run of one learner."""
    renderer = Renderer(config, CPU)
    return [renderer.block(ticket) for ticket in Course(Run.of(config).plan).of_learner(0)]


@cache
def whole_run() -> list[Block]:
    """The tickets of `tiny`'s 32 steps, with the embedded generator; they are only read."""
    return rendered(tiny())


def learner(**sections: Any) -> Learner:
    """The only one of a run of `tiny`."""
    return Learner(Run.of(tiny(**sections)), 0, CPU)


def portions(blocks: list[Block], made: Learner) -> Iterator[Block]:
    """What the stream gives this learner from where it stands, cut from the blocks of the whole run."""
    whole = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    for ticket in Course(made.plan, made.step).of_learner(made.rank):
        block = {name: column[ticket.positions] for name, column in whole.items()}
        yield {**block, "ticket": np.full(len(ticket.positions), ticket.number)}


def train(
    made: Learner, blocks: list[Block], asked: Callable[[int], Request] = lambda step: "continue"
) -> tuple[list[dict[str, Any]], list[int]]:
    """All records of a run from where the learner stands, and the steps at which a checkpoint was due."""
    records, saved = [], []
    for record, checkpoint in made.train(portions(blocks, made), asked):
        assert bool(record) != checkpoint
        if checkpoint:
            saved.append(made.step)
        else:
            records.append(record)
    return records, saved


def wishes(**at: Request) -> Callable[[int], Request]:
    """What is asked after the steps `s1`, `s2`, …; else to go on."""
    return lambda step: at.get(f"s{step}", "continue")
