"""Checkpoints: directories with the model, the optimiser and the step, from which a run is resumed.

Files are safetensors and JSON, and one torch file that is only read with `weights_only=True`, so that nothing in a
checkpoint is executed. `checkpoint.json`, written last, holds the lengths and checksums of the others: a checkpoint
that was cut short by a full disk or a kill is detected by them, and the previous one is used.
"""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genray.config.files import write_atomically
from genray.runs import jsonl, store
from genray.runs.directory import RunDirectory
from genray.runs.filenames import CHECKPOINT_PREFIX, CHECKPOINT_STATE

if TYPE_CHECKING:
    import torch
    from torch import nn

MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.pt"
RAY_SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"
"""Ray Train's list of checkpoints, which it does not write atomically."""


@dataclass(frozen=True)
class PartialWindow:
    """The steps since the last record, kept so that the next record is the mean over its whole window."""

    steps: int = 0
    loss: float = 0.0
    """Sum over these steps of the mean over the learners."""
    batches: list[dict[str, Any]] = field(default_factory=list)
    """What each of these steps saw: a line of batches.jsonl."""


def save(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    window: PartialWindow = PartialWindow(),
) -> None:
    """Write a checkpoint into an existing, empty directory."""
    import torch
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, directory / MODEL_FILE)
    torch.save(optimizer.state_dict(), directory / OPTIMIZER_FILE)
    files = {name: _checksum(directory / name) for name in (MODEL_FILE, OPTIMIZER_FILE)}
    content = {"step": step, "window": asdict(window), "files": files}
    write_atomically(directory / CHECKPOINT_STATE, json.dumps({**content, "checksum": _checksum_of(content)}, indent=2))


def read_step(directory: Path) -> int:
    """The number of steps made when the checkpoint was written."""
    return int(json.loads((directory / CHECKPOINT_STATE).read_text())["step"])


def is_intact(directory: Path) -> bool:
    """Whether every file of a checkpoint is as it was written."""
    try:
        content = json.loads((directory / CHECKPOINT_STATE).read_text())
        return content.pop("checksum") == _checksum_of(content) and all(
            _checksum(directory / name) == checksum for name, checksum in content["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def last(run_directory: Path) -> Path | None:
    """The latest checkpoint of a run that is committed and intact; None if there is none.

    Committed checkpoints are those in Ray Train's list, since the reports before them have been recorded too. Without
    a list, they are those whose preceding steps have all been recorded.
    """
    if stored := store.of(run_directory):
        stored.download_checkpoints()
    return next((path for path in reversed(_committed(run_directory)) if is_intact(path)), None)


def last_step(run_directory: Path) -> int:
    """The step of a run's last checkpoint; 0 if there is none."""
    checkpoint = last(run_directory)
    return read_step(checkpoint) if checkpoint else 0


def tidy(run_directory: Path, keep: int) -> list[Path]:
    """Before a run is resumed, delete Ray Train's list if it is wrong, and the checkpoints that are not needed.

    Args:
        run_directory: the run's directory.
        keep: checkpoints to keep if there is no list.

    Returns:
        The damaged checkpoints, which are deleted.
    """
    if stored := store.of(run_directory):
        stored.download_checkpoints()
    checkpoints = [path for path in run_directory.glob(f"{CHECKPOINT_PREFIX}*") if path.is_dir()]
    damaged = [path for path in checkpoints if not is_intact(path)]
    snapshot = run_directory / RAY_SNAPSHOT_FILE
    if not _listed(snapshot) <= {path.name for path in checkpoints if path not in damaged}:
        snapshot.unlink()
        if stored:
            stored.remove(snapshot.name)
    kept = [path for path in _committed(run_directory) if path not in damaged][-keep:]
    kept += [path for path in checkpoints if path.name in _listed(snapshot)]
    for path in checkpoints:
        if path not in kept:
            shutil.rmtree(path)
            if stored:
                stored.remove(path.name)
    return damaged


def _committed(run_directory: Path) -> list[Path]:
    """The committed checkpoints in order, damaged ones included."""
    checkpoints = [file.parent for file in run_directory.glob(f"{CHECKPOINT_PREFIX}*/{CHECKPOINT_STATE}")]
    if listed := _listed(run_directory / RAY_SNAPSHOT_FILE):
        checkpoints = [path for path in checkpoints if path.name in listed]
    else:
        last_recorded = jsonl.last(RunDirectory(run_directory).metrics).get("step", 0)
        checkpoints = [path for path in checkpoints if _is_recorded(path, last_recorded)]
    return sorted(checkpoints, key=_step)


def restore(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, PartialWindow]:
    """Load a checkpoint into the model and the optimiser; returns the step and the partial window."""
    import torch
    from safetensors.torch import load_file

    model.load_state_dict(load_file(directory / MODEL_FILE))
    optimizer.load_state_dict(torch.load(directory / OPTIMIZER_FILE, map_location="cpu", weights_only=True))
    return read_step(directory), PartialWindow(**json.loads((directory / CHECKPOINT_STATE).read_text())["window"])


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


def _is_recorded(directory: Path, last_recorded: int) -> bool:
    """Whether all steps before a checkpoint's partial window have been recorded."""
    try:
        steps = int(json.loads((directory / CHECKPOINT_STATE).read_text())["window"]["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return _step(directory) - steps <= last_recorded


def _listed(snapshot: Path) -> set[str]:
    """Names of the checkpoints in Ray Train's list; an unreadable list names one that does not exist."""
    if not snapshot.exists():
        return set()
    try:
        results = json.loads(snapshot.read_text())["checkpoint_results"]
        return {str(result["checkpoint_dir_name"]) for result in results}
    except (ValueError, KeyError, TypeError):
        return {""}
