"""The paper's findings on the embedded generator, by one command: every run, their comparison, and a page of it all.

    python jobs/reproduce.py                                   # all; docs/findings.md has what that took
    python jobs/reproduce.py --findings views std --page ""   # some of the findings, and no page
    ray job submit --working-dir . -- python jobs/reproduce.py --findings views --storage_path /shared/runs --parallel 8

The runs are those of a sweep: the same command again goes on where it was stopped. At the end docs/findings.py writes
docs/findings.md from their MLflow store; `genray compare findings --sweep findings` shows the same runs as a table.
All runs make equally many updates with the same encoder, augmentation and optimiser, those of the preset `demo`, but
with smaller batches, of which more are learned from in the same time, and without what does not change the encoder.
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

from genray import cli, compare, configure, job, space, sweep, tracking_store
from genray.compare import Found
from genray.config import Config
from genray.scenes import scenes
from genray.settings import UserError

ROOT = Path(__file__).resolve().parent.parent
NAME = "findings"
"""Of the sweep and of the MLflow experiment."""
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
"""What all runs have instead of the preset's."""
ROUND = 20
"""Updates of a run as long as another are a multiple of it."""
SPEED = "median.images_per_s"
REAL = 50_000
"""Real images that there are to learn from; with the defaults none is seen twice."""

Settings = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Way:
    """One way to train, which differs from the preset in some settings."""

    title: str
    settings: Settings

    def run(self, seed: int) -> dict[str, Any]:
        """What a run of it sets."""
        return {**self.settings, "seed": seed}

    def name(self, seed: int) -> str:
        """The run's name. Ways of several findings that are the same share their runs."""
        return f"{NAME}-{space.title(self.run(seed))}"


@dataclass(frozen=True)
class Finding:
    """Ways that are compared with each other."""

    title: str
    axis: str
    """What they differ in, for the picture; empty where they are of several kinds."""
    ways: tuple[Way, ...]


BASE = Way("Tz + Tx, SimCLR", {})
TX_ONLY: Settings = {"view.kind": "none"}
TZ_ONLY: Settings = {"augment.policy": "none"}
REAL_IMAGES: Settings = {"source.kind": "images", "source.image_size": 32, "view.kind": "none"}
SUPCON: Settings = {"objective.kind": "supcon"}
SUPERVISED: Settings = {"objective.kind": "classifier"}
CROPS: Settings = {"augment.scale": [0.2, 1.0]}
"""As the paper has them: those of `augment.policy = "digits"`, which keep a digit whole, leave 0.8 to 1 of the area."""
ONE_THOUSAND: Settings = {"stream.num_anchors": 1000}

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
    """The runs of these ways, each once. What they have in common can be overridden."""
    common = {**COMMON, "tracking.experiment": NAME}
    shared = [*itertools.chain(*((f"--{path}", str(value)) for path, value in common.items())), *overrides]
    real = Path(configure.load(PRESET, shared).storage_path) / f"{NAME}-real"
    found = {}
    for way, seed in itertools.product(ways, seeds):
        if way.settings.get("source.kind") == "images":
            write_real_images(real)
            here = ["--source.directory", str(real), *shared]
        else:
            here = shared
        if (name := way.name(seed)) not in found:
            found[name] = space.children(PRESET, NAME, [way.run(seed)], here)[0]
    return list(found.values())


def write_real_images(directory: Path, count: int = REAL) -> None:
    """The digit scenes that the generator was trained on as a folder of images, a directory for each digit."""
    if directory.exists():
        return
    draft = directory.with_name(f".{directory.name}")
    for number, (image, label) in enumerate(zip(*scenes("train", count), strict=True)):
        path = draft / str(int(label)) / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    draft.rename(directory)


def equally_long(found: Mapping[str, Found], seeds: Sequence[int], steps: int) -> Finding:
    """The ways of `reuse`, each with as many updates as it makes in the time of the first.

    Args:
        found: the runs of `reuse`, which say how fast each way is.
        seeds: of them.
        steps: updates of the first.

    Raises:
        UserError: one of them had to share the machine, so its speed says nothing.
    """
    first, *others = FINDINGS["reuse"].ways
    for name in (way.name(seed) for way in (first, *others) for seed in seeds):
        if others_beside(found[name], found.values()):
            raise UserError(
                f"the runs of the finding reuse must be made one at a time, got {name}, which ran beside another; "
                "delete its directory and its run in MLflow, and start again"
            )
    speed = {way: statistics.median(found[way.name(s)].metrics[SPEED] for s in seeds) for way in (first, *others)}
    longer = {way: ROUND * round(steps * speed[way] / speed[first] / ROUND) for way in others}
    ways = (Way(way.title, {**way.settings, "training.steps": longer[way]}) for way in others)
    return Finding(WALL, "stream.reuse", (first, *ways))


def others_beside(run: Found, found: Iterable[Found]) -> int:
    """How many of the other runs went on during a part of this one."""
    return sum(other.started < run.ended and run.started < other.ended for other in found if other.name != run.name)


def results(config: Config) -> dict[str, Found]:
    """The finished runs by their names, from the MLflow store that a run is recorded in."""
    found, _ = compare.finished(tracking_store.address(config), NAME, NAME)
    return {run.name: run for run in found}


def train(asked: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Finding]:
    """Train what has not been; returns the findings, with those that follow from how fast others were.

    How fast the runs of `reuse` are decides how long those of `wall` are, so nothing else should go on meanwhile.
    """

    def swept(ways: Sequence[Way]) -> Config:
        made = configs(ways, asked.seeds, overrides)
        sweep.check(sweep.sweep(NAME, made, parallel=asked.parallel, address=asked.address))
        return made[0]

    if "reuse" in asked.findings and asked.parallel > 1:
        raise UserError(
            f"--parallel must be 1 with the finding reuse, whose runs are timed, got {asked.parallel}; name the others "
            "by --findings"
        )
    findings = {key: FINDINGS[key] for key in asked.findings}
    first = swept([way for finding in findings.values() for way in finding.ways])
    if "reuse" in findings:
        findings["wall"] = equally_long(results(first), asked.seeds, first.training.steps)
        swept([way for finding in findings.values() for way in finding.ways])
    return findings


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--findings", nargs="+", choices=list(FINDINGS), default=list(FINDINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, in one Ray cluster")
    parser.add_argument("--address", help="Ray cluster to join")
    here = "" if job.submission_id() else str(ROOT / "docs")  # a job's checkout is a copy, which goes with it
    parser.add_argument("--page", default=here, help="directory of the page; none where it is empty, and from a job")
    asked, overrides = parser.parse_known_args(arguments)
    with cli.told():
        findings = train(asked, overrides)
        if asked.page:
            sys.path.insert(0, str(ROOT / "docs"))
            page = importlib.import_module("findings")
            found = results(configs([BASE], asked.seeds[:1], overrides)[0])
            recorded = page.record(findings, asked.seeds, found)
            page.write(Path(asked.page), page.merged(page.read(Path(asked.page)), recorded))


if __name__ == "__main__":
    main()
