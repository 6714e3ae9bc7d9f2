"""The page of the paper's findings: from an MLflow store to docs/findings.json, and from that to the page.

    python docs/findings.py     # writes docs/findings.md, its pictures and README's table from docs/findings.json again

`jobs/reproduce.py` trains the runs and calls this with what the store has of them. No figure on the page, and no
verdict on a comparison, is typed by hand.
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
from reproduce import BASE, COMMON, FINDINGS, PRESET, Finding, count_overlapping  # noqa: E402
from scipy import stats  # noqa: E402

from genray.config.errors import UserError  # noqa: E402
from genray.tracking import compare, plots  # noqa: E402
from genray.tracking.compare import BASELINES, FINAL, FinishedRun, Group  # noqa: E402

DOCS = ROOT / "docs"
LINEAR, KNN = f"{FINAL}linear", f"{FINAL}knn"
KEPT = ("final.", "median.images_per_s", "seconds.")
"""Beginnings of the metrics that the page needs."""
BOTH, BOTH_SUPCON, TX = "Tz + Tx, SimCLR", "Tz + Tx, SupCon", "Tx only, SimCLR"
REAL, REAL_SUPCON, SUPERVISED = "real images, Tx, SimCLR", "real images, Tx, SupCon", "real images, supervised"
IN_README = {
    "generated, latent views and pixel augmentation": BOTH,
    "generated, pixel augmentation alone": TX,
    "real, pixel augmentation alone": REAL,
    "real, with labels (supervised)": SUPERVISED,
}
"""The rows of README's table, and the ways of the finding `views` that they show."""
LINES = (REAL, SUPERVISED)
"""Ways that are lines in the pictures of the other findings."""
SURE = 0.95
"""Confidence of the interval of a difference, which decides."""
MARGIN = 2.0
"""Points that count as a difference."""
PAPER, HERE = "2106.05258", "asked here"
JUDGES = {"linear probe": LINEAR, "kNN": KNN}
"""The columns of the claims; README and the text speak of the first."""


@dataclass(frozen=True)
class Claim:
    """That one way is better than another, or at least not worse by `MARGIN`."""

    text: str
    better: str
    """Title of a way."""
    worse: str
    at_least: bool = False
    """Whether to be as good is enough."""
    of: str = PAPER
    """Who found it; `HERE` for what the paper does not say."""

    def verdict(self, groups: Mapping[str, Group], metric: str = LINEAR) -> str | None:
        """The difference in a probe, and what it says; None where a way is missing or has few seeds.

        Runs of the same seed begin with the same weights and anchors, so the difference is taken for each seed.
        """
        if self.better not in groups or self.worse not in groups:
            return None
        if not (gain := _gain(_by_seed(groups[self.better], metric), _by_seed(groups[self.worse], metric))):
            return None
        mean, low, high = gain
        yes, no = ("yes", "no") if self.of == HERE else ("agrees", "**does not agree**")
        reached, missed = (low > -MARGIN, high < -MARGIN) if self.at_least else (low > 0, high < MARGIN)
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}): {yes if reached else no if missed else 'not decided'}"


def _by_seed(group: Group, metric: str) -> dict[str, float]:
    return {run.name: run.metrics[metric] for run in group.runs if metric in run.metrics}


def _gain(more: Mapping[str, float], less: Mapping[str, float]) -> tuple[float, float, float] | None:
    """Mean difference in points over the seeds of both, and where it is with the confidence `SURE` by Student's t.

    None of fewer than two seeds.
    """
    differences = [100 * (more[seed] - less[seed]) for seed in more if seed in less]
    if len(differences) < 2:
        return None
    mean = statistics.mean(differences)
    if len(set(differences)) == 1:
        return mean, mean, mean
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(SURE)
    return mean, float(low), float(high)


HEADLINE = Claim("Generated views match real images, without labels", BOTH, REAL, at_least=True)
HEADLINE_SUPCON = Claim("Generated views match real images, with labels", BOTH_SUPCON, REAL_SUPCON, True, HERE)
HEADLINE_CROPS = Claim(
    "Generated views match real images, each with the better of its crops",
    "Tz + Tx, better crops",
    "real images, Tx, better crops",
    at_least=True,
    of=HERE,
)
HEADLINE_PAPER_CROPS = Claim(
    "Generated views match real images, both with the paper's crops",
    "Tz + Tx, crops of 0.2",
    "real images, Tx, crops of 0.2",
    at_least=True,
)
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "views": (
        Claim("Latent views with pixel augmentation beat pixel augmentation alone", BOTH, TX),
        Claim("Latent views with pixel augmentation beat it alone, with labels", BOTH_SUPCON, "Tx only, SupCon"),
        Claim("Pixel augmentation helps latent views", BOTH, "Tz only, SimCLR", of=HERE),
        Claim("Pixel augmentation helps latent views, with labels", BOTH_SUPCON, "Tz only, SupCon", of=HERE),
        Claim("With pixel augmentation alone, real images beat generated ones", REAL, TX),
        HEADLINE,
        HEADLINE_SUPCON,
        Claim("The generator's labels help", BOTH_SUPCON, BOTH, of=HERE),
    ),
    "crops": (
        Claim(
            "Latent views with pixel augmentation beat it alone, each with the better of its crops",
            "Tz + Tx, better crops",
            "Tx only, better crops",
            of=HERE,
        ),
        HEADLINE_CROPS,
        HEADLINE_PAPER_CROPS,
    ),
    "latent": (
        Claim("Gaussian views are as good as learned walks", "gaussian", "steered", True, HERE),
        Claim("The navigator beats gaussian views", "navigator", "gaussian", of=HERE),
    ),
    "std": (
        Claim("Inverted U: a view may be too near", "1", "0.25"),
        Claim("Inverted U: a view may be too far", "1", "1.5"),
    ),
    "anchors": (
        Claim("More anchors are better", "endless", "1,000", of=HERE),
        *(
            Claim("Endless anchors are as good as some that are seen again", "endless", count, True, HERE)
            for count in ("1,000", "10,000")
        ),
    ),
    "neighbors": (
        Claim("More neighbours of an anchor are better", "20", "1"),
        Claim("A new neighbour each time is as good as some that are seen again", "endless", "20", True, HERE),
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
NOTES = {
    "crops": "This was asked after the other findings were known. The preset's crops were chosen for latent views, and "
    "need not be the best ones for the other ways. The better crops of a way are those with the higher mean.",
    "latent": "The steered walks and the navigator are those that ship with genray. The navigator was learned with "
    "smaller crops than these runs use, and moves less far than gaussian views do; steered views move farther. So this "
    "compares them as they are, and not the kinds of views at equal distance.",
    "anchors": "Neighbours are new each time in all of these runs, so a limited number of anchors is not a stored data "
    "set. Anchors that outnumber what a run shows are never seen again, and are then as good as endless.",
}
"""What a reader must know of a finding, none of it measured by its runs."""


def record(findings: Mapping[str, Finding], seeds: Sequence[int], found: Mapping[str, FinishedRun]) -> dict[str, Any]:
    """What the page needs of the runs: by finding, way and seed their names, by name their metrics; and how made."""
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
        "runs": {name: _kept(found[name], found) for name in sorted(names)},
        "made": {
            "common": {path: first.params[path] for path in COMMON},
            "settings": _shared(first),
            "cpus": first.tags["world.cpus"],
            "gpus": first.tags["world.gpus"],
            "versions": {package: first.tags[f"{package}.version"] for package in ("genray", "ray", "torch")},
        },
    }


def _shared(run: FinishedRun) -> dict[str, str]:
    """Its settings that no way sets; of those of the views, the source and the objective each way has its own."""
    set_by_ways = {path for finding in FINDINGS.values() for way in finding.ways for path in way.settings}
    of_way = ("name", "seed", "storage_path", "training.steps", "tracking.", "view.", "source.", "objective.")
    of_rendering = ("generator.", "pool.", "render_on")
    own = of_way + of_rendering
    return {path: value for path, value in run.params.items() if path not in set_by_ways and not path.startswith(own)}


def _kept(run: FinishedRun, found: Mapping[str, FinishedRun]) -> dict[str, Any]:
    metrics = {key: value for key, value in run.metrics.items() if key.startswith(KEPT)}
    changed = run.tags.get("mlflow.source.git.dirty") == "true"
    return {
        **metrics,
        "steps": float(run.params["training.steps"]),
        "started": run.started,
        "ended": run.ended,
        "others_beside": count_overlapping(run, found.values()),
        "commit": run.tags.get("mlflow.source.git.commit", "unknown")[:8] + (" with changes" if changed else ""),
    }


def merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Two records as one, without the runs that no finding has any more.

    Raises:
        UserError: they were made in different ways.
    """
    if not before:
        return dict(now)
    if before["made"] != now["made"]:
        differs = ", ".join(key for key in now["made"] if before["made"].get(key) != now["made"][key])
        raise UserError(
            f"--page must be a directory whose findings.json was made in the same way, got one that differs in "
            f"{differs}; name another directory"
        )
    findings, runs = {**before["findings"], **now["findings"]}, {**before["runs"], **now["runs"]}
    base = {**before["base"], **now["base"]}
    used = {name for finding in findings.values() for way in finding["ways"].values() for name in way["runs"].values()}
    return {
        "findings": {key: findings[key] for key in CLAIMS if key in findings},
        "base": base,
        "runs": {name: runs[name] for name in sorted(used | set(base.values()))},
        "made": now["made"],
    }


def groups(recorded: Mapping[str, Any], key: str) -> dict[str, Group]:
    """The ways of a recorded finding with their runs; what tells them apart is a number where there is an axis."""
    finding = recorded["findings"][key]
    return {
        title: Group(
            _values(title, bool(finding["axis"])),
            tuple(FinishedRun(seed, {}, recorded["runs"][name], {}) for seed, name in way["runs"].items()),
        )
        for title, way in finding["ways"].items()
    }


def judged(key: str, ways: Mapping[str, Group]) -> dict[str, Group]:
    """The ways that a finding's claims are about: its own, and of several crops the better ones."""
    kinds: dict[str, list[Group]] = {}
    for title, group in ways.items() if key == "crops" else ():
        kinds.setdefault(title.rpartition(", ")[0], []).append(group)
    better = {kind: max(of, key=lambda group: group.mean(LINEAR) or 0) for kind, of in kinds.items()}
    return {**ways, **{f"{kind}, better crops": group for kind, group in better.items()}}


def _values(title: str, on_an_axis: bool) -> tuple[Any, ...]:
    if not on_an_axis:
        return tuple(title.split(", "))
    text = title.replace(",", "")
    return (float(text) if "." in text else int(text),) if text.replace(".", "").isdigit() else (title,)


def page(recorded: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    made, runs = recorded["made"], list(recorded["runs"].values())
    common = {path: value for path, value in made["common"].items() if not path.endswith("every")}
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    alone = sum(not run["others_beside"] for run in runs)
    commits = ", ".join(dict.fromkeys(run["commit"] for run in runs))
    lines = [
        "# The paper's findings, on the embedded generator",
        "",
        "Digit scenes are a small and easy world. The generator was trained on their known factors of variation, such",
        "as position and colour ([the embedded generator](generators.md#the-embedded-generator)); a GAN is not. What",
        "holds here need not hold for ImageNet, and what fails here need not fail there.",
        "",
        "- **Tx** is pixel augmentation: each view is cropped and recoloured at random. **Tz** is a latent view:",
        "  another image, rendered from a neighbour of the anchor's latent. **Tz + Tx** is both.",
        "- **SimCLR** uses no labels. **SupCon** also attracts images of one class: the class that the generator was",
        "  asked for, or the digit that a real image shows.",
        "- **Real images** are scenes of the digits that the generator was trained on. Among them are the images that",
        "  the probes are trained on; runs on generated images never see those.",
        f"- The encoder is that of the preset `{PRESET}`, with {_told(common)}: the same",
        "  number of updates for all runs, unless stated otherwise. Figures are means over the seeds ± one standard",
        "  deviation.",
        "- All are judged on the test split, on whose digits neither the generator nor any run was trained. But the",
        "  preset's crops, and the batch, the steps and the learning rate here, were chosen on Tz + Tx, SimCLR with",
        "  test accuracies in view, and a first series with fewer steps was discarded.",
        "- Three seeds were planned. After their results were seen, more seeds of the first finding were begun,",
        "  stopped, and left out.",
        "",
        "```",
        "python jobs/reproduce.py                        # every run, then this page; resumes where it was stopped",
        "genray compare findings --sweep findings        # the same runs from their MLflow store, as one table",
        "python docs/findings.py                         # this page again, from docs/findings.json",
        "```",
        "",
        f"{len(runs)} runs took {clock(runs) / 3600:.1f} hours, {alone} of them alone and {len(runs) - alone} at the "
        f"same time as others; for findings of the latter no minutes are given ({made['cpus']} CPU cores, "
        f"{made['gpus']} GPUs; {versions}, commit {commits}).",
        "",
        "## What agrees with the paper, and what does not",
        "",
        "Each row is a difference in points between runs of the same seed, which start from the same weights: the",
        f"mean, and in brackets its {SURE:.0%} confidence interval, for that row alone. A way is better if its",
        f"interval lies above 0, and is not if it lies below {MARGIN:g}. A way is as good, or matches, if its interval",
        f"lies above -{MARGIN:g}, and does not if it lies below that. Everything else is not decided.",
        "",
        f"| claim | compared | found by | {' | '.join(JUDGES)} |",
        f"|---|---|---|{'---|' * len(JUDGES)}",
    ]
    parts: list[str] = []
    for key, finding in recorded["findings"].items():
        ways = groups(recorded, key)
        of_claims = judged(key, ways)
        axis = f"`{finding['axis']}` " * bool(finding["axis"])
        for claim in CLAIMS[key]:
            verdicts = [claim.verdict(of_claims, metric) for metric in JUDGES.values()]
            if verdicts[0]:
                cells = " | ".join(verdict or "" for verdict in verdicts)
                lines.append(f"| {claim.text} | {axis}{claim.better} over {claim.worse} | {claim.of} | {cells} |")
        parts += ["", f"## {finding['title']}", ""]
        parts += [NOTES[key], ""] if key in NOTES else []
        parts += _table(finding, ways, made["common"])
        if idle := [title for title, group in ways.items() if not _learned(group)]:
            parts += ["", f"Not surely better than the untrained encoder by linear probe: {'; '.join(idle)}."]
        parts += ["", f"![{finding['title']}](findings-{key}.png)"]
    return "\n".join([*lines, *parts, "", *_floors(recorded)]) + "\n"


def _learned(group: Group) -> bool:
    """Whether training made the encoder better, by the same intervals as a claim."""
    gain = _gain(_by_seed(group, LINEAR), _by_seed(group, f"{BASELINES['untrained']}linear"))
    return gain is None or gain[1] > 0


def clock(runs: Sequence[Mapping[str, float]]) -> float:
    """Seconds in which at least one of the runs went on."""
    total = until = 0.0
    for started, ended in sorted((run["started"], run["ended"]) for run in runs):
        total += max(0.0, ended - max(started, until))
        until = max(until, ended)
    return total


def _table(finding: Mapping[str, Any], ways: Mapping[str, Group], common: Mapping[str, str]) -> list[str]:
    again = finding["axis"].startswith("stream.num_")
    alone = not any(group.mean("others_beside") for group in ways.values())  # else the minutes say little of a way
    seen, timed = " times an anchor is seen |" * again, " minutes |" * alone
    lines = [
        f"| {finding['axis'] or 'way'} | settings | runs | updates |{seen} kNN | linear probe |{timed}",
        f"|---|---|---:|---:|{'---:|' * again}---:|---:|{'---:|' * alone}",
    ]
    for title, group in ways.items():
        settings = finding["ways"][title]["settings"]
        steps, seconds = group.mean("steps") or 0, group.mean("seconds.total") or 0
        shown = steps * int(common["stream.batch_size"])
        seen = f" {max(1, shown / settings.get('stream.num_anchors', shown)):.3g} |" * again
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
    runs = Group(
        (), tuple(FinishedRun(seed, {}, recorded["runs"][name], {}) for seed, name in recorded["base"].items())
    )
    cells = [
        f"{name} {compare.shown(runs, f'{prefix}knn')} by kNN, {compare.shown(runs, f'{prefix}linear')} by linear probe"
        for name, prefix in BASELINES.items()
    ]
    return [f"Without training: {'; '.join(cells)} (dashed in the pictures)."]


def headline(recorded: Mapping[str, Any]) -> str:
    """README's table: generated views beside real images, and how sure that is."""
    ways = groups(recorded, "views")
    rows = [
        f"| {text} | {compare.shown(ways[way], KNN)} | {compare.shown(ways[way], LINEAR)} |"
        for text, way in IN_README.items()
    ]
    told = [f"{claim.text}: {claim.verdict(ways)}" for claim in (HEADLINE, HEADLINE_SUPCON)]
    if "crops" in recorded["findings"]:
        crops = judged("crops", groups(recorded, "crops"))
        told += [f"{claim.text}: {claim.verdict(crops)}" for claim in (HEADLINE_CROPS, HEADLINE_PAPER_CROPS)]
    return "\n".join(
        [
            "| the encoder learns from | kNN | linear probe |",
            "|---|---:|---:|",
            *rows,
            "",
            f"Generated over real, in points of the linear probe, with {SURE:.0%} intervals:",
            "",
            *(f"- {line}" for line in told),
        ]
    )


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
        plots.draw_groups(ways, (finding["axis"] or "",), (KNN, LINEAR), picture, lines)


def read(directory: Path) -> dict[str, Any]:
    """The record that was written to a directory; empty where there is none."""
    file = directory / "findings.json"
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":
    write(DOCS, read(DOCS))
