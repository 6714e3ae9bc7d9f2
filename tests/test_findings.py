"""The paper's findings: which runs are made, and what the page says of them. Nothing is trained."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genray import sweep
from genray.compare import Found
from genray.config import Config
from genray.rundir import RunDirectory
from genray.sources import listing
from genray.tracking import Tracker

ROOT = Path(__file__).parent.parent
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


def found(name: str, linear: float, speed: float = 800.0, steps: int = 400) -> Found:
    metrics = {"final.trained.linear": linear, "final.trained.knn": linear / 2, "median.images_per_s": speed}
    floors = {f"final.{of}.{probe}": 0.25 for of in ("untrained", "raw_pixels") for probe in ("knn", "linear")}
    return Found(name, {**SETTINGS, "training.steps": str(steps)}, {**metrics, **floors, "seconds.total": 120.0}, TAGS)


def results(reproduce: Any, linear: dict[str, float], spread: float = 0.01) -> dict[str, Found]:
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
    assert verdict("gaussian", "gaussian") == "+0.0 (+0.0 to +0.0): not decided"
    assert verdict("gaussian", "gaussian", at_least=True, of=page.HERE) == "+0.0 (+0.0 to +0.0): yes"
    assert verdict("other", "gaussian") is None
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
    assert "--seeds" not in page.page(both)
    runs |= {way.name(3): found(way.name(3), 0.5) for way in findings["views"].ways}
    more = page.merged(one, page.record({"views": findings["views"]}, (0, 1, 2, 3), runs))
    assert "\npython jobs/reproduce.py --findings views --seeds 0 1 2 3\n" in page.page(more)
    elsewhere = {**one, "made": {**one["made"], "cpus": "64"}}
    assert page.merged(elsewhere, other) == other


def test_every_claim_is_of_ways_that_are_trained(reproduce: Any, page: Any) -> None:
    findings = {**reproduce.FINDINGS, "wall": reproduce.FINDINGS["reuse"]}
    assert page.CLAIMS.keys() == findings.keys()
    for key, claims in page.CLAIMS.items():
        titles = {way.title for way in findings[key].ways}
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
    assert "1 at a time" in text
    two_at_a_time = page.page(page.record(findings, reproduce.SEEDS, runs, parallel=2))
    assert "| Tz + Tx, SimCLR | the preset | 3 | 400 | 40.6% ± 0.5 | 81.2% ± 1.0 |\n" in two_at_a_time
    assert "commit 01234567 with changes)" in text
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
    assert "(gaussian over steered) | 2106.05258 | +10.0 (+10.0 to +10.0): agrees |" in text
    assert "`training.steps = 20`" in text


def test_the_page_that_is_here_is_that_of_its_record(page: Any, reproduce: Any) -> None:
    recorded = page.read(page.DOCS)
    assert (page.DOCS / "findings.md").read_text() == page.page(recorded)
    assert list(recorded["findings"]) == list(page.CLAIMS)
    for key, finding in recorded["findings"].items():
        assert (page.DOCS / f"findings-{key}.png").exists()
        assert all(len(way["runs"]) >= len(reproduce.SEEDS) for way in finding["ways"].values())
        assert "with changes" not in finding["commit"]
    readme = (ROOT / "README.md").read_text()
    assert f"<!-- findings -->\n{page.headline(recorded)}\n<!-- /findings -->" in readme
    [headline] = [claim for claim in page.CLAIMS["views"] if claim.text == "Generated views match or beat real images"]
    assert str(headline.verdict(page.groups(recorded, "views"))).endswith(": agrees")  # as README says
