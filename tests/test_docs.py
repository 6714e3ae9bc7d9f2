"""The pages say what is so: examples run, links lead somewhere, metrics are explained, figures come from reports."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from encoders import KINDS, columns_of, encoder_of, images_of
from fakes import small

from genray import balance, configure, records, report
from genray.config import MAY_CHANGE
from genray.course import Course
from genray.learner import Learner, Window
from genray.plan import Plan
from genray.probes.settings import ProbeName
from genray.recorder import Recorder
from genray.rundir import RunDirectory
from genray.views import Renderer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
METRICS = (ROOT / "docs" / "metrics.md").read_text()
VIEWS = (ROOT / "docs" / "views.md").read_text()
PROBES = (ROOT / "docs" / "probes.md").read_text()
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


PAGES = ["README.md", "cluster/README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README + VIEWS, flags=re.DOTALL)


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


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    # written by the job that trains the embedded generator
    assert [path for path in missing if not path.endswith("digit_scenes/report.json")] == []


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The keys of a record of metrics.jsonl after one step, without what a probe adds."""
    config = small(storage_path=str(tmp_path_factory.mktemp("runs")), model={"backbone": "resnet18"})
    run = RunDirectory.of(config)
    run.path.mkdir()
    learner, renderer = Learner(config, 0, torch.device("cpu")), Renderer(config, "cpu")
    window = learner.open = Window(loss=torch.tensor(1.0))
    window.measured.steps = 1
    window.measured.arrived(renderer.block(Course(learner.plan).ticket(0)))
    learner.stopwatch.lap("wait")
    record = learner._record(1, window, {"embeddings": torch.eye(4)}, {})
    Recorder(config).after_report(None, [record], None)
    return set(records.last(run.metrics))


def explained(section, page=README):
    """What the first column of a section's table explains, and the text of each row."""
    table = page.partition(f"# {section}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([\w.]+)` \|(.*)", table, flags=re.MULTILINE))


def of_objectives():
    """What any objective measures."""
    found = set()
    for kind in KINDS:
        encoder = encoder_of(kind)
        outputs = {name: rows.detach() for name, rows in encoder(images_of(encoder)).items()}
        found |= set(encoder.metrics(outputs, columns_of(encoder)))
    return found


def test_every_metric_is_explained(recorded):
    phases = {f"step_ms.{phase}" for phase in balance.PHASES}
    assert phases < recorded
    rows = explained("Metrics", METRICS)
    text = METRICS.partition("| key |")[0]
    above = set(re.findall(r"`(\w+)`", text)) & recorded
    assert above == {"step", "anchors", "time"}
    of_the_end = {"knn", "final.ENCODER.PROBE", "median.METRIC", "faults", "seconds.to_first_step", "seconds.total"}
    assert set(rows) == recorded - above - phases | {"step_ms.PHASE"} | of_the_end | of_objectives()
    assert set(re.findall(r"`(\w+)`", rows["step_ms.PHASE"].split("|")[1])) == set(balance.PHASES)


def test_what_the_report_sums_up_is_measured(recorded):
    assert set(report.MEDIANS) <= recorded


def test_medians_in_mlflow_are_told():
    assert set(report.SUMMED_UP) < set(report.MEDIANS)
    told = explained("Metrics", METRICS)["median.METRIC"].partition(";")[0]
    assert set(report.SUMMED_UP) == set(re.findall(r"`(\w+)`", told))


def test_what_a_record_without_blocks_lacks_is_told():
    without = balance.metrics([balance.Window(steps=1, seconds={"wait": 1.0})], 1, 1)
    with_one = balance.metrics([balance.Window(steps=1, seconds={"wait": 1.0}, blocks=1)], 1, 1)
    told = METRICS.partition("are left out of a")[0].rpartition("\n\n")[2]
    assert set(re.findall(r"`(\w+)`", told)) == set(with_one) - set(without)


def test_what_may_change_is_told():
    told = README.partition("A changed configuration is refused")[2].partition("may change.")[0]
    assert set(re.findall(r"`([\w.]+)`", told)) == set(MAY_CHANGE)


def test_every_section_is_explained():
    settings = configure.load("demo").to_dict()
    assert set(explained("Configuration")) == {name for name, value in settings.items() if isinstance(value, dict)}


def test_every_probe_is_explained():
    table = PROBES.partition("| `--probe` |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(get_args(ProbeName))


def test_every_field_of_the_stream_is_named():
    assert set(re.findall(r"`(\w+)`", explained("Configuration")["stream"])) == set(
        configure.load("demo").to_dict()["stream"]
    )


def test_figures_are_written_from_a_report(figures):
    page = "before\n<!-- demo -->\nold\n<!-- /demo -->\nafter\n"
    once = figures.fill(page, "demo", figures.demo(REPORT))
    assert "| trained | 87.6% | 90.0% |" in once
    assert "30 s (Ray started 9.0, first step 21.0)" in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert figures.fill(once, "demo", figures.demo(REPORT)) == once
    figures.fill(README, "demo", "x")  # the page has the block


def test_the_figures_of_the_page_are_those_of_the_reports(figures):
    assert all(figures.written(name) == (ROOT / "docs" / name).read_text() for name in figures.PAGES)


def test_figures_need_their_block(figures):
    with pytest.raises(ValueError, match="<!-- demo -->"):
        figures.fill("no block", "demo", "x")
