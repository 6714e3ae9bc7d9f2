"""The pages say what is so: what they name exists, examples run, metrics are explained, figures come from reports."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from encoders import KINDS, columns_of, encoder_of, images_of
from fakes import small
from paths import ROOT

import genray
from genray.cli.main import Command
from genray.commands import report
from genray.config import load
from genray.config.fields import hints, members
from genray.config.probe import ProbeName
from genray.config.run import Config
from genray.learner import balance
from genray.learner.learner import Learner
from genray.learner.recorder import Recorder
from genray.runs import filenames, jsonl
from genray.stream.plan import Plan
from genray.stream.renderer import Renderer
from genray.stream.run import Run
from genray.stream.tickets import Course

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
METRICS = (DOCS / "metrics.md").read_text()
PROBES = (DOCS / "probes.md").read_text()
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


def read_text(path: Path) -> str | None:
    """The text of a file; None for a binary one."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return None


PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted([*ROOT.glob("[!.]*.md"), *(ROOT / "cluster").glob("*.md"), *DOCS.glob("*.md")])
}
SOURCES = {
    name: text
    for name in subprocess.check_output(
        ["git", "ls-files", "cluster", "jobs", "benchmarks", "genray"], text=True, cwd=ROOT
    ).splitlines()
    if name not in PAGES and (ROOT / name).exists() and (text := read_text(ROOT / name)) is not None
}
"""The text files of the package, its jobs and its clusters."""
FORMER = {"generators", "generators.mode", "genray.scenes"}
"""Names that pages give as those of earlier versions."""
COMMANDS = {get_args(kind)[1].name: get_args(kind)[0] for kind in get_args(Command)}
SECTIONS = {
    name: {
        field.name
        for section in members(hint)
        if dataclasses.is_dataclass(section)
        for field in dataclasses.fields(section)
    }
    for name, hint in hints(Config).items()
}
"""The fields of each section over all of its kinds; none of a field."""


def blocks(language: str) -> list[str]:
    """The code blocks of a language, over all pages."""
    return [
        text
        for page in PAGES.values()
        for text in re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    ]


def code(page: str) -> str:
    """What a page shows as code, programs in Python left out, each piece on a line of its own."""
    fences = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
    shown = [text for language, text in fences.findall(page) if language != "python"]
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", fences.sub("", page))
    return "\n".join([*shown, *(" ".join(span.split()) for span in spans)])


def command_lines(page: str) -> Iterator[list[str]]:
    """The words of each command of genray that a page shows, as a command or as the Ray job of it."""
    for line in code(page).replace("\\\n", " ").splitlines():
        found = re.match(
            r" *(?:\w+=\S+ )?(genray|python jobs/)([a-z_ ]+?)(?:\.py)?(?: |$)(.*)", line.partition("  #")[0]
        )
        if found and (found[1] == "genray" or found[2] in COMMANDS):
            yield [found[2].strip(), *found[3].split()]


def flags(command: Any) -> set[str]:
    """The flags of a command, with underscores, and the fields of the top level, which it may take too."""
    found = {"name", "storage_path", "placement", "render_on", "seed"}
    for name, hint in hints(command).items():
        [kind, *_] = members(hint)
        found |= flags(kind) if dataclasses.is_dataclass(kind) else {name, f"no_{name}"}
    return found


def module_of(path: str) -> str:
    """The module in a file."""
    return path.removesuffix(".py").replace("/", ".")


def home_of(owner: Any) -> str:
    """The module that an object is, or is defined in; empty for a plain value."""
    return str(getattr(owner, "__name__" if isinstance(owner, ModuleType) else "__module__", ""))


def has(owner: Any, name: str) -> bool:
    """Whether a module or class has this name, of a class also as a field."""
    return hasattr(owner, name) or name in getattr(owner, "__annotations__", {})


def resolves(name: str) -> bool:
    """Whether a dotted name can be imported."""
    try:
        return pkgutil.resolve_name(name) is not None
    except (ImportError, AttributeError):
        return False


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of docs/."""
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module


@pytest.fixture
def figures(script: Any) -> ModuleType:
    return script("figures")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_commands_and_their_flags_exist() -> None:
    shown = [(name, line) for name, page in PAGES.items() for line in command_lines(page)]
    assert {line[0] for _, line in shown} == COMMANDS.keys()
    unknown = {
        (name, command, flag)
        for name, (command, *words) in shown
        for flag in re.findall(r"(?<!\S)--([\w-]+)(?![\w.-])", " ".join(words))
        if flag.replace("-", "_") not in flags(COMMANDS[command])
    }
    assert unknown == set()


def test_fields_exist() -> None:
    sections = "|".join([*SECTIONS, *(name for name in FORMER if "." not in name)])
    named = {
        (name, section, field)
        for name, page in PAGES.items()
        for section, field in re.findall(rf"(?<![\w./-])(?:--)?({sections})\.([a-z]\w*)", code(page))
        if field not in ("pt", "py", "safetensors") and f"{section}.{field}" not in FORMER
    }
    assert len(named) > 100
    assert {found for found in named if found[2] not in SECTIONS.get(found[1], set())} == set()


def test_paths_exist() -> None:
    texts = {name: code(page) for name, page in PAGES.items()} | SOURCES
    inside = re.compile(
        r"(?<![\w./:~-])(?:(?:~|/opt)/genray/(?!\.venv)([\w.][\w./-]*)"
        r"|((?:genray|jobs|docs|benchmarks|tests|cluster)/[\w./-]+))"
    )
    named = {(name, (a or b).rstrip("/.")) for name, text in texts.items() for a, b in inside.findall(text)}
    assert len(named) > 100
    assert {found for found in named if not (ROOT / found[1]).exists()} == set()


def test_python_names_exist() -> None:
    texts = PAGES | SOURCES
    named = {
        (name, found)
        for name, text in texts.items()
        for found in re.findall(r"(?<![\w./])genray(?:\.[a-zA-Z]\w*)+", text)
    }
    modules = {
        found for found in named if not found[1].endswith((".py", ".json", ".folded")) and found[1] not in FORMER
    }
    assert len(modules) > 100
    assert {found for found in modules if not resolves(found[1])} == set()


def test_names_in_docstrings_exist() -> None:
    """What a module quotes as `module.name` or `Class.name`, of modules and classes of genray that it imports."""
    named = {
        (path, owner, name)
        for path, text in SOURCES.items()
        if re.fullmatch(r"genray/.*(?<!__)\.py", path)
        for owner, name in re.findall(r"(?<!`)`(\w+)\.(\w+)(?:\(.*?\))?`(?!`)", text)
        if name not in SECTIONS.get(owner, set())
    }
    owners = {(path, owner): vars(importlib.import_module(module_of(path))).get(owner) for path, owner, _ in named}
    ours = {found for found in named if home_of(owners[found[:2]]).startswith("genray")}
    assert ours
    assert {found for found in ours if not has(owners[found[:2]], found[2])} == set()


def test_every_file_of_a_run_is_explained() -> None:
    page = PAGES["docs/run-directory.md"]
    names = {value for name, value in vars(filenames).items() if name.isupper()}
    assert {name for name in names - {filenames.BIRTH, filenames.LEASE} if name not in page} == set()


def test_the_tree_of_the_architecture_is_complete() -> None:
    tree = PAGES["docs/architecture.md"].partition("## The tree")[2]
    shown, directories = set(), list[str]()
    for line in filter(None, tree.splitlines()):
        if found := re.match(r"( *)([\w.]+/?)(?: |$)", line):
            directories[len(found[1]) // 2 :] = [found[2].rstrip("/")]
            shown.add("/".join(directories))
    there = {path.relative_to(ROOT) for path in (ROOT / "genray").rglob("*.py")}
    assert {str(path) for path in there if path.stem not in ("__init__", "__main__")} <= shown
    assert {path for path in shown if not (ROOT / path).exists()} == set()


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"] == genray.__version__
    assert citation["license"] == project["license"]
    assert f"## {genray.__version__}\n" in PAGES["CHANGELOG.md"]


def test_the_configuration_page_is_that_of_the_fields(script: Any) -> None:
    """If it is not: python docs/configuration.py."""
    page = PAGES["docs/configuration.md"]
    assert script("configuration").written(page) == page
    for name, fields in SECTIONS.items():
        assert all(f"\n| `{field}` |" in page or field == "kind" for field in fields or {name})


def test_toml_examples_are_configurations() -> None:
    texts = [text for text in blocks("toml") if not re.match(r"# (photos|mix|prompts|bigbigan|stylegan2)\.toml", text)]
    examples = [load.build({"name": "example", **tomllib.loads(text)}) for text in texts]
    assert {example.generator.kind for example in examples} == {"biggan", "custom"}
    assert all(Plan.of(example).steps for example in examples)


def test_own_generator_example_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [module] = [text for text in blocks("python") if "class Waves" in text]
    (tmp_path / "waves.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    [line] = [line for line in command_lines(README) if "waves:Waves" in line]
    _, source, *overrides = shlex.split(" ".join(line))
    [settings] = [text for text in blocks("toml") if "waves:Waves" in text]
    for config in (load.load(source, overrides), load.build({"name": "waves", **tomllib.loads(settings)})):
        block = Renderer(config, "cpu").block_at(np.arange(3))
        assert block["views"].shape == (3, 2, 3, 32, 32)
        assert np.abs(block["views"][:, 0].astype(int) - block["views"][:, 1]).mean() > 1


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page: str) -> None:
    targets = re.findall(r'(?:\]\(|src=")([^)#:"]+)[#)"]', PAGES[page])
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The keys of a record of metrics.jsonl after one step, without what a probe adds."""
    storage = str(tmp_path_factory.mktemp("runs"))
    run = Run.of(small(storage_path=storage, model={"backbone": "resnet18"}, training={"log_every": 1}))
    run.directory.path.mkdir()
    block = Renderer(run.config, "cpu").block(Course(run.plan).ticket(0))
    window = next(Learner(run, 0, torch.device("cpu")).train(iter([block])))
    Recorder(run).after_report(None, [window.record], None)
    return set(jsonl.last(run.directory.metrics))


def explained(page: str) -> dict[str, str]:
    """What the first column of a page's table explains, and the text of each row."""
    return dict(re.findall(r"^\| `([\w.]+)` \|(.*)", page, flags=re.MULTILINE))


def of_objectives() -> set[str]:
    """What any objective measures."""
    found: set[str] = set()
    for kind in KINDS:
        encoder = encoder_of(kind)
        outputs = {name: rows.detach() for name, rows in encoder(images_of(encoder)).items()}
        found |= set(encoder.metrics(outputs, columns_of(encoder)))
    return found


def test_every_metric_is_explained(recorded: set[str]) -> None:
    phases = {f"step_ms.{phase}" for phase in balance.PHASES}
    assert phases < recorded
    rows = explained(METRICS)
    text = METRICS.partition("| key |")[0]
    above = set(re.findall(r"`(\w+)`", text)) & recorded
    assert above == {"step", "anchors", "time"}
    of_the_end = {"knn", "final.ENCODER.PROBE", "median.METRIC", "faults", "seconds.to_first_step", "seconds.total"}
    assert set(rows) == recorded - above - phases | {"step_ms.PHASE"} | of_the_end | of_objectives()
    assert set(re.findall(r"`(\w+)`", rows["step_ms.PHASE"].split("|")[1])) == set(balance.PHASES)


def test_what_the_report_sums_up_is_measured(recorded: set[str]) -> None:
    assert set(report.MEDIANS) <= recorded


def test_medians_in_mlflow_are_named() -> None:
    assert set(report.MLFLOW_MEDIANS) < set(report.MEDIANS)
    named = explained(METRICS)["median.METRIC"].partition(";")[0]
    assert set(report.MLFLOW_MEDIANS) == set(re.findall(r"`(\w+)`", named))


def test_what_a_record_without_blocks_lacks_is_named() -> None:
    without = balance.metrics([balance.Measurements(steps=1, seconds={"wait": 1.0})], 1, 1)
    with_one = balance.metrics([balance.Measurements(steps=1, seconds={"wait": 1.0}, blocks=1)], 1, 1)
    named = METRICS.partition("are left out of a")[0].rpartition("\n\n")[2]
    assert set(re.findall(r"`(\w+)`", named)) == set(with_one) - set(without)


def test_every_probe_is_explained() -> None:
    table = PROBES.partition("| `--probe` |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(get_args(ProbeName))


def test_figures_are_written_from_a_report(figures: ModuleType) -> None:
    page = "before\n<!-- demo -->\nold\n<!-- /demo -->\nafter\n"
    once = figures.fill(page, "demo", figures.demo(REPORT))
    assert "| trained | 87.6% | 90.0% |" in once
    assert "250 s for 400 steps, on 2 CPU cores and 0 GPUs" in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert figures.fill(once, "demo", figures.demo(REPORT)) == once
    assert "30 s (Ray started 9.0, first step 21.0)" in figures.demo_speed(REPORT)


def test_the_pages_that_show_the_demo_have_its_blocks(figures: ModuleType) -> None:
    assert set(figures.OF_THE_DEMO) == {ROOT / "README.md", DOCS / "getting-started.md"}
    for page, block in figures.OF_THE_DEMO.items():
        figures.fill(page.read_text(), block.__name__, block(REPORT))


def test_the_figures_of_the_page_are_those_of_the_reports(figures: ModuleType) -> None:
    """If they are not: python docs/figures.py."""
    assert all(figures.written(name) == PAGES[f"docs/{name}"] for name in figures.PAGES)


def test_every_fault_names_its_test(figures: ModuleType) -> None:
    tests = {test.removesuffix(" ●") for *_, test in figures.FAULTS} - {"all of them"}
    files = {path.stem for package in ("faults", "commands") for path in (ROOT / "tests" / package).glob("test_*.py")}
    assert {f"test_{test}" for test in tests} <= files


def test_figures_need_their_block(figures: ModuleType) -> None:
    with pytest.raises(ValueError, match="<!-- demo -->"):
        figures.fill("no block", "demo", "x")
