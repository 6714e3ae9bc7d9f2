"""The generator benchmark: what it counts, and that its report can be shown. Its figures are judged by people."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from paths import ROOT


def module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return module("benchmarks/generator.py")


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda x, w: x + 1, 2 * 4 * 96),
        (lambda x, w: x.relu_(), 2 * 4 * 96),
        (lambda x, w: x.view(-1).unflatten(0, (2, 48)).permute(1, 0), 0),
        (lambda x, w: F.conv2d(x, w), 4 * (96 + 15 + 160)),
        (lambda x, w: x * w[:1].expand(2, 3, 4, 4), 4 * (96 + 3 + 96)),
        (lambda x, w: torch.empty(50), 0),
        (lambda x, w: x.bfloat16() + 1, 4 * 96 + 2 * 96 + 2 * 2 * 96),
    ],
    ids=["result", "in place", "views", "weights", "broadcast", "reserved", "precision"],
)
def test_bytes_are_those_of_arguments_and_results(benchmark: ModuleType, work: Any, expected: int) -> None:
    x, w = torch.rand(2, 3, 4, 4), torch.rand(5, 3, 1, 1)
    with torch.no_grad(), benchmark.Bytes() as moved:
        work(x, w)
    assert moved.total == expected


def test_errors_are_those_of_all_pixels(benchmark: ModuleType) -> None:
    reference = torch.zeros(1, 3, 100, 100, dtype=torch.uint8)
    images = reference.clone()
    images.view(-1)[:40], images.view(-1)[40:50] = 2, 200
    found = benchmark.error(images, reference)
    assert found == {"mean": round((40 * 2 + 10 * 200) / 30_000, 5), "percentile_99.9": 2, "max": 200}


@pytest.fixture(scope="module")
def report(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """That of a narrow network, in two portions."""
    out = tmp_path_factory.mktemp("report") / "generator.json"
    command = ["generator.py", "--size", "32", "--width", "8", "--micro-batch", "4", "--device", "cpu"]
    command += ["--seconds", "0.01", "--repeats", "2", "--ways", "bfloat16", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "copy_rate", lambda device: 1e10)
        patch.setattr(benchmark, "matmul_rate", lambda device, precision: 1e11)
        for micro_batch in ("4", "2", "4"):
            command[command.index("--micro-batch") + 1] = micro_batch
            patch.setattr(sys, "argv", command)
            patch.setenv("GENRAY_CACHE", "")
            benchmark.main()
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_each_way_is_measured_beside_the_package(report: dict[str, Any]) -> None:
    assert [run["micro_batch"] for run in report["runs"]] == [2, 4]  # the second of four has replaced the first
    ways = report["runs"][1]["ways"]
    assert list(ways) == ["stock", "float32", "bfloat16"]
    for way in ways.values():
        assert len(way["images_per_s"]) == len(way["over_stock"]) == 2
        assert min(way["images_per_s"]) > 0
    stock, ours, half = ways.values()
    assert stock["over_stock"] == [1, 1]
    assert ours["over_stock"][1] == ours["images_per_s"][1] / stock["images_per_s"][1]
    assert "error" not in stock
    assert max(ours["error"]["max"], ours["error_random"]["max"]) <= 1
    assert 0 < half["error"]["mean"] < 0.3 < half["error_random"]["mean"] < 3
    assert ours["macs"] < stock["macs"]
    assert ours["bytes"] < 0.8 * stock["bytes"]
    assert half["bytes"] < 0.7 * ours["bytes"]
    assert half["weight_bytes"] < ours["weight_bytes"] < stock["weight_bytes"]


def test_multiply_adds_are_those_of_the_layers(report: dict[str, Any], benchmark: ModuleType) -> None:
    """By hand, for 32 pixels and 8 channels: convolutions, attention, and the products with the condition."""
    config = benchmark.network(32, 8, z_dim=128, num_classes=1000)
    side, total, norms = 4, 256 * 16 * 16 * 8, 0
    for i, (up, wide, narrow) in enumerate(config["layers"]):
        wide, narrow, middle = 8 * wide, 8 * narrow, 2 * wide
        if i == config["attention_layer_position"]:
            total += side**2 * (wide * (2 * (wide // 8) + wide // 2) + wide // 2 * wide)
            total += side**2 * (side // 2) ** 2 * 2 * (wide // 2)  # on a CPU keys are as wide as values
        inner = side * (2 if up else 1)
        first = 16 * side**2 if up else 9 * side**2  # a transposed convolution of stride 2
        total += side**2 * wide * middle + first * middle**2 + inner**2 * (9 * middle**2 + middle * narrow)
        norms, side = norms + wide + 3 * middle, inner
    total += side**2 * 9 * 8 * 3 + 256 * 2 * (norms + 8)
    assert report["runs"][1]["ways"]["float32"]["macs"] == total


def test_the_report_becomes_a_table(report: dict[str, Any], benchmark: ModuleType) -> None:
    run = report["runs"][1]
    lines = benchmark.table(run)
    assert lines[0].startswith("BigGAN-deep-32, 4 images at once, CPU")
    assert [line.split("  ")[0] for line in lines[2:]] == ["stock", "float32", "bfloat16"]
    figures = module("docs/figures.py")
    assert figures.biggan(report) == ""  # no published network
    figures.PUBLISHED_WIDTH = 8
    shown = figures.biggan(report)
    assert shown.count("| 32 px, CPU |") == 2
    assert "| bfloat16 | " in shown
    assert f"genray {run['ways']['float32']['macs'] / 1e9:.1f} and" in shown
    assert "\n\n| 32 px" in shown
    run["ways"]["bfloat16"].update(bytes=None, memory_bytes=None)  # as a compiled one has it
    figures.biggan(report)
    benchmark.table(run)
