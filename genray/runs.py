"""What can be done with a run after it, or before it: judge it, export it, draw what it will see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genray import checkpoint, cluster, configure, export, preview
from genray.config import Config
from genray.learner import Learner
from genray.probes import data, extraction, judge, recorded
from genray.probes.backbones import load as load_backbone
from genray.probes.judge import Settings
from genray.probes.settings import FORMS, ProbeName, title
from genray.rundir import RunDirectory
from genray.settings import UserError
from genray.train import final_probes
from genray.views import Renderer


def load_learner(path: Path, trained: bool = True) -> Learner:
    """A learner with the last committed checkpoint of a run, or as it began, on this machine's best device.

    Raises:
        UserError: there is no such run, or it has no checkpoint yet.
    """
    if not RunDirectory(path).config.exists():
        raise UserError(f"the run must be a directory with config.json, got {str(path)!r}")
    learner = Learner(
        configure.load(str(path.absolute())), 0, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    if not trained:
        return learner
    directory = checkpoint.last(path.absolute())
    if directory is None:
        raise UserError(f"the run must have a checkpoint, got {str(path)!r}, which has none yet")
    learner.restore(directory)
    return learner


def evaluate_run(path: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, dict[str, float]]:
    """kNN and linear probe of a run's last checkpoint, of the untrained encoder and of raw pixels, as at its end."""
    learner = load_learner(path)
    config = learner.config
    if config.probe.data is None:
        raise UserError("probe.data must name labelled images to judge on, got none; this run was trained without")
    found = final_probes(learner)
    say(recorded.record(config, path.absolute(), learner.step, title(config.probe.data), found["trained"]))
    return found


def evaluate(
    names: Sequence[str],
    described: str | None,
    probes: Sequence[ProbeName],
    settings: Settings,
    *,
    weights: Path | None = None,
    size: int | None = None,
    mirror: bool = True,
    actors: int = 1,
    num_gpus: float | None = None,
    address: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Judge backbones on labelled images; what is found of runs is recorded with them.

    Args:
        names: see `genray.probes.backbones.load`.
        described: see `genray.probes.data.load`; those of the first run where it is not given.
        probes: those that suit the images; the usual ones where it is empty.
        settings: the numbers of the probes.
        weights: a file of weights for timm's or torchvision's model.
        size: pixels of a side to judge at.
        mirror: whether random crops may be mirrored; never those of images that are known not to bear it.
        actors: processes of Ray Data that hold a backbone.
        num_gpus: GPUs of each.
        address: Ray cluster to join, where it is neither RAY_ADDRESS nor one to be started here.
        say: takes lines for the user.

    Returns:
        What `genray.probes.judge.judge` does.

    Raises:
        UserError: something of it is not there, or does not suit the rest.
    """
    published = [name for name in names if name.startswith(("timm:", "torchvision:"))]
    if weights is not None and len(published) != 1:
        raise UserError(f"--weights must go with one timm:MODEL or torchvision:MODEL, got {len(published)} of them")
    backbones = [load_backbone(name, weights if name in published else None, size) for name in names]
    configs = {backbone.name: configure.load(str(backbone.run)) for backbone in backbones if backbone.run}
    described = described or next((config.probe.data for config in configs.values()), None)
    if described is None:
        raise UserError(f"--data must name labelled images to judge on, got none; it may be {FORMS}")
    images = data.load(described)
    images = replace(images, mirrored=images.mirrored and mirror)
    images.check_suits(probes, "--probe")
    if images.train.pixels is not None:  # they lie in memory: other processes would only have to be started
        found = judge.judge(backbones, images, probes, settings, extraction.Here(), say)
    else:
        with cluster.joined(address):
            found = judge.judge(backbones, images, probes, settings, extraction.OnRay(actors, num_gpus), say)
    how = {**asdict(settings), "mirror": images.mirrored, **({"size": size} if size else {})}
    for backbone in backbones:
        if backbone.run is not None:
            metrics = found["backbones"][backbone.name]
            say(recorded.record(configs[backbone.name], backbone.run, backbone.step, images.name, metrics, how))
    return found


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
