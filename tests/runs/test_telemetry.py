"""What a run exports through Ray's metrics, and that dashboard, alerts and page speak of just these."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from fakes import small
from paths import ROOT
from ray.util import metrics

from genray.learner import balance
from genray.learner.recorder import Recorder
from genray.runs import faults, telemetry
from genray.runs.directory import RunDirectory
from genray.stream.inline import InlineGenerator
from genray.stream.pool import PoolGenerator
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.stream.watchdog import GENERATOR_FAILED

DASHBOARD = json.loads((ROOT / "cluster/grafana/genray.json").read_text())
ALERTS = yaml.safe_load((ROOT / "cluster/grafana/alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


class Sent(NamedTuple):
    kind: str
    name: str
    value: float
    labels: dict[str, str]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """What Ray's metrics were given."""
    found: list[Sent] = []

    def note(kind: str) -> Any:
        def take(self: Any, value: float, tags: dict[str, str]) -> None:
            self._validate_tags(tags)
            found.append(Sent(kind, self.info["name"], value, tags))

        return take

    monkeypatch.setattr(metrics.Gauge, "set", note("gauge"))
    monkeypatch.setattr(metrics.Counter, "inc", note("counter"))
    return found


def record(**more: float) -> dict[str, Any]:
    return {"step": 20, "loss": 1.5, "anchors": 80, "time": 1.0, "note": "text", **more}


def test_a_record_is_exported_under_the_names_of_its_keys(sent: list[Sent]) -> None:
    telemetry.export_record("small", record(data_wait=0.25, **{"step_ms.wait": 3.0}))
    run = {"run": "small"}
    assert sorted(sent) == [
        ("gauge", "genray_data_wait", 0.25, run),
        ("gauge", "genray_loss", 1.5, run),
        ("gauge", "genray_step", 20, run),
        ("gauge", "genray_step_ms", 3.0, {**run, "phase": "wait"}),
    ]


def test_all_that_the_balance_measures_is_exported(sent: list[Sent]) -> None:
    window = balance.Measurements(steps=1, seconds=dict.fromkeys(balance.PHASES, 1.0), blocks=1, images=2, render_s=1.0)
    found = balance.metrics([window], 2, 1)
    telemetry.export_record("small", found)
    assert len(sent) == len(found)
    assert {one.labels["phase"] for one in sent if "phase" in one.labels} == set(balance.PHASES)


@pytest.mark.parametrize("inline", [False, True])
def test_a_generator_counts_what_it_renders(tmp_path: Path, sent: list[Sent], inline: bool) -> None:
    config = small(storage_path=str(tmp_path), render_on="learners" if inline else "pool", pool={"num_gpus": 0})
    run = Run.of(config)
    run.directory.path.mkdir()
    course = Course(run.plan)
    if inline:
        import torch

        block = next(InlineGenerator(run, torch.device("cpu")).blocks(course, 0))
    else:
        block = PoolGenerator(run, course, "x")({"id": np.array([0])})
    labels = {"run": "small", "generator": str(block["generator"][0])}
    assert sent == [
        ("counter", "genray_rendered_images", 8 * 2, labels),
        ("counter", "genray_render_seconds", float(block["render_s"][0]), labels),
    ]


def test_a_run_exports_its_records_and_each_fault_once_whoever_noted_it(tmp_path: Path, sent: list[Sent]) -> None:
    config = small(storage_path=str(tmp_path))
    run = RunDirectory.of(config)
    run.path.mkdir()
    faults.note(run.faults, "generator failed", error="x")  # by a generator
    made = Recorder(Run.of(config))
    made.after_report(None, [{"step": 20, "loss": 1.5}], None)

    def of(name: str) -> list[tuple[float, str | None]]:
        return [(one.value, one.labels.get("fault")) for one in sent if one.name == f"genray_{name}"]

    assert of("step") == [(20, None)]
    assert of("faults") == [(1, "generator failed")]
    assert of("steps_lost") == [(0, None)]
    sent.clear()
    faults.note(run.faults, "generator failed", error="x")
    made.after_exception(None, {0: RuntimeError("lost")})
    assert of("faults") == [(2, "generator failed"), (1, "learners failed")]
    sent.clear()
    with run.faults.open("a") as file:
        file.write('{"fault": "controller failed", "steps_lost": 7}\n{"fault": "cut sh')  # a killed writer
    made.after_report(None, [{"step": 20, "loss": 1.5}], None)  # repeated, and not recorded again
    assert sent == []
    made.after_report(None, [{"step": 40, "loss": 1.5}], None)
    assert of("faults") == [(1, "controller failed")]
    assert of("steps_lost") == [(7, None)]


def names_in(query: str) -> set[str]:
    """The metrics of a query, as telemetry names them; fails for one that Prometheus would not have."""
    found = set()
    for name in re.findall(r"\bray_genray_(\w+)", query):
        known = name.removesuffix("_total")
        assert known in telemetry.METRICS, query
        assert telemetry.METRICS[known].counter == name.endswith("_total"), query
        assert f"rate(ray_genray_{name}" in query or not telemetry.METRICS[known].counter, query
        found.add(known)
    return found


def test_the_dashboard_shows_all_that_is_exported_and_nothing_else() -> None:
    assert set().union(*map(names_in, QUERIES)) == set(telemetry.METRICS)
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["description"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    boxes = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(boxes)) == len(boxes)


def test_queries_ask_for_labels_that_there_are() -> None:
    for query in (*QUERIES, *(rule["expr"] for rule in RULES)):
        [*names] = names_in(query)
        allowed = {"run", *(label for name in names for label in telemetry.METRICS[name].labels)}
        grouped = {label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")}
        selected = set(re.findall(r"(\w+)=~?\"", query))
        assert grouped | selected <= allowed, query
        assert query.count("(") == query.count(")")


def test_alerts_are_told_and_ask_for_faults_that_there_are() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    source = "".join(path.read_text() for path in (ROOT / "genray").rglob("*.py"))
    kinds = {name: value for name, value in vars(faults).items() if isinstance(value, str) and name.isupper()}
    noted = {GENERATOR_FAILED, *(kinds[name] for name in re.findall(r"\bnote\([\w.]+, faults\.([A-Z_]+)", source))}
    asked = {fault for rule in RULES for fault in re.findall(r"fault=\"([^\"]+)\"", rule["expr"])}
    assert asked
    assert asked <= noted
    for rule in RULES:
        assert names_in(rule["expr"])
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].count("$labels.run") == 1
        assert rule["annotations"]["description"]
