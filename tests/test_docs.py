"""The pages say what is so: examples run, links lead somewhere, metrics are explained, figures come from reports."""

import importlib.util
import re
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from genray import configure
from genray.learner import Learner, Window
from genray.plan import Plan
from genray.views import Renderer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
REPORT = {
    "probes": {"trained": {"knn": 0.876, "linear": 0.9}, "raw_pixels": {"knn": 0.4, "linear": 0.3}},
    "seconds_to_first_step": {"Ray started": 9.0, "first step": 21.0, "total": 30.0},
    "seconds_total": 250.4,
    "steps": 400,
    "images_per_s": 1234.5,
    "data_wait": 0.1,
    "generator_busy": 0.5,
    "hardware": {"nodes": 1, "cpus": 2.0, "gpus": 0.0},
    "versions": {"python": "3.11", "torch": "2.9", "ray": "2.60"},
    "seed": 0,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_toml_examples_are_configurations():
    examples = [configure.build({"name": "example", **tomllib.loads(text)}) for text in blocks("toml")]
    assert {example.generator.kind for example in examples} == {"biggan", "custom"}
    assert all(Plan.of(example).steps for example in examples)


def test_own_generator_example_renders(tmp_path, monkeypatch):
    [code] = [text for text in blocks("python") if "class Waves" in text]
    [settings] = [text for text in blocks("toml") if "waves:Waves" in text]
    (tmp_path / "waves.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    shown = Renderer(configure.build({"name": "waves", **tomllib.loads(settings)}), "cpu").shown(np.arange(3))
    assert shown["views"].shape == (3, 2, 3, 32, 32)
    assert np.abs(shown["views"][:, 0].astype(int) - shown["views"][:, 1]).mean() > 1


@pytest.mark.parametrize("page", ["README.md", "cluster/README.md"])
def test_links_to_files_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    # written by the job that trains the embedded generator
    assert [path for path in missing if not path.endswith("digit_scenes/report.json")] == []


def test_every_metric_is_explained():
    window = Window(steps=1, loss=torch.tensor(1.0))
    window.received({"render_s": [1.0], "created_at": [time.time()], "generator": ["one"]}, 0.0)
    record = window.record(Learner(configure.load("demo"), 0, torch.device("cpu")))
    assert record.pop("batches") == []  # they have a file of their own
    logged = {*record, "alignment", "uniformity", "lr", "knn"}
    table = README.partition("## Metrics")[2].partition("\n## ")[0]
    assert logged <= set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))


def test_every_section_is_explained():
    table = README.partition("## Configuration")[2].partition("\n## ")[0]
    explained = set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))
    settings = configure.load("demo").to_dict()
    assert explained == {name for name, value in settings.items() if isinstance(value, dict)}


def test_figures_are_written_from_a_report(figures):
    page = "before\n<!-- demo -->\nold\n<!-- /demo -->\nafter\n"
    once = figures.fill(page, "demo", figures.demo(REPORT))
    assert "| trained | 87.6% | 90.0% |" in once
    assert "30 s (Ray started 9.0, first step 21.0)" in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert figures.fill(once, "demo", figures.demo(REPORT)) == once
    figures.fill(figures.fill(README, "demo", "x"), "generator", "x")  # the page has both blocks


def test_figures_need_their_block(figures):
    with pytest.raises(ValueError, match="<!-- demo -->"):
        figures.fill("no block", "demo", "x")
