"""The benchmarks run, and what they write can be shown; their figures are judged by people."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import SETTINGS
from paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def report(tmp_path: Path, name: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark writes."""
    out = tmp_path / f"{name}.json"
    command = [sys.executable, str(ROOT / f"benchmarks/{name}.py"), *arguments, "--repeats", "1", "--out", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_four_ways_of_feeding_one_training(tmp_path: Path) -> None:
    """The learner of each checks that what it gets is what it must see next."""
    file = tmp_path / "small.json"
    file.write_text(json.dumps({**SETTINGS, "name": "small", "generator": {"kind": "biggan", "micro_batch": 32}}))
    found = report(tmp_path, "side_by_side", str(file), "--tickets", "2", "--parts", "ways")
    ways = found["ways"]
    for way, rate in ways["anchors_per_s"].items():
        assert rate["least"] == rate["median"] == rate["most"] > 0, way
    (only,) = ways["rounds"]
    expected = only["genray"]["anchors_per_s"] / only["in turn"]["anchors_per_s"]
    assert ways["genray_over"]["in turn"]["median"] == expected
    assert only["files"]["first_epoch"] < only["files"]["anchors_per_s"]
    assert only["files"]["bytes_per_anchor"] > 2 * 100
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    assert spec is not None
    assert spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert f"| {only['in turn']['anchors_per_s']:.0f} (" in figures.side_by_side(found)


def test_simulated_sides_overlap(tmp_path: Path) -> None:
    (found,) = report(tmp_path, "scaling", "--parts", "balance")["balance"]
    assert found["in_turn"] == pytest.approx(0.5, rel=0.02)
    assert 1.5 < found["ratio"] < 2.02
