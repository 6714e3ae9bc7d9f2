"""The paper's findings: which runs are made, and what the page says of them. Nothing is trained."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from PIL import Image

from genray.commands import sweep
from genray.config import load
from genray.config.errors import UserError
from genray.config.run import Config
from genray.runs.directory import RunDirectory
from genray.tracking import described
from genray.tracking.compare import FinishedRun
from genray.tracking.tracker import Tracker
from genray.views.sources import listing

TAGS = {
    "mlflow.source.git.commit": "0123456789",
    "mlflow.source.git.dirty": "true",
    "world.cpus": "2",
    "world.gpus": "0",
    "genray.version": "1",
    "ray.version": "2",
    "torch.version": "3",
}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    for directory in ("jobs", "docs"):
        monkeypatch.syspath_prepend(ROOT / directory)
    yield importlib.import_module("reproduce"), importlib.import_module("findings")
    for name in ("reproduce", "findings"):
        sys.modules.pop(name, None)


@pytest.fixture
def reproduce(modules: tuple[Any, Any]) -> Any:
    return modules[0]


@pytest.fixture
def page(modules: tuple[Any, Any]) -> Any:
    return modules[1]


@pytest.fixture
def few(reproduce: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write = reproduce.write_real_images
    monkeypatch.setattr(reproduce, "write_real_images", lambda directory: write(directory, 100))


SETTINGS = {
    "stream.batch_size": "32",
    "training.checkpoint_every": "400",
    "probe.every": "400",
    "tracking.previews_every": "400",
}


def found(name: str, linear: float, speed: float = 800.0, steps: int = 400) -> FinishedRun:
    metrics = {"final.trained.linear": linear, "final.trained.knn": linear / 2, "median.images_per_s": speed}
    floors = {f"final.{of}.{probe}": 0.25 for of in ("untrained", "raw_pixels") for probe in ("knn", "linear")}
    return FinishedRun(
        name, {**SETTINGS, "training.steps": str(steps)}, {**metrics, **floors, "seconds.total": 120.0}, TAGS
    )


def results(reproduce: Any, linear: dict[str, float], spread: float = 0.01) -> dict[str, FinishedRun]:
    """Three runs of each way, around the value given for its title."""
    ways = [way for finding in reproduce.FINDINGS.values() for way in finding.ways]
    ways.sort(key=lambda way: way.title in linear)  # of ways that share their runs those with a value come last
    return {
        way.name(seed): found(way.name(seed), linear.get(way.title, 0.5) + (seed - 1) * spread)
        for way in ways
        for seed in reproduce.SEEDS
    }


def test_every_run_is_a_configuration_and_is_made_once(reproduce: Any, few: None, tmp_path: Path) -> None:
    ways = [way for finding in reproduce.FINDINGS.values() for way in finding.ways]
    made = reproduce.configs(ways, [0, 1], ["--storage_path", str(tmp_path), "--training.steps", "20"])
    assert {config.name for config in made} == {way.name(seed) for way in ways for seed in (0, 1)}
    assert len({json.dumps({**config.to_dict(), "name": ""}) for config in made}) == len(made) < 2 * len(ways)
    assert {config.training.steps for config in made} == {20}
    assert {config.tracking.experiment for config in made} == {"findings"}
    real = next(config.source.directory for config in made if config.source.kind == "images")
    assert Path(real) == tmp_path / "findings-real"
    assert len(listing.listing(real).files) == 100
    assert sorted(path.name for path in Path(real).iterdir()) == sorted(map(str, range(10)))


def test_equally_long_runs_have_as_many_more_updates_as_they_are_faster(reproduce: Any) -> None:
    runs = results(reproduce, {})
    for way, speed in zip(reproduce.FINDINGS["reuse"].ways, (800.0, 1000.0, 1200.0, 1230.0), strict=True):
        for seed in reproduce.SEEDS:
            runs[way.name(seed)] = found(way.name(seed), 0.5, speed + 100 * (seed - 1))
    longer = reproduce.equally_long(runs, reproduce.SEEDS, 400)
    assert [way.settings.get("training.steps") for way in longer.ways] == [None, 500, 600, 620]
    assert longer.ways[1].settings["stream.reuse"] == 2


def test_runs_of_the_second_part_follow_from_the_first(
    reproduce: Any, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[set[str]] = []

    def train(name: str, configs: list[Any], **more: Any) -> sweep.Outcome:
        swept.append({config.name for config in configs})
        return sweep.Outcome({}, {})

    runs = results(reproduce, {})
    for seed in (0, 1):
        name = reproduce.FINDINGS["reuse"].ways[1].name(seed)
        runs[name] = found(name, 0.5, 1600.0)
    monkeypatch.setattr(reproduce.sweep, "sweep", train)
    monkeypatch.setattr(reproduce, "results", lambda config: runs)
    storage = ["--storage_path", str(tmp_path)]
    reproduce.main(["--findings", "reuse", "--seeds", "0", "1", "--page", "", *storage])
    assert swept[0] == {way.name(seed) for way in reproduce.FINDINGS["reuse"].ways for seed in (0, 1)}
    assert f"findings-reuse=2-steps={2 * reproduce.STEPS}-seed=1" in swept[1]


def test_a_failed_run_is_told_in_a_line(
    reproduce: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("it broke\n")
    monkeypatch.setattr(reproduce.sweep, "sweep", lambda name, configs, **more: sweep.Outcome({}, {"one": log}))
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--findings", "latent", "--seeds", "0", "--storage_path", str(tmp_path)])
    assert ended.value.code == 1
    assert "genray: 1 of 1 runs failed, the first one: it broke" in capsys.readouterr().err


def test_a_difference_is_judged_between_runs_of_the_same_seed(reproduce: Any, page: Any) -> None:
    runs = results(reproduce, {"gaussian": 0.8, "steered": 0.7, "navigator": 0.79})
    steered = reproduce.FINDINGS["latent"].ways[1]
    runs[steered.name(0)] = found(steered.name(0), 0.7)  # 10, 11 and 9 points less instead of 9, 10 and 11
    runs[steered.name(2)] = found(steered.name(2), 0.72)
    recorded = page.record({"latent": reproduce.FINDINGS["latent"]}, reproduce.SEEDS, runs)
    groups = page.groups(recorded, "latent")

    def verdict(better: str, worse: str, at_least: bool = False, of: str = page.PAPER) -> str | None:
        return page.Claim("", better, worse, at_least, of).verdict(groups)

    # differences of 9, 10 and 9 points: 9.33 ± 4.303 · 0.577 / sqrt(3), Student's t with 2 degrees of freedom
    assert verdict("gaussian", "steered") == "+9.3 (+7.9 to +10.8): agrees"
    assert verdict("steered", "gaussian", at_least=True) == "-9.3 (-10.8 to -7.9): **does not agree**"
    assert verdict("steered", "gaussian", of=page.HERE) == "-9.3 (-10.8 to -7.9): no"
    assert verdict("navigator", "gaussian") == "-1.0 (-1.0 to -1.0): **does not agree**"
    assert verdict("navigator", "gaussian", at_least=True) == "-1.0 (-1.0 to -1.0): agrees"  # by less than the margin
    assert verdict("gaussian", "gaussian") == "+0.0 (+0.0 to +0.0): **does not agree**"
    assert verdict("gaussian", "gaussian", at_least=True, of=page.HERE) == "+0.0 (+0.0 to +0.0): yes"
    assert verdict("other", "gaussian") is None
    for seed, lower in enumerate((0.0098, 0.011, 0.0122)):  # 1.1 points less, -1.4 to -0.8: as good; then -2.3 to -1.7
        runs[steered.name(seed)] = found(steered.name(seed), 0.79 + seed * 0.01 - lower)
    for shift, told in ((0.0, "agrees"), (0.009, "not decided"), (0.02, "**does not agree**")):
        moved = {
            steered.name(seed): found(steered.name(seed), runs[steered.name(seed)].metrics[page.LINEAR] - shift)
            for seed in reproduce.SEEDS
        }
        shifted = page.record({"latent": reproduce.FINDINGS["latent"]}, reproduce.SEEDS, {**runs, **moved})
        claim = page.Claim("", "steered", "gaussian", at_least=True)
        assert str(claim.verdict(page.groups(shifted, "latent"))).endswith(f": {told}")
    runs[steered.name(1)] = found(steered.name(1), 0.9)
    groups = page.groups(page.record({"latent": reproduce.FINDINGS["latent"]}, reproduce.SEEDS, runs), "latent")
    assert str(verdict("gaussian", "steered", at_least=True)).endswith(": not decided")


def test_records_made_in_the_same_way_are_one_page(reproduce: Any, page: Any) -> None:
    runs, findings = results(reproduce, {}), reproduce.FINDINGS
    one = page.record({"anchors": findings["anchors"]}, reproduce.SEEDS, runs)
    other = page.record({"views": findings["views"]}, reproduce.SEEDS, runs)
    both = page.merged(one, other)
    assert list(both["findings"]) == ["views", "anchors"]
    assert both["runs"] == {**one["runs"], **other["runs"]}
    assert len(both["runs"]) == 3 * (9 + 4 - 1)
    assert page.merged({}, one) == one
    elsewhere = {**one, "made": {**one["made"], "cpus": "64"}}
    with pytest.raises(UserError, match="differs in cpus; name another directory"):
        page.merged(elsewhere, other)
    fewer = page.merged(both, page.record({"anchors": findings["anchors"]}, (0, 1), runs))
    assert not any(name.endswith("num_anchors=1000-seed=2") for name in fewer["runs"])


def test_settings_that_were_overridden_are_not_merged(reproduce: Any, page: Any) -> None:
    runs = results(reproduce, {})
    one = page.record({"anchors": reproduce.FINDINGS["anchors"]}, reproduce.SEEDS, runs)
    other = {name: dataclasses.replace(run, params={**run.params, "optimizer.lr": "0.1"}) for name, run in runs.items()}
    with pytest.raises(UserError, match="differs in settings"):
        page.merged(one, page.record({"views": reproduce.FINDINGS["views"]}, reproduce.SEEDS, other))


def test_who_renders_is_no_difference_between_records(reproduce: Any, page: Any) -> None:
    """A record of a version with other names for that is added to."""
    params = described.parameters(load.load("demo", ["--name=a"]))
    assert {"pool.num", "render_on", "learners.num_workers"} <= params.keys()
    runs = {
        name: dataclasses.replace(run, params={**params, **run.params}) for name, run in results(reproduce, {}).items()
    }
    settings = page.record({"anchors": reproduce.FINDINGS["anchors"]}, reproduce.SEEDS, runs)["made"]["settings"]
    assert "learners.num_workers" in settings
    assert not [name for name in settings if name.startswith(("pool", "render_on", "generators"))]


def test_runs_side_by_side_are_known_by_their_times(reproduce: Any, page: Any) -> None:
    runs = results(reproduce, {})
    names = list(runs)
    for place, name in enumerate(names):  # a minute each; the second begins before the first has ended
        start = 60.0 * place - 30.0 * (place == 1)
        runs[name] = dataclasses.replace(runs[name], started=start, ended=60.0 * place + 60)
    assert [reproduce.count_overlapping(runs[name], runs.values()) for name in names[:3]] == [1, 1, 0]
    kept = [{"started": run.started, "ended": run.ended} for run in runs.values()]
    assert page.clock(kept) == 60 * len(names)
    first, second, *_ = (way.name(0) for way in reproduce.FINDINGS["reuse"].ways)
    runs[first] = dataclasses.replace(runs[first], started=-100.0, ended=-10.0)
    runs[second] = dataclasses.replace(runs[second], started=-50.0, ended=-5.0)
    with pytest.raises(UserError, match="must be made one at a time, got"):
        reproduce.equally_long(runs, reproduce.SEEDS, 400)


def test_every_claim_is_of_ways_that_are_trained(reproduce: Any, page: Any) -> None:
    findings = {**reproduce.FINDINGS, "wall": reproduce.FINDINGS["reuse"]}
    assert page.CLAIMS.keys() == findings.keys()
    for key, claims in page.CLAIMS.items():
        titles = {way.title for way in findings[key].ways}
        titles |= {f"{title.rpartition(', ')[0]}, better crops" for title in titles if key == "crops"}
        assert all({claim.better, claim.worse} <= titles for claim in claims)


def test_the_page_has_every_way_and_every_claim(reproduce: Any, page: Any, tmp_path: Path) -> None:
    runs = results(reproduce, {"Tz + Tx, SimCLR": 0.8123})
    findings = dict(reproduce.FINDINGS)
    page.write(tmp_path, page.record(findings, reproduce.SEEDS, runs))
    text = (tmp_path / "findings.md").read_text()
    for key, finding in findings.items():
        with Image.open(tmp_path / f"findings-{key}.png") as picture:
            assert picture.width < 1200  # as wide as a page, so that its text can be read
        assert all(f"| {way.title} |" in text for way in finding.ways)
        assert all(claim.text in text for claim in page.CLAIMS[key])
    assert "| Tz + Tx, SimCLR | the preset | 3 | 400 | 40.6% ± 0.5 | 81.2% ± 1.0 | 2.0 |" in text
    assert "| 1,000 | `stream.num_anchors = 1000` | 3 | 400 | 12.8 | 25.0% ± 0.5 |" in text
    assert "| endless | the preset | 3 | 400 | 1 |" in text
    assert "untrained 25.0% ± 0.0 by kNN" in text
    assert "`stream.batch_size = 32`, `training.steps = 400`" in text
    assert "of them alone and 0 at the same time as others" in text
    side_by_side = {name: dataclasses.replace(run, started=0.0, ended=9.0) for name, run in runs.items()}
    without_minutes = page.page(page.record(findings, reproduce.SEEDS, side_by_side))
    assert "| Tz + Tx, SimCLR | the preset | 3 | 400 | 40.6% ± 0.5 | 81.2% ± 1.0 |\n" in without_minutes
    assert "commit 01234567 with changes)" in text
    assert "Not surely better than the untrained encoder" not in text
    untrained = {
        name: dataclasses.replace(run, metrics={**run.metrics, "final.untrained.linear": 0.5})
        for name, run in runs.items()
    }
    told = page.page(page.record({"std": findings["std"]}, reproduce.SEEDS, untrained))
    assert "untrained encoder by linear probe: 0.25; 0.5; 1.5; 2." in told
    page.write(tmp_path, page.read(tmp_path))
    assert (tmp_path / "findings.md").read_text() == text


def test_runs_that_are_timed_are_made_one_after_the_other(
    reproduce: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--parallel", "2", "--storage_path", str(tmp_path)])
    assert ended.value.code == 2
    assert "--parallel must be 1 with the finding reuse, whose runs are timed, got 2" in capsys.readouterr().err


def test_the_page_is_made_of_what_mlflow_has(
    reproduce: Any, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Config] = []

    def train(name: str, configs: list[Config], **more: Any) -> sweep.Outcome:
        made.extend(configs)
        for config in configs:
            directory = RunDirectory.of(config).path
            directory.mkdir(parents=True)
            tracker = Tracker(config, directory, pytest.fail)
            linear = 0.6 + 0.1 * (config.view.kind == "gaussian") + 0.01 * config.seed
            metrics = {"final.trained.linear": linear, "final.trained.knn": linear / 2, "seconds.total": 60.0}
            tracker.summary(metrics, {"world.cpus": "2", "world.gpus": "0"})
            assert tracker.close("FINISHED", 60) == []
        return sweep.Outcome({}, {})

    monkeypatch.setattr(reproduce.sweep, "sweep", train)
    ours = ["--findings", "latent", "--seeds", "0", "1", "--storage_path", str(tmp_path), "--training.steps", "20"]
    reproduce.main([*ours, "--page", str(tmp_path)])
    assert len(made) == 6
    text = (tmp_path / "findings.md").read_text()
    assert "| gaussian | the preset | 2 | 20 | 35.2% ± 0.4 | 70.5% ± 0.7 | 1.0 |" in text
    assert "| gaussian over steered | asked here | +10.0 (+10.0 to +10.0): yes |" in text
    assert "`training.steps = 20`" in text


def test_the_page_that_is_here_is_that_of_its_record(page: Any, reproduce: Any) -> None:
    recorded = page.read(page.DOCS)
    assert (page.DOCS / "findings.md").read_text() == page.page(recorded)
    assert list(recorded["findings"]) == list(page.CLAIMS)
    for key, finding in recorded["findings"].items():
        assert (page.DOCS / f"findings-{key}.png").exists()
        assert all(len(way["runs"]) >= len(reproduce.SEEDS) for way in finding["ways"].values())
    assert not any("with changes" in run["commit"] for run in recorded["runs"].values())
    readme = (ROOT / "README.md").read_text()
    assert f"<!-- findings -->\n{page.headline(recorded)}\n<!-- /findings -->" in readme
