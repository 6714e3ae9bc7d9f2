"""Reproduce the paper's findings on the embedded generator: train all runs, compare them, and write a page.

    python jobs/reproduce.py                                   # all; docs/findings.md says how long it took
    python jobs/reproduce.py --findings views std --page ""   # some of the findings, without the page
    ray job submit --working-dir . -- python jobs/reproduce.py --findings views --storage_path /shared/runs --parallel 8

The runs form a sweep, which the same command resumes. At the end docs/findings.py writes docs/findings.md from their
MLflow store; `genray compare findings --sweep findings` shows the same runs as a table. All runs make equally many
updates with the encoder, augmentation and optimiser of the preset `demo`, but with smaller batches, so that there is
time for more updates, and without whatever does not affect the encoder.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from genray.cli.exit_codes import exit_codes
from genray.cluster import ray_job
from genray.commands import sweep, sweep_space
from genray.config import load
from genray.config.errors import UserError
from genray.config.run import Config
from genray.probes.scenes import scenes
from genray.tracking import compare, mlflow_store
from genray.tracking.compare import FinishedRun

ROOT = Path(__file__).resolve().parent.parent
NAME = "findings"
"""Name of the sweep and of the MLflow experiment."""
PRESET = "demo"
SEEDS = (0, 1, 2)
STEPS = 1200
COMMON = {
    "stream.batch_size": 32,
    "training.steps": STEPS,
    "training.checkpoint_every": STEPS,
    "probe.every": STEPS,
    "tracking.previews_every": STEPS,
}
"""Settings of all runs that differ from the preset's."""
STEPS_MULTIPLE = 20
"""The number of updates of a run that is to take as long as another is rounded to a multiple of this."""
SPEED = "median.images_per_s"
NUM_REAL_IMAGES = 50_000
"""Real images to learn from; with the defaults none is seen twice."""

Overrides = Mapping[str, Any]
"""Values of fields by their dotted paths."""


@dataclass(frozen=True, eq=False)
class Way:
    """One way to train, which differs from the preset in some settings."""

    title: str
    settings: Overrides

    def run(self, seed: int) -> dict[str, Any]:
        """The overrides of its run with this seed."""
        return {**self.settings, "seed": seed}

    def name(self, seed: int) -> str:
        """The run's name. Equal ways of several findings share their runs."""
        return f"{NAME}-{sweep_space.name_suffix(self.run(seed))}"


@dataclass(frozen=True)
class Finding:
    """Ways that are compared with each other."""

    title: str
    axis: str
    """The setting in which they differ, for the picture; empty if there is no single one."""
    ways: tuple[Way, ...]


BASE = Way("Tz + Tx, SimCLR", {})
TX_ONLY: Overrides = {"view.kind": "none"}
TZ_ONLY: Overrides = {"augment.policy": "none"}
REAL_IMAGES: Overrides = {"source.kind": "images", "source.image_size": 32, "view.kind": "none"}
SUPCON: Overrides = {"objective.kind": "supcon"}
SUPERVISED: Overrides = {"objective.kind": "classifier"}
CROPS: Overrides = {"augment.scale": [0.2, 1.0]}
"""The paper's; those of `augment.policy = "digits"`, which keep a digit whole, are 0.8 to 1 of the area."""
ONE_THOUSAND: Overrides = {"stream.num_anchors": 1000}

FINDINGS: dict[str, Finding] = {
    "views": Finding(
        "Which views",
        "",
        (
            Way("Tx only, SimCLR", TX_ONLY),
            Way("Tz only, SimCLR", TZ_ONLY),
            BASE,
            Way("real images, Tx, SimCLR", REAL_IMAGES),
            Way("Tx only, SupCon", {**SUPCON, **TX_ONLY}),
            Way("Tz only, SupCon", {**SUPCON, **TZ_ONLY}),
            Way("Tz + Tx, SupCon", SUPCON),
            Way("real images, Tx, SupCon", {**SUPCON, **REAL_IMAGES}),
            Way("real images, supervised", {**SUPERVISED, **REAL_IMAGES}),
        ),
    ),
    "crops": Finding(
        "Which views, with the paper's crops",
        "",
        (
            Way("Tx only, crops of 0.8", TX_ONLY),
            Way("Tz + Tx, crops of 0.8", BASE.settings),
            Way("real images, Tx, crops of 0.8", REAL_IMAGES),
            Way("Tx only, crops of 0.2", {**CROPS, **TX_ONLY}),
            Way("Tz + Tx, crops of 0.2", CROPS),
            Way("real images, Tx, crops of 0.2", {**CROPS, **REAL_IMAGES}),
        ),
    ),
    "latent": Finding(
        "Gaussian, steered and navigator views",
        "",
        (
            Way("gaussian", BASE.settings),
            Way("steered", {"view.kind": "steered"}),
            Way("navigator", {"view.kind": "navigator"}),
        ),
    ),
    "std": Finding(
        "How far a view is from its anchor",
        "view.std",
        tuple(Way(f"{std:g}", {"view.std": std} if std != 1 else {}) for std in (0.25, 0.5, 1.0, 1.5, 2.0)),
    ),
    "anchors": Finding(
        "How many anchors",
        "stream.num_anchors",
        (
            *(Way(f"{count:,}", {"stream.num_anchors": count}) for count in (1000, 10_000, 100_000)),
            Way("endless", BASE.settings),
        ),
    ),
    "neighbors": Finding(
        "How many neighbours of each of 1 000 anchors",
        "stream.num_neighbors",
        (
            *(Way(f"{count}", {**ONE_THOUSAND, "stream.num_neighbors": count}) for count in (1, 5, 20)),
            Way("endless", ONE_THOUSAND),
        ),
    ),
    "reuse": Finding(
        "Views used several times, equally many updates",
        "stream.reuse",
        tuple(Way(f"{times}", {"stream.reuse": times} if times > 1 else {}) for times in (1, 2, 4, 8)),
    ),
}
WALL = "Views used several times, equally long"


def configs(ways: Sequence[Way], seeds: Sequence[int], overrides: Sequence[str]) -> list[Config]:
    """The configurations of these ways, each once; `overrides` are on top of the common settings."""
    common = {**COMMON, "tracking.experiment": NAME}
    shared = [*itertools.chain(*((f"--{path}", str(value)) for path, value in common.items())), *overrides]
    real = Path(load.load(PRESET, shared).storage_path) / f"{NAME}-real"
    configs = {}
    for way, seed in itertools.product(ways, seeds):
        if way.settings.get("source.kind") == "images":
            write_real_images(real)
            arguments = ["--source.directory", str(real), *shared]
        else:
            arguments = shared
        if (name := way.name(seed)) not in configs:
            configs[name] = sweep_space.children(PRESET, NAME, [way.run(seed)], arguments)[0]
    return list(configs.values())


def write_real_images(directory: Path, count: int = NUM_REAL_IMAGES) -> None:
    """Write digit scenes like those that the generator was trained on as images, in a directory for each digit."""
    if directory.exists():
        return
    draft = directory.with_name(f".{directory.name}")
    for number, (image, label) in enumerate(zip(*scenes("train", count), strict=True)):
        path = draft / str(int(label)) / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    draft.rename(directory)


def equally_long(runs: Mapping[str, FinishedRun], seeds: Sequence[int], steps: int) -> Finding:
    """The ways of `reuse`, each with as many updates as it makes in the time of the first.

    Args:
        runs: those of `reuse`, by their names; they give the speed of each way.
        seeds: of the runs.
        steps: updates of the first way.

    Raises:
        UserError: one of the runs shared the machine with another, so that its speed is meaningless.
    """
    first, *others = FINDINGS["reuse"].ways
    for name in (way.name(seed) for way in (first, *others) for seed in seeds):
        if count_overlapping(runs[name], runs.values()):
            raise UserError(
                f"the runs of the finding reuse must be made one at a time, got {name}, which overlapped with another; "
                "delete its directory and its run in MLflow, and start again"
            )
    speed = {way: statistics.median(runs[way.name(s)].metrics[SPEED] for s in seeds) for way in (first, *others)}
    longer = {way: STEPS_MULTIPLE * round(steps * speed[way] / speed[first] / STEPS_MULTIPLE) for way in others}
    ways = (Way(way.title, {**way.settings, "training.steps": longer[way]}) for way in others)
    return Finding(WALL, "stream.reuse", (first, *ways))


def count_overlapping(run: FinishedRun, runs: Iterable[FinishedRun]) -> int:
    """How many of the other runs were running during a part of this one."""
    return sum(other.started < run.ended and run.started < other.ended for other in runs if other.name != run.name)


def results(config: Config) -> dict[str, FinishedRun]:
    """The finished runs by their names, from the MLflow store of a run."""
    runs, _ = compare.finished_runs(mlflow_store.address(config), NAME, NAME)
    return {run.name: run for run in runs}


def train(flags: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Finding]:
    """Train what is not finished, and return the findings, with `wall` if `reuse` is among them.

    The speed of the runs of `reuse` decides how long those of `wall` are, so nothing else should use the machine.
    """

    def run_sweep(ways: Sequence[Way]) -> Config:
        children = configs(ways, flags.seeds, overrides)
        sweep.raise_if_failed(sweep.sweep(NAME, children, parallel=flags.parallel, address=flags.address))
        return children[0]

    if "reuse" in flags.findings and flags.parallel > 1:
        raise UserError(
            f"--parallel must be 1 with the finding reuse, whose runs are timed, got {flags.parallel}; name the others "
            "by --findings"
        )
    findings = {key: FINDINGS[key] for key in flags.findings}
    first = run_sweep([way for finding in findings.values() for way in finding.ways])
    if "reuse" in findings:
        findings["wall"] = equally_long(results(first), flags.seeds, first.training.steps)
        run_sweep([way for finding in findings.values() for way in finding.ways])
    return findings


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--findings", nargs="+", choices=list(FINDINGS), default=list(FINDINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, in one Ray cluster")
    parser.add_argument("--address", help="Ray cluster to join")
    docs = "" if ray_job.submission_id() else str(ROOT / "docs")  # a job works in a copy, which is deleted with it
    parser.add_argument("--page", default=docs, help="directory of the page; empty for no page, the default in a job")
    flags, overrides = parser.parse_known_args(arguments)
    with exit_codes():
        findings = train(flags, overrides)
        if flags.page:
            sys.path.insert(0, str(ROOT / "docs"))
            page = importlib.import_module("findings")
            runs = results(configs([BASE], flags.seeds[:1], overrides)[0])
            recorded = page.record(findings, flags.seeds, runs)
            page.write(Path(flags.page), page.merged(page.read(Path(flags.page)), recorded))


if __name__ == "__main__":
    main()
