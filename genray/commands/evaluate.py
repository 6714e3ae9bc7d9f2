"""`genray evaluate`: judges the encoders of runs, and other backbones, on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from genray.cluster import ray_cluster
from genray.config.errors import UserError
from genray.config.load import load
from genray.config.probe import DATA_SYNTAX, ProbeName, data_title
from genray.learner.load import load_learner, open_run
from genray.learner.worker import final_probes
from genray.probes import data, extraction, judge
from genray.probes.backbones import load as load_backbone
from genray.probes.judge import ProbeSettings
from genray.tracking import probe_results


def evaluate_run(path: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, dict[str, float]]:
    """Repeat a run's final evaluation with its last checkpoint, and record the results.

    Returns:
        Accuracies by kNN and linear probe of the trained encoder, the untrained encoder and raw pixels.

    Raises:
        UserError: there is no such run or no checkpoint, or it has no labelled images.
    """
    learner = load_learner(path)
    config = learner.config
    if config.probe.data is None:
        raise UserError("probe.data must name labelled images to judge on, got none; this run was trained without")
    probes = final_probes(learner)
    images = data_title(config.probe.data)
    say(probe_results.record_results(config, path.absolute(), learner.step, images, probes["trained"]))
    return probes


def evaluate(
    names: str | Sequence[str],
    images: str | None = None,
    probes: Sequence[ProbeName] = (),
    settings: ProbeSettings = ProbeSettings(),
    *,
    weights: Path | None = None,
    size: int | None = None,
    mirror: bool = True,
    actors: int = 1,
    num_gpus: float | None = None,
    address: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Judge backbones on labelled images; the results of runs are recorded with them.

    Args:
        names: of the backbones, or one name; see `genray.probes.backbones.load`.
        images: see `genray.probes.data.load`; by default those of the first run.
        probes: which must suit the images; the usual ones if empty.
        settings: of the probes.
        weights: a file of weights for timm's or torchvision's model.
        size: pixels of a side to judge at.
        mirror: whether random crops may be mirrored; images that mirroring would spoil never are.
        actors: Ray Data processes that hold a backbone.
        num_gpus: GPUs of each.
        address: of the Ray cluster to join; by default RAY_ADDRESS, else a Ray started on this machine.
        say: called with each line for the user.

    Returns:
        The result of `genray.probes.judge.judge`.

    Raises:
        UserError: a backbone or the images do not exist, or do not suit each other or the probes.
    """
    names = [names] if isinstance(names, str) else names
    published = [name for name in names if name.startswith(("timm:", "torchvision:"))]
    if weights is not None and len(published) != 1:
        raise UserError(f"--weights must go with one timm:MODEL or torchvision:MODEL, got {len(published)} of them")
    backbones = [load_backbone(name, open_run, weights if name in published else None, size) for name in names]
    configs = {backbone.name: load(str(backbone.run)) for backbone in backbones if backbone.run}
    images = images or next((config.probe.data for config in configs.values()), None)
    if images is None:
        raise UserError(f"--data must name labelled images to judge on, got none; it may be {DATA_SYNTAX}")
    labelled = data.load(images)
    labelled = replace(labelled, may_mirror=labelled.may_mirror and mirror)
    labelled.check_suits(probes, "--probe")
    if labelled.train.pixels is not None:  # the images are in memory: other processes would only take time to start
        report = judge.judge(backbones, labelled, probes, settings, extraction.LocalExtractor(), say)
    else:
        with ray_cluster.joined(address):
            report = judge.judge(backbones, labelled, probes, settings, extraction.RayExtractor(actors, num_gpus), say)
    recorded = {**asdict(settings), "mirror": labelled.may_mirror, **({"size": size} if size else {})}
    for backbone in backbones:
        if backbone.run is not None:
            config, results = configs[backbone.name], report["backbones"][backbone.name]
            say(probe_results.record_results(config, backbone.run, backbone.step, labelled.name, results, recorded))
    return report
