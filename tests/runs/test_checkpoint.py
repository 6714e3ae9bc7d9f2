"""What is saved comes back bit by bit, and nothing in it is executed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genray.config.sections import LARS, SGD, AdamW
from genray.learner import optim
from genray.runs import checkpoint


def network(layout: torch.memory_format, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *pooled, nn.Linear(8, 4)).to(
        memory_format=layout
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    optimizer.zero_grad()
    loss = model(images).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("config", [SGD(), AdamW(), LARS()], ids=lambda config: config.kind)
def test_a_restored_run_goes_on_bit_by_bit(
    config: SGD | AdamW | LARS, layout: torch.memory_format, tmp_path: Path
) -> None:
    images = torch.rand(3, 6, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    model = network(layout, seed=0)
    optimizer = optim.build(config, model)
    step(model, optimizer, images[0])
    step(model, optimizer, images[1])
    window = checkpoint.PartialWindow(
        3, 1.5, [{"step": 2, "learners": 1, "tickets": [0, 0], "latents": "00", "pixels": "ff"}]
    )
    checkpoint.save(tmp_path, 2, model, optimizer, window)

    other = network(layout, seed=1)
    resumed = optim.build(config, other)
    assert checkpoint.restore(tmp_path, other, resumed) == (2, window)
    assert other[0].weight.is_contiguous(memory_format=layout)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0)

    assert step(other, resumed, images[2]) == step(model, optimizer, images[2])
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0)


def test_the_step_is_read_alone(tmp_path: Path) -> None:
    model = network(torch.contiguous_format, 0)
    checkpoint.save(tmp_path, 7, model, optim.build(SGD(), model))
    for name in ("model.safetensors", "optimizer.pt"):
        (tmp_path / name).unlink()
    assert checkpoint.read_step(tmp_path) == 7


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("archive", [True, False])
def test_nothing_in_a_checkpoint_is_executed(archive: bool, tmp_path: Path) -> None:
    model = network(torch.contiguous_format, 0)
    optimizer = optim.build(SGD(), model)
    checkpoint.save(tmp_path, 0, model, optimizer)
    evil = {**optimizer.state_dict(), "state": Evil(f"touch {tmp_path}/executed")}
    if archive:
        torch.save(evil, tmp_path / "optimizer.pt")
    else:
        (tmp_path / "optimizer.pt").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.restore(tmp_path, model, optimizer)
    assert not (tmp_path / "executed").exists()


def test_a_run_without_a_checkpoint_has_none(tmp_path: Path) -> None:
    assert checkpoint.last(tmp_path) is None
    assert checkpoint.tidy(tmp_path, keep=2) == []


def written(run: Path, step: int, open_steps: int = 0) -> Path:
    directory = run / f"checkpoint_{step}"
    directory.mkdir()
    model = network(torch.contiguous_format, step)
    checkpoint.save(directory, step, model, optim.build(SGD(), model), checkpoint.PartialWindow(open_steps))
    return directory


def record(run: Path, step: int) -> None:
    (run / "metrics.jsonl").write_text(json.dumps({"step": step, "time": 1.0}) + "\n")


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def change_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "checkpoint.json"])
@pytest.mark.parametrize("spoil", [cut_short, change_a_bit, Path.unlink], ids=["cut short", "changed", "missing"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    name: str, spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    record(tmp_path, 12)
    for step in (4, 8, 12):
        written(tmp_path, step)
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint_12"
    spoil(tmp_path / "checkpoint_12" / name)
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint_8"
    assert checkpoint.tidy(tmp_path, keep=1) == [tmp_path / "checkpoint_12"]
    assert sorted(path.name for path in tmp_path.glob("checkpoint_*")) == ["checkpoint_8"]


def test_a_checkpoint_of_another_step_than_was_written_is_passed_over(tmp_path: Path) -> None:
    record(tmp_path, 8)
    written(tmp_path, 4)
    state = written(tmp_path, 8) / "checkpoint.json"
    state.write_text(state.read_text().replace('"step": 8', '"step": 7'))
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint_4"


@pytest.mark.parametrize(
    ("listed", "stays"),
    [
        ('{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_4"}]}', True),
        ('{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_5"}]}', False),  # it is gone
        ('{"checkpoint_results": [{"checkpoint_dir_na', False),
        ("", False),
        ("[]", False),
    ],
)
def test_a_list_of_checkpoints_that_ray_train_could_not_start_from_is_dropped(
    listed: str, stays: bool, tmp_path: Path
) -> None:
    snapshot = tmp_path / checkpoint.RAY_SNAPSHOT_FILE
    snapshot.write_text(listed)
    record(tmp_path, 8)
    for step in (4, 8):
        written(tmp_path, step)
    checkpoint.tidy(tmp_path, keep=1)
    assert snapshot.exists() == stays
    (kept,) = (path for path in tmp_path.glob("checkpoint_*") if path.is_dir())
    assert kept.name == ("checkpoint_4" if stays else "checkpoint_8")  # what is not in a sound list is not committed
    assert checkpoint.last(tmp_path) == kept


def test_a_checkpoint_ahead_of_the_records_is_not_committed(tmp_path: Path) -> None:
    """Its run was killed before what was recorded up to it was written; the steps would be missing."""
    written(tmp_path, 4)
    written(tmp_path, 8)
    record(tmp_path, 4)
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint_4"
    record(tmp_path, 8)
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint_8"
    snapshot = tmp_path / checkpoint.RAY_SNAPSHOT_FILE
    snapshot.write_text('{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_4"}]}')
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint_4"


def test_the_open_window_of_a_checkpoint_need_not_be_recorded(tmp_path: Path) -> None:
    """What these steps saw is in the checkpoint, and comes with the next record."""
    written(tmp_path, 6, open_steps=2)
    record(tmp_path, 3)
    assert checkpoint.last(tmp_path) is None
    record(tmp_path, 4)
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint_6"
