"""Groups of runs: mean and spread, what they are called by, and what a reader is told."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from former import former_parameters
from PIL import Image

from genray.cli.main import main
from genray.config.errors import UserError
from genray.config.load import build
from genray.runs.directory import RunDirectory
from genray.tracking import described, mlflow_store, plots
from genray.tracking.compare import (
    FinishedRun,
    distinguishing,
    finished_runs,
    grouped,
    metric,
    notes,
    setting,
    table,
    varying,
)

VALUES = {(0.2, 0): 0.5, (0.2, 1): 0.6, (1.0, 0): 0.8, (1.0, 1): 0.9, (1.0, 2): 0.7, (10.0, 0): 0.4}


def run(std: float, seed: int, linear: float, **sections: Any) -> FinishedRun:
    config = build({"name": f"{std}-{seed}", "view": {"kind": "gaussian", "std": std}, "seed": seed, **sections})
    found = {
        "final.trained.linear": linear,
        "final.untrained.linear": 0.3,
        "loss": 1 / linear,
        "median.images_per_s": 100.0,
    }
    return FinishedRun(config.name, described.parameters(config), found, {})


@pytest.fixture
def runs() -> list[FinishedRun]:
    return [run(std, seed, value) for (std, seed), value in VALUES.items()][::-1]


def test_groups_have_mean_and_spread_over_their_runs(runs: list[FinishedRun]) -> None:
    found = grouped(runs, ["view.std"])
    assert [group.values for group in found] == [(0.2,), (1.0,), (10.0,)]  # by size, not by letter
    for group in found:
        expected = [value for (std, _), value in VALUES.items() if (std,) == group.values]
        assert group.mean("final.trained.linear") == pytest.approx(statistics.mean(expected))
        spread = pytest.approx(float(np.std(expected, ddof=1))) if len(expected) > 1 else None
        assert group.spread("final.trained.linear") == spread
    assert found[0].mean("nothing") is None


def test_what_is_unset_comes_last_and_words_before_it() -> None:
    runs = [run(1.0, 0, 0.5, stream={"num_anchors": count, "batch_size": 4}) for count in (None, 100_000, 900)]
    assert [group.values for group in grouped(runs, ["stream.num_anchors"])] == [(900,), (100_000,), (None,)]
    assert table(grouped(runs, ["stream.num_anchors"]), ["stream.num_anchors"], ["loss"])[3].split() == [
        "none",
        "1",
        "2",
    ]


def test_settings_are_found_by_their_last_word(runs: list[FinishedRun]) -> None:
    assert setting("std", runs) == setting("view.std", runs) == "view.std"
    with pytest.raises(
        UserError,
        match=r"got 'kind', which is generator\.kind or objective\.kind or optimizer\.kind or source\.kind or view",
    ):
        setting("kind", runs)
    with pytest.raises(UserError, match=r"got 'stdd'; did you mean 'std'\?; they differ in view.std"):
        setting("stdd", runs)
    other = run(1.0, 0, 0.5, optimizer={"kind": "adamw"})
    assert setting("kind", [*runs, other]) == "optimizer.kind"  # the one in which they differ


def test_metrics_are_found_by_their_last_word(runs: list[FinishedRun]) -> None:
    assert metric("linear", runs) == "final.trained.linear"
    assert metric("images_per_s", runs) == "median.images_per_s"
    assert metric("loss", runs) == "loss"
    with pytest.raises(UserError, match=r"--metric must be one of .*, got 'linaer'"):
        metric("linaer", runs)


def test_what_differs_is_found_but_for_seeds_and_placement(runs: list[FinishedRun]) -> None:
    moved = run(1.0, 5, 0.5, pool={"num": 4}, storage_path="elsewhere")
    assert varying([*runs, moved]) == ["view.std"]


def test_what_follows_from_another_setting_tells_nothing() -> None:
    kinds = {"gaussian": {"std": 0.5}, "none": {}, "steered": {"walks": "w", "sha256": "0" * 64}}
    optimizers = ({"kind": "sgd"}, {"kind": "adamw", "betas": [0.5, 0.9]})
    found = [
        run(1.0, seed, 0.5, view={"kind": kind, **options}, optimizer=optimizer)
        for kind, options in kinds.items()
        for optimizer in optimizers
        for seed in (0, 1)
    ]
    assert {"view.std", "view.sha256", "view.walks", "optimizer.betas"} <= set(varying(found))
    assert distinguishing(found) == ["view.kind", "optimizer.kind"]
    drawn = [run(std, seed, 0.5, optimizer={"lr": 1 / (1 + std)}) for std in (1.0, 2.0, 3.0) for seed in (0, 1)]
    assert distinguishing(drawn) == ["view.std", "optimizer.lr"]  # each draw has a value of its own of both


def test_values_of_every_kind_set_groups_apart() -> None:
    sections = [{}, {"model_args": {"layers": [1, 1]}}, {"model_args": {"layers": [2, 1]}}]
    found = [FinishedRun("", {"model": json.dumps(section)}, {"loss": 1.0}, {}) for section in sections * 2]
    made = grouped(found, ["model"])
    assert [len(group.runs) for group in made] == [2, 2, 2]
    assert all(group.values[0] in sections for group in made)
    assert table(made, ["model"], ["loss"])[3].split() == ["{}", "2", "1", "±", "0"]


def test_the_table_has_groups_and_floors(runs: list[FinishedRun]) -> None:
    found = grouped(runs, ["view.std"])
    assert table(found, ["view.std"], ["final.trained.linear", "median.images_per_s"]) == [
        "view.std   runs  final.trained.linear  median.images_per_s",
        "0.2           2           55.0% ± 7.1              100 ± 0",
        "1.0           3          80.0% ± 10.0              100 ± 0",
        "10.0          1                 40.0%                  100",
        "untrained     6           30.0% ± 0.0",
    ]
    assert table(grouped(runs, []), [], ["final.trained.linear"])[1].split() == ["all", "6", "65.0%", "±", "18.7"]


def test_a_reader_is_told_what_the_table_hides(runs: list[FinishedRun]) -> None:
    probed = ["final.trained.linear"]
    assert notes(grouped(runs, ["view.std"]), probed, 2) == [
        "2 runs are left out: not finished",
        "± is the standard deviation over the runs of a group",
    ]
    longer = run(1.0, 7, 0.95, training={"steps": 99_999})
    assert "runs of a group also differ in training.steps; --by separates them" in notes(
        grouped([*runs, longer], ["view.std"]), probed, 0
    )
    unjudged = FinishedRun("unjudged", runs[0].params, {"loss": 1.0}, {})
    told = "1 run is without final.trained.linear and left out of its mean"
    assert told in notes(grouped([*runs, unjudged], ["view.std"]), probed, 0)


def marks(picture: Path) -> int:
    """Pixels in the colour of the groups."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    return int((np.abs(pixels - np.array([0x1F, 0x6F, 0xB2])).sum(2) < 30).sum())


@pytest.mark.parametrize("by", [["view.std"], ["generator.model"], ["view.std", "seed"], []], ids=str)
def test_the_picture_shows_the_groups(runs: list[FinishedRun], by: list[str], tmp_path: Path) -> None:
    plots.draw_groups(grouped(runs, by), by, ["final.trained.linear", "loss"], tmp_path / "a.png")
    assert marks(tmp_path / "a.png") > 100
    plots.draw_groups(grouped(runs, by), by, ["final.trained.linear"], tmp_path / "b.png")
    assert Image.open(tmp_path / "a.png").width == 2 * Image.open(tmp_path / "b.png").width


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, one that failed, a start and the parent of a sweep."""
    storage = tmp_path_factory.mktemp("runs")
    client = mlflow_store.connect(mlflow_store.address_in(storage))
    experiment = client.create_experiment("digits")
    for name, kind, status, linear in (
        ("a", described.RUN, "FINISHED", 0.5),
        ("b", described.RUN, "FINISHED", 0.7),
        ("c", described.RUN, "FAILED", 0.9),
        ("a, start 2", described.START, "FINISHED", 0.0),
        ("sweep", described.SWEEP, "FINISHED", 0.0),
    ):
        made = client.create_run(experiment, run_name=name).info.run_id
        config = build({"name": name, "seed": ord(name[0]), "tracking": {"sweep": "sweep" if name == "b" else None}})
        described.log_params_and_tags(client, made, described.parameters(config), described.tags(config, kind))
        client.log_metric(made, "final.trained.linear", linear)
        client.set_terminated(made, status)
    return storage


def test_an_experiment_is_compared_by_the_command(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.png"
    main(["compare", "digits", "--metric", "linear", "--runs", str(store), "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["all", "2", "60.0%", "±", "14.1"]
    assert lines[-1] == str(out)
    assert "1 run is left out: not finished" in lines
    assert out.read_bytes().startswith(b"\x89PNG")
    uri = mlflow_store.address_in(store)
    main(["compare", "digits", "--by", "seed", "--sweep", "sweep", "--uri", uri, "--out", str(out)])
    assert capsys.readouterr().out.splitlines()[1].split() == ["98", "1", "70.0%"]


def test_runs_of_an_earlier_version_are_compared_with_those_of_this_one(tmp_path: Path) -> None:
    """In MLflow they have other names for some fields, and for some of their values."""
    uri = mlflow_store.address_in(tmp_path)
    client = mlflow_store.connect(uri)
    experiment = client.create_experiment("digits")
    for name, render_on, former in (("a", "learners", True), ("b", "learners", False), ("c", "pool", True)):
        config = build({"name": name, "render_on": render_on, "pool": {"num": [1, 3]}})
        params = described.parameters(config)
        made = client.create_run(experiment, run_name=name).info.run_id
        recorded = former_parameters(params) if former else params
        assert ("pool.num" in recorded) != former
        described.log_params_and_tags(client, made, recorded, described.tags(config))
        client.set_terminated(made, "FINISHED")
    runs, _ = finished_runs(uri, "digits")
    a, b, c = (found.params for found in runs)
    assert a == b
    assert {name for name in a.keys() | c.keys() if a.get(name) != c.get(name)} == {"render_on"}
    assert varying(runs) == []
    assert setting("look_ahead_mib", runs) == "pool.look_ahead_mib"
    made = grouped(runs, ["render_on", "pool.num"])
    assert [(group.values, [run.name for run in group.runs]) for group in made] == [
        (("learners", [1, 3]), ["a", "b"]),
        (("pool", [1, 3]), ["c"]),
    ]


REFUSED = {
    "experiment": (["digit"], "the experiment must be one of .*, got 'digit'; did you mean 'digits'"),
    "sweep": (["digits", "--sweep", "swep"], "--sweep must be one of sweep, got 'swep'; did you mean 'sweep'"),
    "setting": (["digits", "--by", "sed"], "--by must be a setting of the runs, got 'sed'; did you mean 'seed'"),
    "file": (["digits", "--out", "/nowhere/a.png"], "--out must be a file that can be written, got '/nowhere/a.png'"),
}


@pytest.mark.parametrize(("arguments", "told"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_one_line(
    store: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *arguments, "--runs", str(store)])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(told, line), line


def test_a_directory_without_a_store_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "digits", "--runs", str(tmp_path)])
    assert "--runs must be a directory with mlflow.db" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_curves_of_a_run_are_a_picture(tmp_path: Path) -> None:
    found = RunDirectory(tmp_path)
    assert plots.draw_run(found) is None
    lines = [
        {"step": step, "time": step, "loss": 9 / step, "knn": 0.5, "images_per_s": 100 * step} for step in range(1, 50)
    ]
    found.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plots.draw_run(found) == tmp_path / "report.png"
    without = marks(tmp_path / "report.png")
    busy = [{"step": step, "time": step, "system/a/gpu_0_utilization_percentage": 50.0} for step in (1, 1, 2, 40)]
    found.system.write_text("".join(json.dumps(line) + "\n" for line in busy))
    plots.draw_run(found)
    assert marks(tmp_path / "report.png") > without
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".png"] == ["report.png"]
