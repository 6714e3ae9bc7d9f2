"""What a sweep goes over."""

from __future__ import annotations

import json
import math

import pytest

from genray.commands import sweep_space
from genray.commands.sweep_space import RandomField, children, combinations, parse_grid, parse_random
from genray.config.errors import ConfigError

GRIDS = {
    "view.std=0.2,1": [0.2, 1],
    "seed=0,1,2": [0, 1, 2],
    "view.kind=gaussian,none": ["gaussian", None],
    "stream.num_anchors=1000,none": [1000, None],
    "augment.scale=[0.2, 1],[0.5, 1]": [[0.2, 1], [0.5, 1]],
    "model.compile=true": [True],
}


@pytest.mark.parametrize(("text", "values"), GRIDS.items(), ids=GRIDS)
def test_a_grid_is_read_like_overrides(text: str, values: list[object]) -> None:
    assert parse_grid([text]) == {text.partition("=")[0]: values}


@pytest.mark.parametrize("text", ["view.std", "=1", "view.std="])
def test_a_grid_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--grid must be path\.to\.field=VALUE"):
        parse_grid([text])


def test_a_field_is_named_once() -> None:
    with pytest.raises(ConfigError, match="got seed twice"):
        parse_grid(["seed=0,1", "seed=2"])


@pytest.mark.parametrize("text", ["lr=log:0:1", "lr=log:2:1", "lr=normal:0:1", "lr=log:1e-3", "lr", "lr=log:a:b"])
def test_a_range_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--random must be"):
        parse_random([text])


def test_draws_lie_on_their_scale() -> None:
    drawn = parse_random(["optimizer.lr=log:1e-4:1e-1", "view.std=uniform:0.2:1.5", "stream.num_neighbors=int:1:4"])
    found = combinations({}, drawn, draws=2000)
    rates = [math.log10(values["optimizer.lr"]) for values in found]
    assert min(rates) >= -4
    assert max(rates) <= -1
    assert sum(rates) / len(rates) == pytest.approx(-2.5, abs=0.08)
    stds = [values["view.std"] for values in found]
    assert 0.2 <= min(stds) < 0.21
    assert 1.49 < max(stds) <= 1.5
    counts = [values["stream.num_neighbors"] for values in found]
    assert {type(count) for count in counts} == {int}
    assert all(counts.count(count) == pytest.approx(500, abs=80) for count in (1, 2, 3, 4))
    assert RandomField("a", "int", 1, 4).value(0.999999) == 4


def test_more_draws_leave_the_ones_before() -> None:
    drawn = [RandomField("view.std", "uniform", 0, 1)]
    assert combinations({}, drawn, draws=9)[:4] == combinations({}, drawn, draws=4)
    assert combinations({}, drawn, draws=4) != combinations({}, drawn, draws=4, seed=1)


def test_every_draw_is_combined_with_the_grid() -> None:
    found = combinations({"seed": [0, 1], "a": ["x", "y"]}, [RandomField("b", "uniform", 0, 1)], draws=2)
    assert [(values["seed"], values["a"]) for values in found] == [(0, "x"), (0, "y"), (1, "x"), (1, "y")] * 2
    assert len({values["b"] for values in found}) == 2
    assert combinations({}) == [{}]


def test_runs_are_named_after_what_sets_them_apart() -> None:
    chosen = combinations({"view.std": [0.5, 1.0], "stream.num_anchors": [1000, None]})
    made = children("demo", "stds", chosen, ["--training.steps=77"])
    assert [config.name for config in made] == [
        "stds-std=0.5-num_anchors=1000",
        "stds-std=0.5-num_anchors=none",
        "stds-std=1.0-num_anchors=1000",
        "stds-std=1.0-num_anchors=none",
    ]
    assert [(config.view.std, config.stream.num_anchors) for config in made][1:3] == [(0.5, None), (1.0, 1000)]
    assert {(config.tracking.sweep, config.tracking.model, config.training.steps) for config in made} == {
        ("stds", None, 77)
    }
    [asked] = children("demo", "a", [{}], ["--tracking.model=digits"])
    assert (asked.name, asked.tracking.model) == ("a-all", "digits")


def test_fields_with_the_same_last_word_are_told_apart() -> None:
    [made] = children("demo", "a", [{"pool.num_cpus": 0.25, "learners.num_cpus": 0.5}])
    assert made.name == "a-pool.num_cpus=0.25-learners.num_cpus=0.5"


def test_another_kind_and_its_numbers_come_together() -> None:
    made = children("demo", "a", [{"view.kind": None}, {"view.kind": "gaussian", "view.std": 0.3}])
    assert [config.view.kind for config in made] == ["none", "gaussian"]
    assert made[1].view.std == 0.3


def test_long_names_stay_directories_and_differ() -> None:
    names = ["x" * 90 + end for end in ("a" * 30, "b" * 30)]
    made = children("demo", "a", [{"tracking.experiment": name} for name in names])
    assert len({config.name for config in made}) == 2
    assert all(len(config.name) < sweep_space.MAX_SUFFIX_LENGTH + 20 for config in made)


def test_a_combination_that_cannot_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"view\.std must be"):
        children("demo", "a", [{"view.std": -1}])
    with pytest.raises(ConfigError, match="got a-seed=1 more than once"):
        children("demo", "a", [{"seed": 1}, {"seed": 1}])


def test_values_survive_the_way_to_a_configuration() -> None:
    values = {"augment.scale": [0.3, 0.9], "model.model_args": {"layers": [1, 1]}, "model.compile": True}
    [made] = children("demo", "a", [values])
    assert json.loads(json.dumps(made.to_dict()["augment"]["scale"])) == [0.3, 0.9]
    assert made.model.model_args == {"layers": [1, 1]}
    assert made.model.compile is True
