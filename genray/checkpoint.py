"""What a run is resumed from: a directory with the model, the optimiser and the number of steps made.

Files are safetensors and JSON, and one torch file that is only ever read with `weights_only=True`: nothing that a
checkpoint holds is executed. `checkpoint.json`, written last, has the length and the checksum of the others. A
checkpoint that was cut short, by a full disk or by a kill, is told by that, and the one before it is used.
"""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genray import records, storage
from genray.rundir import RunDirectory, write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

STATE, MODEL, OPTIMIZER = "checkpoint.json", "model.safetensors", "optimizer.pt"
RAY_STATE = "checkpoint_manager_snapshot.json"
"""Ray Train's list of checkpoints, which it does not write atomically."""


@dataclass(frozen=True)
class Open:
    """The steps since the last record, so that the next one is the mean over all of its window."""

    steps: int = 0
    loss: float = 0.0
    """Sum over these steps, mean over the learners."""
    batches: list[dict[str, Any]] = field(default_factory=list)
    """What each of them saw."""


def save(directory: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, window: Open = Open()) -> None:
    """Write a checkpoint into an existing directory."""
    import torch
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, directory / MODEL)
    torch.save(optimizer.state_dict(), directory / OPTIMIZER)
    files = {name: _checksum(directory / name) for name in (MODEL, OPTIMIZER)}
    content = {"step": step, "window": asdict(window), "files": files}
    write_atomically(directory / STATE, json.dumps({**content, "checksum": _checksum_of(content)}, indent=2))


def read_step(directory: Path) -> int:
    """Steps that had been made when the checkpoint was written."""
    return int(json.loads((directory / STATE).read_text())["step"])


def is_whole(directory: Path) -> bool:
    """Whether every file of a checkpoint is there as it was written."""
    try:
        content = json.loads((directory / STATE).read_text())
        return content.pop("checksum") == _checksum_of(content) and all(
            _checksum(directory / name) == checksum for name, checksum in content["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def last(run_directory: Path) -> Path | None:
    """The committed checkpoint of a run that is furthest on, of those that are whole; None where there is none.

    Committed are those in Ray Train's list: the reports before them have been recorded too. Where there is no list,
    it is those that follow upon the last record.
    """
    if stored := storage.of(run_directory):
        stored.pull_checkpoints()
    return next((path for path in reversed(_committed(run_directory)) if is_whole(path)), None)


def last_step(run_directory: Path) -> int:
    """Steps that a run has made for good: those of its last checkpoint; 0 where there is none."""
    found = last(run_directory)
    return read_step(found) if found else 0


def tidy(run_directory: Path, keep: int) -> list[Path]:
    """Before a run goes on: drop Ray Train's list where it is wrong, and the checkpoints that nothing will lead to.

    Returns:
        The checkpoints that were not whole, which are gone.
    """
    if stored := storage.of(run_directory):
        stored.pull_checkpoints()
    found = [path for path in run_directory.glob("checkpoint_*") if path.is_dir()]
    broken = [path for path in found if not is_whole(path)]
    snapshot = run_directory / RAY_STATE
    if not _names(snapshot) <= {path.name for path in found if path not in broken}:
        snapshot.unlink()
        if stored:
            stored.remove(snapshot.name)
    kept = [path for path in _committed(run_directory) if path not in broken][-keep:]
    kept += [path for path in found if path.name in _names(snapshot)]
    for path in found:
        if path not in kept:
            shutil.rmtree(path)
            if stored:
                stored.remove(path.name)
    return broken


def _committed(run_directory: Path) -> list[Path]:
    found = [file.parent for file in run_directory.glob(f"checkpoint_*/{STATE}")]
    if listed := _names(run_directory / RAY_STATE):
        found = [path for path in found if path.name in listed]
    else:
        recorded = records.last(RunDirectory(run_directory).metrics).get("step", 0)
        found = [path for path in found if _follows(path, recorded)]
    return sorted(found, key=_step)


def restore(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Open]:
    """Load a checkpoint into the model and the optimiser; returns the steps made and the open window."""
    import torch
    from safetensors.torch import load_file

    model.load_state_dict(load_file(directory / MODEL))
    optimizer.load_state_dict(torch.load(directory / OPTIMIZER, map_location="cpu", weights_only=True))
    return read_step(directory), Open(**json.loads((directory / STATE).read_text())["window"])


def _checksum_of(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksum(path: Path) -> list[int]:
    """Length and CRC-32."""
    checksum = length = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            checksum, length = zlib.crc32(piece, checksum), length + len(piece)
    return [length, checksum]


def _step(directory: Path) -> int:
    try:
        return read_step(directory)
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _follows(directory: Path, recorded: int) -> bool:
    """Whether all steps before a checkpoint's open window are recorded."""
    try:
        steps = int(json.loads((directory / STATE).read_text())["window"]["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return _step(directory) - steps <= recorded


def _names(snapshot: Path) -> set[str]:
    """The checkpoints in Ray Train's list; one that cannot be read lists what no directory is called."""
    if not snapshot.exists():
        return set()
    try:
        return {str(found["checkpoint_dir_name"]) for found in json.loads(snapshot.read_text())["checkpoint_results"]}
    except (ValueError, KeyError, TypeError):
        return {""}
