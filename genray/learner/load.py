"""Loads learners from their runs, and their encoders as backbones to be judged."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from genray.config.errors import UserError
from genray.config.load import load
from genray.learner.learner import Learner
from genray.probes.backbones import Backbone
from genray.probes.backbones import load as load_backbone
from genray.probes.crops import Geometry
from genray.runs import checkpoint
from genray.runs.directory import RunDirectory
from genray.stream.run import Run
from genray.views.pin import pinned


def load_learner(path: Path, trained: bool = True) -> Learner:
    """The learner of a run's last checkpoint, or of its start if not `trained`; on a GPU if there is one.

    Raises:
        UserError: there is no such run, or it has no checkpoint yet.
    """
    if not RunDirectory(path).config.exists():
        raise UserError(f"the run must be a directory with config.json, got {str(path)!r}")
    run = Run.of(pinned(load(str(path.absolute()))))
    learner = Learner(run, 0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if not trained:
        return learner
    directory = checkpoint.last(path.absolute())
    if directory is None:
        raise UserError(f"the run must have a checkpoint, got {str(path)!r}, which has none yet")
    learner.restore(directory)
    return learner


def restored_learner(run: Run, rank: int) -> Learner:
    """The learner of this Ray Train worker, restored from the run's last checkpoint if there is one."""
    import ray.train.torch

    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # blocks are only read
    learner = Learner(run, rank, ray.train.torch.get_device())
    if (last := checkpoint.last(run.directory.path)) is not None:
        learner.restore(last)
    return learner


def backbone_of(learner: Learner) -> Backbone:
    """A learner's encoder as a backbone, judged on images of the size that it was trained on."""
    side = learner.policy.size
    return Backbone(
        name=learner.config.name,
        module=learner.encoder.backbone,
        geometry=Geometry(side, side),
        channels_last=learner.config.model.channels_last,
        step=learner.step,
    )


def open_run(path: Path, trained: bool) -> Backbone:
    """The encoder of a run's directory as a backbone, trained or as initialised; raises UserError."""
    return backbone_of(load_learner(path, trained))


def load_encoder(source: str | Path) -> Backbone:
    """A frozen encoder from images to features, on the CPU in evaluation mode.

    >>> load_encoder("runs/demo").features(pixels)  # uint8 [n, 3, H, W] -> float32 [n, F]

    Args:
        source: a run's directory or address (its last checkpoint is used), an export, or anything else that
            `genray evaluate` takes.

    Raises:
        UserError: there is no encoder there.
    """
    return load_backbone(str(source), open_run)
