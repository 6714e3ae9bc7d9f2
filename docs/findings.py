"""The page of the paper's findings: from an MLflow store to docs/findings.json, and from that to the page.

    python docs/findings.py     # writes docs/findings.md, its pictures and README's table from docs/findings.json again

`jobs/reproduce.py` trains the runs and calls this with what the store has of them. No figure of the page, and no word
about which side a comparison falls on, is typed by hand.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "jobs"))

from figures import fill  # noqa: E402
from reproduce import BASE, COMMON, PRESET, SEEDS, Finding  # noqa: E402
from scipy import stats  # noqa: E402

from genray import compare, curves  # noqa: E402
from genray.compare import FINAL, Found, Group  # noqa: E402

DOCS = ROOT / "docs"
LINEAR, KNN = f"{FINAL}linear", f"{FINAL}knn"
KEPT = ("final.", "median.images_per_s", "seconds.")
"""Beginnings of the metrics that the page needs."""
HEADLINE = {
    "generated, latent views and pixel augmentation": "Tz + Tx, SimCLR",
    "generated, pixel augmentation alone": "Tx only, SimCLR",
    "real, pixel augmentation alone": "real images, Tx, SimCLR",
    "real, with labels (supervised)": "real images, supervised",
}
"""What README tells of, in its words, and the ways of the finding `views`."""
LINES = ("real images, Tx, SimCLR", "real images, supervised")
"""Ways that are lines in the pictures of the other findings."""
SURE = 0.95
"""Confidence of the interval of a difference, which decides."""
MARGIN = 2.0
"""Points by which a way may be worse and still count as not worse."""
PAPER, COP_GEN, HERE = "2106.05258", "COP-Gen", "asked here"


@dataclass(frozen=True)
class Claim:
    """That one way is better than another, or at least not worse by more than `MARGIN`."""

    text: str
    better: str
    """Title of a way."""
    worse: str
    at_least: bool = False
    """Whether to be as good is enough."""
    of: str = PAPER
    """Who found it; `HERE` for a question that nobody has answered yet."""

    def verdict(self, groups: Mapping[str, Group]) -> str | None:
        """The difference in the linear probe, and what it says; None where a way is missing or has few seeds.

        Runs of the same seed begin with the same weights and anchors, so the difference is taken for each seed.
        """
        if self.better not in groups or self.worse not in groups:
            return None
        a, b = _by_seed(groups[self.better]), _by_seed(groups[self.worse])
        differences = [100 * (a[seed] - b[seed]) for seed in a if seed in b]
        if len(differences) < 2:
            return None
        low, high = _interval(differences)
        told = f"{statistics.mean(differences):+.1f} ({low:+.1f} to {high:+.1f})"
        yes, no = ("yes", "no") if self.of == HERE else ("agrees", "**does not agree**")
        if low > (-MARGIN if self.at_least else 0):
            return f"{told}: {yes}"
        return f"{told}: {no if high < 0 else 'not decided'}"


def _by_seed(group: Group) -> dict[str, float]:
    return {run.name: run.metrics[LINEAR] for run in group.runs if LINEAR in run.metrics}


def _interval(differences: Sequence[float]) -> tuple[float, float]:
    """Where their mean is with the confidence `SURE`, by Student's t."""
    if len(set(differences)) == 1:
        return differences[0], differences[0]
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(SURE)
    return float(low), float(high)


BOTH, BOTH_SUPCON, TX, REAL = "Tz + Tx, SimCLR", "Tz + Tx, SupCon", "Tx only, SimCLR", "real images, Tx, SimCLR"
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "views": (
        Claim("Latent views beside pixel augmentation beat pixel augmentation alone", BOTH, TX),
        Claim("the same with classes", BOTH_SUPCON, "Tx only, SupCon"),
        Claim("Pixel augmentation beside latent views beats latent views alone", BOTH, "Tz only, SimCLR"),
        Claim("the same with classes", BOTH_SUPCON, "Tz only, SupCon"),
        Claim("With pixel augmentation alone, real images beat generated ones", REAL, TX),
        Claim("Generated views match or beat real images", BOTH, REAL, at_least=True),
        Claim("the same with classes", BOTH_SUPCON, "real images, Tx, SupCon", at_least=True),
        Claim("The generator's classes help", BOTH_SUPCON, BOTH),
    ),
    "latent": (
        Claim("Gaussian views are as good as learned walks", "gaussian", "steered", at_least=True),
        Claim("A navigator beats gaussian views", "navigator", "gaussian", of=COP_GEN),
    ),
    "std": (
        Claim("Inverted U: a view may be too near", "1", "0.25"),
        Claim("and too far", "1", "2"),
    ),
    "anchors": (
        Claim("More anchors are better", "endless", "1,000"),
        Claim("Endless anchors are as good as many that are seen again", "endless", "10,000", True, HERE),
    ),
    "neighbors": (
        Claim("More neighbours of an anchor are better", "20", "1"),
        Claim("A new neighbour each time is as good as many that are seen again", "endless", "20", True, HERE),
    ),
    "reuse": tuple(
        Claim(f"Views used {times} times train as well with as many updates", times, "1", True, HERE)
        for times in ("2", "4", "8")
    ),
    "wall": tuple(
        Claim(f"Views used {times} times train better in the same time", times, "1", of=HERE)
        for times in ("2", "4", "8")
    ),
}


def record(
    findings: Mapping[str, Finding], seeds: Sequence[int], found: Mapping[str, Found], parallel: int = 1
) -> dict[str, Any]:
    """What the page needs of the runs: by finding, way and seed their names, by name their metrics; and how made."""
    base = {str(seed): name for seed in seeds if (name := BASE.name(seed)) in found}
    recorded = {
        key: {
            "title": finding.title,
            "axis": finding.axis,
            "at_a_time": parallel,
            "commit": _commit(found[finding.ways[0].name(seeds[0])]),
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


def _commit(run: Found) -> str:
    changed = run.tags.get("mlflow.source.git.dirty") == "true"
    return run.tags.get("mlflow.source.git.commit", "unknown")[:8] + (" with changes" if changed else "")


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
    common = {path: value for path, value in made["common"].items() if not path.endswith("every")}
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines = [
        "# The paper's findings, on the embedded generator",
        "",
        "Digit scenes are a small world, and an easy one: their generator learned a program's pictures with what",
        "varies in them given ([generator.md](generator.md)), which a GAN's latents are not. What holds here need not",
        "hold for ImageNet, and what fails here need not fail there. The encoder is that of the preset",
        f"`{PRESET}`, trained with {_told(common)}: every run makes equally many",
        "updates where nothing else is said. It is judged on the test split, of whose digits neither the generator nor",
        "a run has seen any. The real images are the scenes that the generator learned from. Means over the seeds,",
        "± one standard deviation.",
        "",
        "```",
        "python jobs/reproduce.py                        # every run, then this page; goes on where it was stopped",
        *_more_seeds(recorded),
        "genray compare findings --sweep findings        # the same runs from their MLflow store, as one table",
        "python docs/findings.py                         # this page again, from docs/findings.json",
        "```",
        "",
        f"{len(seconds)} runs took {sum(seconds) / 3600:.1f} hours together, {sum(seconds) / 60 / len(seconds):.1f} "
        f"minutes each ({made['cpus']} CPU cores, {made['gpus']} GPUs, {_each(recorded, 'at_a_time')} at a time; "
        f"{versions}, commit {_each(recorded, 'commit')}).",
        "",
        "## What agrees with what was found before, and what does not",
        "",
        "Differences of the linear probe, in points, between runs of the same seed, which begin with the same weights:",
        f"their mean, and the interval that holds it with {SURE:.0%} confidence, one claim at a time. Not decided is",
        f"what the interval leaves open; as good is what is worse by less than {MARGIN:g} points.",
        "",
        "| claim | found by | here |",
        "|---|---|---|",
    ]
    parts: list[str] = []
    for key, finding in recorded["findings"].items():
        ways = groups(recorded, key)
        for claim in CLAIMS[key]:
            if verdict := claim.verdict(ways):
                lines.append(f"| {claim.text} ({claim.better} over {claim.worse}) | {claim.of} | {verdict} |")
        parts += [
            "",
            f"## {finding['title']}",
            "",
            *_table(finding, ways, made["common"]),
            "",
            f"![{finding['title']}](findings-{key}.png)",
        ]
    return "\n".join([*lines, *parts, "", *_floors(recorded)]) + "\n"


def _more_seeds(recorded: Mapping[str, Any]) -> list[str]:
    """The commands for findings with other seeds than those that a plain call trains."""
    asked: dict[str, list[str]] = {}
    for key, finding in recorded["findings"].items():
        seeds = " ".join(next(iter(finding["ways"].values()))["runs"])
        if key != "wall" and seeds != " ".join(map(str, SEEDS)):  # which comes with reuse
            asked.setdefault(seeds, []).append(key)
    return [f"python jobs/reproduce.py --findings {' '.join(keys)} --seeds {seeds}" for seeds, keys in asked.items()]


def _each(recorded: Mapping[str, Any], what: str) -> str:
    return " or ".join(dict.fromkeys(str(finding[what]) for finding in recorded["findings"].values()))


def _table(finding: Mapping[str, Any], ways: Mapping[str, Group], common: Mapping[str, str]) -> list[str]:
    again = finding["axis"].startswith("stream.num_")
    alone = finding["at_a_time"] == 1  # else the minutes say little of a way
    seen, timed = " times an anchor is seen |" * again, " minutes |" * alone
    lines = [
        f"| {finding['axis'] or 'way'} | settings | runs | updates |{seen} kNN | linear probe |{timed}",
        f"|---|---|---:|---:|{'---:|' * again}---:|---:|{'---:|' * alone}",
    ]
    for title, group in ways.items():
        settings = finding["ways"][title]["settings"]
        steps, seconds = group.mean("steps") or 0, group.mean("seconds.total") or 0
        shown = steps * int(common["stream.batch_size"])
        seen = f" {shown / settings.get('stream.num_anchors', shown):.3g} |" * again
        timed = f" {seconds / 60:.1f} |" * alone
        lines.append(
            f"| {title} | {_told(settings) or 'the preset'} | {len(group.runs)} | {steps:g} |{seen} "
            f"{compare.shown(group, KNN)} | {compare.shown(group, LINEAR)} |{timed}"
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


def headline(recorded: Mapping[str, Any]) -> str:
    """README's table: generated views beside real images."""
    ways = groups(recorded, "views")
    rows = (
        f"| {text} | {compare.shown(ways[way], KNN)} | {compare.shown(ways[way], LINEAR)} |"
        for text, way in HEADLINE.items()
    )
    return "\n".join(["| the encoder learns from | kNN | linear probe |", "|---|---:|---:|", *rows])


def write(directory: Path, recorded: Mapping[str, Any]) -> None:
    """Write findings.json, findings.md and a picture for each finding; for the page of docs/ README's table too."""
    (directory / "findings.json").write_text(json.dumps(recorded, indent=1) + "\n")
    (directory / "findings.md").write_text(page(recorded))
    if directory.resolve() == DOCS and "views" in recorded["findings"]:
        readme = ROOT / "README.md"
        readme.write_text(fill(readme.read_text(), "findings", headline(recorded)))
    beside = groups(recorded, "views") if "views" in recorded["findings"] else {}
    for key, finding in recorded["findings"].items():
        ways, picture = list(groups(recorded, key).values()), directory / f"findings-{key}.png"
        lines = {title: beside[title] for title in LINES if title in beside and key != "views"}
        curves.contrast(ways, (finding["axis"] or "",), (KNN, LINEAR), picture, lines)


def read(directory: Path) -> dict[str, Any]:
    """The record that was written to a directory; empty where there is none."""
    file = directory / "findings.json"
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":
    write(DOCS, read(DOCS))
