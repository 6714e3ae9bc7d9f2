"""What can be done with a run after it, or before it: judge it, export it, draw what it will see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from genray import checkpoint, configure, export, preview
from genray.config import Config
from genray.learner import Learner
from genray.rundir import RunDirectory
from genray.settings import UserError
from genray.train import final_probes
from genray.views import Renderer


def load_learner(path: Path) -> Learner:
    """A learner with the last committed checkpoint of a run, on this machine's best device.

    Raises:
        UserError: there is no such run, or it has no checkpoint yet.
    """
    if not RunDirectory(path).config.exists():
        raise UserError(f"the run must be a directory with config.json, got {str(path)!r}")
    learner = Learner(
        configure.load(str(path.absolute())), 0, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    directory = checkpoint.last(path.absolute())
    if directory is None:
        raise UserError(f"the run must have a checkpoint, got {str(path)!r}, which has none yet")
    learner.restore(directory)
    return learner


def evaluate_run(path: Path) -> dict[str, dict[str, float]]:
    """kNN and linear probe of a run's last checkpoint, of the untrained encoder and of raw pixels."""
    learner = load_learner(path)
    if learner.config.probe.data is None:
        raise UserError("probe.data must name labelled images to judge on, got none; this run was trained without")
    return final_probes(learner)


def export_run(path: Path, to: Path | None) -> list[str]:
    """Write a run's backbone for other programs; returns how each format is loaded, or why it is not there."""
    learner = load_learner(path)
    directory = to or RunDirectory(path).export
    return export.export_run(learner.encoder.state_dict(), learner.config, directory, learner.policy.size)


def draw(config: Config, out: Path, anchors: int) -> None:
    """Draw the first anchors of a run as a PNG: each with its latent views and its augmented views."""
    shown = Renderer(config).shown(np.arange(anchors))
    learner = Learner(config, 0, torch.device("cpu"))
    preview.save(out, shown["views"], learner.images(shown))
