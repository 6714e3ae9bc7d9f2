"""Learners and encoders as their runs left them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoders import config_of

from genray.config.errors import UserError
from genray.learner.learner import Learner
from genray.learner.load import load_encoder, load_learner
from genray.runs import jsonl
from genray.stream.run import Run

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """One that has begun, without a checkpoint."""
    found = Run.of(config_of("simclr", storage_path=str(tmp_path)))
    found.directory.claim(found.config)
    return found


def checkpointed(run: Run, step: int) -> Learner:
    """The learner that wrote a checkpoint of a step; its weights are no fresh ones, and its own for each step."""
    learner = Learner(run, 0, CPU)
    with torch.no_grad():
        for parameter in learner.encoder.parameters():
            parameter.add_(0.01 * step * torch.ones_like(parameter).cumsum(0).sin())
    learner.step = step
    directory = run.directory.path / f"checkpoint_{step}"
    directory.mkdir()
    learner.save(directory)
    jsonl.append(run.directory.metrics, {"step": step})
    return learner


def same(one: Learner, other: Learner) -> bool:
    state = other.encoder.state_dict()
    return all(torch.equal(value.cpu(), state[name]) for name, value in one.encoder.state_dict().items())


def test_a_learner_is_the_one_of_the_last_checkpoint_wherever_the_run_has_been_moved(run: Run, tmp_path: Path) -> None:
    first, last = checkpointed(run, 4), checkpointed(run, 8)
    moved = run.directory.path.rename(tmp_path / "elsewhere")
    found, untrained = load_learner(moved), load_learner(moved, trained=False)
    assert (found.step, untrained.step) == (8, 0)
    assert same(found, last)
    assert not same(found, first)
    assert same(untrained, Learner(run, 0, CPU))


def test_an_encoder_makes_features_of_pixels(run: Run) -> None:
    learner = checkpointed(run, 4)
    encoder = load_encoder(run.directory.path)
    assert (encoder.run, encoder.step, encoder.geometry.size) == (run.directory.path, 4, learner.policy.size)
    pixels = torch.randint(0, 256, (5, 3, 7, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    expected = learner.features((pixels / 255 - mean) / std)
    found = encoder.features(pixels)
    assert (found.shape, found.dtype, found.requires_grad) == ((5, 12), torch.float32, False)
    torch.testing.assert_close(found, expected)


def test_what_is_no_run_or_has_no_checkpoint_is_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the run must be a directory with config\.json, got '.*/none'$"):
        load_learner(tmp_path / "none")
    with pytest.raises(UserError, match=r"^the run must have a checkpoint, got '.*/small', which has none yet$"):
        load_learner(run.directory.path)
    with pytest.raises(UserError, match=r"^the run must have a checkpoint"):
        load_encoder(run.directory.path)
    assert load_learner(run.directory.path, trained=False).step == 0
