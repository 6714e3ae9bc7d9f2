"""MLflow's own page that compares runs, driven in a real browser: what genray records is of use there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import ROOT

from genray.config import load
from genray.runs import jsonl
from genray.runs.directory import RunDirectory
from genray.tracking import mlflow_store
from genray.tracking.tracker import Tracker

DOCS = ROOT / "docs"
STDS = {0.25: 0.7, 1.5: 0.9}


@pytest.fixture
def screenshots(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DOCS)
    import browser
    import screenshots

    if browser.executable() is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    yield screenshots
    for name in ("browser", "screenshots"):
        sys.modules.pop(name, None)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, list[str]]:
    """Two finished runs that differ in one setting: their experiment, and their ids."""
    client, found = mlflow_store.connect(mlflow_store.address_in(tmp_path)), []
    for std, linear in STDS.items():
        values = {"name": f"std {std}", "view": {"kind": "gaussian", "std": std}, "storage_path": str(tmp_path)}
        config, directory = load.build(values), tmp_path / f"std {std}"
        directory.mkdir()
        busy = {"step": 0, "time": 1.7e9, "system/cpu_utilization_percentage": 50.0}
        jsonl.append(RunDirectory(directory).system, busy)
        for step in range(1, 20):
            jsonl.append(RunDirectory(directory).metrics, {"step": step, "time": 1.7e9 + step, "loss": 9 * std / step})
        tracker = Tracker(config, directory, pytest.fail)
        tracker.summary({"final.trained.linear": linear}, {})
        assert tracker.close("FINISHED", 60) == []
        found.append(json.loads((directory / "mlflow.json").read_text())["run_id"])
    return client.get_run(found[0]).info.experiment_id, found


def test_the_page_that_compares_runs(screenshots: Any, runs: tuple[str, list[str]], tmp_path: Path) -> None:
    experiment, ids = runs
    with screenshots.served(mlflow_store.address_in(tmp_path)) as base, screenshots.page() as tab:
        screenshots.quiet(tab, base)
        tab.open(screenshots.comparison(base, experiment, ids))
        tab.wait_for_text("Comparing 2 Runs from 1 Experiment", "std 0.25", "std 1.5", "view.std")
        above, _, below = tab.text().partition("Run details")
        plotted = above.partition("Parameters:")[2].split()
        assert plotted[0] == "view.std", "the page shows first another setting than the one that differs"
        assert plotted[plotted.index("Metrics:") + 1] == "loss"
        assert "system/" not in above
        for value in STDS.values():
            assert f"{value:g}" in below
        assert "objective.kind" in below

        screenshots.only_differences(tab)
        tab.wait_for("!document.body.innerText.includes('objective.kind')")
        left = tab.text().partition("Show diff only")[2].partition("Show diff only")[0]
        settings = [line.split()[0] for line in left.splitlines() if "." in line.split("\t")[0] and "\t" in line]
        assert settings == ["view.std"]

        tab.click("Scatter Plot")
        tab.wait_for_text("X-axis", "Y-axis")
        tab.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
