"""The page of the paper's findings: from an MLflow store to docs/findings.json, and from that to the page.

    python docs/findings.py     # writes docs/findings.md and its pictures from docs/findings.json again

`jobs/reproduce.py` trains the runs and calls this with what the store has of them. No figure of the page, and no word
about which side a comparison falls on, is typed by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "jobs"))

from reproduce import BASE, COMMON, PRESET, Finding  # noqa: E402
from scipy import stats  # noqa: E402

from genray import compare, curves  # noqa: E402
from genray.compare import FINAL, Found, Group  # noqa: E402

DOCS = Path(__file__).parent
LINEAR, KNN = f"{FINAL}linear", f"{FINAL}knn"
KEPT = ("final.", "median.images_per_s", "seconds.")
"""Beginnings of the metrics that the page needs."""
SURE = 0.95
"""Confidence of the interval of a difference, which decides where 0 is not in it."""


@dataclass(frozen=True)
class Claim:
    """Something that the paper, or a successor of it, found: that one way is better than another."""

    text: str
    better: tuple[str, ...]
    """Titles of ways, of which the best counts."""
    worse: str
    at_least: bool = False
    """Whether to be as good is enough."""

    def verdict(self, groups: Mapping[str, Group]) -> str | None:
        """The difference in the linear probe, and what it says; None where a way is missing or has few seeds.

        Runs of the same seed begin with the same weights and anchors, so the difference is taken for each seed.
        """
        ways = [groups[title] for title in self.better if title in groups]
        if not ways or self.worse not in groups:
            return None
        first = max(ways, key=lambda group: group.mean(LINEAR) or 0)
        a, b = _by_seed(first), _by_seed(groups[self.worse])
        seeds = sorted(a.keys() & b.keys())
        if len(seeds) < 2:
            return None
        differences = [100 * (a[seed] - b[seed]) for seed in seeds]
        if len(set(differences)) == 1:
            low = high = differences[0]
        else:
            low, high = stats.ttest_1samp(differences, 0).confidence_interval(SURE)
        told = f"{sum(differences) / len(differences):+.1f} points ({low:+.1f} to {high:+.1f})"
        if low <= 0 <= high:
            return f"{told}: {'no difference seen' if self.at_least else 'not decided'}"
        return f"{told}: {'agrees' if low > 0 else '**does not agree**'}"


def _by_seed(group: Group) -> dict[str, float]:
    return {run.name: run.metrics[LINEAR] for run in group.runs if LINEAR in run.metrics}


BOTH, BOTH_SUPCON, TX, REAL = "Tz + Tx, SimCLR", "Tz + Tx, SupCon", "Tx only, SimCLR", "real images, Tx, SimCLR"
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "views": (
        Claim("Latent views beside pixel augmentation beat pixel augmentation alone", (BOTH,), TX),
        Claim("the same with classes", (BOTH_SUPCON,), "Tx only, SupCon"),
        Claim("Pixel augmentation beside latent views beats latent views alone", (BOTH,), "Tz only, SimCLR"),
        Claim("the same with classes", (BOTH_SUPCON,), "Tz only, SupCon"),
        Claim("With pixel augmentation alone, real images beat generated ones", (REAL,), TX),
        Claim("Generated views match or beat real images", (BOTH,), REAL, at_least=True),
        Claim("the same with classes", (BOTH_SUPCON,), "real images, Tx, SupCon", at_least=True),
        Claim("The generator's classes help", (BOTH_SUPCON,), BOTH),
    ),
    "latent": (
        Claim("Gaussian views are as good as learned walks", ("gaussian",), "steered", at_least=True),
        Claim("A navigator (COP-Gen) beats gaussian views", ("navigator",), "gaussian"),
    ),
    "std": (
        Claim("Inverted U: a view may be too near", ("0.5", "1", "1.5"), "0.25"),
        Claim("and too far", ("0.5", "1", "1.5"), "2"),
    ),
    "anchors": (
        Claim("More anchors are better", ("endless",), "1,000"),
        Claim("and endless ones at least as good as many", ("endless",), "100,000", at_least=True),
    ),
    "neighbors": (
        Claim("More neighbours of an anchor are better", ("20",), "1"),
        Claim("and a fresh one each time at least as good", ("endless",), "20", at_least=True),
    ),
    "reuse": (Claim("New pixel augmentation makes up for views used twice", ("2",), "1", at_least=True),),
    "wall": (Claim("In the same time, views used several times train better", ("2", "4", "8"), "1"),),
}


def record(findings: Mapping[str, Finding], seeds: Sequence[int], found: Mapping[str, Found]) -> dict[str, Any]:
    """What the page needs of the runs: by finding, way and seed their names, by name their metrics; and the machine."""
    base = {str(seed): name for seed in seeds if (name := BASE.name(seed)) in found}
    recorded = {
        key: {
            "title": finding.title,
            "axis": finding.axis,
            "ways": {
                way.title: {"settings": dict(way.settings), "runs": {str(seed): way.name(seed) for seed in seeds}}
                for way in finding.ways
            },
        }
        for key, finding in findings.items()
    }
    ways = [way for finding in findings.values() for way in finding.ways]
    names = {*base.values(), *(way.name(seed) for way in ways for seed in seeds)}
    first = found[ways[0].name(seeds[0])]
    return {
        "findings": recorded,
        "base": base,
        "runs": {name: _kept(found[name]) for name in sorted(names)},
        "made": {
            "common": {path: first.params[path] for path in COMMON},
            "cpus": first.tags["world.cpus"],
            "gpus": first.tags["world.gpus"],
            "versions": {package: first.tags[f"{package}.version"] for package in ("genray", "ray", "torch")},
        },
    }


def _kept(run: Found) -> dict[str, float]:
    found = {key: value for key, value in run.metrics.items() if key.startswith(KEPT)}
    return {**found, "steps": float(run.params["training.steps"])}


def merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Two records as one, where both were made in the same way; else the later one."""
    if before.get("made") != now["made"]:
        return dict(now)
    findings = {**before["findings"], **now["findings"]}
    return {
        "findings": {key: findings[key] for key in CLAIMS if key in findings},
        "base": {**before["base"], **now["base"]},
        "runs": {**before["runs"], **now["runs"]},
        "made": now["made"],
    }


def groups(recorded: Mapping[str, Any], key: str) -> dict[str, Group]:
    """The ways of a recorded finding with their runs; what tells them apart is a number where there is an axis."""
    finding = recorded["findings"][key]
    return {
        title: Group(
            _values(title, bool(finding["axis"])),
            tuple(Found(seed, {}, recorded["runs"][name], {}) for seed, name in way["runs"].items()),
        )
        for title, way in finding["ways"].items()
    }


def _values(title: str, on_an_axis: bool) -> tuple[Any, ...]:
    if not on_an_axis:
        return tuple(title.split(", "))
    text = title.replace(",", "")
    return (float(text) if "." in text else int(text),) if text.replace(".", "").isdigit() else (title,)


def page(recorded: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    made, seconds = recorded["made"], [run["seconds.total"] for run in recorded["runs"].values()]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines = [
        "# The paper's findings, on the embedded generator",
        "",
        "Digit scenes are a small world: 32 pixels, ten classes, a generator of a few million weights, and an encoder",
        f"that is trained for minutes, by the preset `{PRESET}` with {_told(made['common'])}. What holds here",
        "need not hold for ImageNet, and what fails here need not fail there. Every run makes equally many updates",
        "where nothing else is said, and is judged on scenes of digits that neither the generator nor any choice has",
        "seen. Means over the seeds, ± one standard deviation.",
        "",
        "```",
        "python jobs/reproduce.py                        # every run, then this page; goes on where it was stopped",
        "genray compare findings --sweep findings        # the same runs from their MLflow store, as one table",
        "python docs/findings.py                         # this page again, from docs/findings.json",
        "```",
        "",
        f"{len(seconds)} runs took {sum(seconds) / 3600:.1f} hours together, {sum(seconds) / 60 / len(seconds):.1f} "
        f"minutes each ({made['cpus']} CPU cores, {made['gpus']} GPUs; {versions}).",
        "",
        "## What agrees with the paper, and what does not",
        "",
        "Differences of the linear probe between runs of the same seed, which begin with the same weights: their mean,",
        f"and the interval that holds it with {SURE:.0%} confidence. Where 0 is in it nothing is decided.",
        "",
        "| found by the paper or its successors | here |",
        "|---|---|",
    ]
    parts: list[str] = []
    for key, finding in recorded["findings"].items():
        ways = groups(recorded, key)
        for claim in CLAIMS[key]:
            if verdict := claim.verdict(ways):
                lines.append(f"| {claim.text} ({_or(claim.better)} over {claim.worse}) | {verdict} |")
        parts += [
            "",
            f"## {finding['title']}",
            "",
            *_table(finding, ways),
            "",
            f"![{finding['title']}](findings-{key}.png)",
        ]
    return "\n".join([*lines, *parts, "", *_floors(recorded)]) + "\n"


def _or(titles: Sequence[str]) -> str:
    return titles[0] if len(titles) == 1 else f"the best of {', '.join(titles)}"


def _table(finding: Mapping[str, Any], ways: Mapping[str, Group]) -> list[str]:
    lines = [
        f"| {finding['axis'] or 'way'} | settings | runs | updates | kNN | linear probe | minutes |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for title, group in ways.items():
        told = _told(finding["ways"][title]["settings"])
        steps, seconds = group.mean("steps") or 0, group.mean("seconds.total") or 0
        lines.append(
            f"| {title} | {told or 'the preset'} | {len(group.runs)} | {steps:g} | {compare.shown(group, KNN)} | "
            f"{compare.shown(group, LINEAR)} | {seconds / 60:.1f} |"
        )
    return lines


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{path} = {compare.label(value)}`" for path, value in settings.items())


def _floors(recorded: Mapping[str, Any]) -> list[str]:
    """What is reached without training, which the pictures have as dashed lines."""
    runs = Group((), tuple(Found(seed, {}, recorded["runs"][name], {}) for seed, name in recorded["base"].items()))
    cells = [
        f"{name} {compare.shown(runs, f'{prefix}knn')} by kNN, {compare.shown(runs, f'{prefix}linear')} by linear probe"
        for name, prefix in compare.FLOORS.items()
    ]
    return [f"Without training: {'; '.join(cells)} (dashed in the pictures)."]


def write(directory: Path, recorded: Mapping[str, Any]) -> None:
    """Write findings.json, findings.md and a picture for each finding."""
    (directory / "findings.json").write_text(json.dumps(recorded, indent=1) + "\n")
    (directory / "findings.md").write_text(page(recorded))
    for key, finding in recorded["findings"].items():
        by = (finding["axis"] or "",)
        curves.contrast(list(groups(recorded, key).values()), by, (KNN, LINEAR), directory / f"findings-{key}.png")


def read(directory: Path) -> dict[str, Any]:
    """The record that was written to a directory; empty where there is none."""
    file = directory / "findings.json"
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":
    write(DOCS, read(DOCS))
