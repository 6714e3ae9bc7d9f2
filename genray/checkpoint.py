"""What a run is resumed from: a directory with the model, the optimiser and the place in the stream.

Files are safetensors and JSON, and one torch file that is only ever read with
`weights_only=True`: nothing that a checkpoint holds is executed.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


@dataclass(frozen=True)
class Place:
    """Where a run stands. Tickets before `next_ticket` have been consumed, all others not at all."""

    step: int = 0
    next_ticket: int = 0


def save(directory: Path, place: Place, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint into an existing directory."""
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, directory / "model.safetensors")
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    (directory / "place.json").write_text(json.dumps(asdict(place)))


def read_place(directory: Path) -> Place:
    """Where the run stood when the checkpoint was written."""
    return Place(**json.loads((directory / "place.json").read_text()))


def last(run_directory: Path) -> Path | None:
    """The last committed checkpoint of a Ray Train run; None before the first."""
    from ray.train import Result

    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it would tell of every checkpoint it finds
    try:
        found = Result.from_path(str(run_directory)).checkpoint
    except RuntimeError:  # nothing has been committed yet
        return None
    return Path(found.path) if found else None


def restore(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Place:
    """Load a checkpoint into the model and the optimiser, and return the place to go on from."""
    model.load_state_dict(load_file(directory / "model.safetensors"))
    optimizer.load_state_dict(torch.load(directory / "optimizer.pt", map_location="cpu", weights_only=True))
    return read_place(directory)
