"""The configuration itself: its rules, told in one line, and its way to JSON and back."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from genray.config import MAY_CHANGE, AdamW, Config, check
from genray.configure import build, differences, reference
from genray.latent_views import Independent
from genray.settings import ConfigError

CUSTOM = {"kind": "custom", "target": "package.module:factory"}
EXPORTED = {"kind": "exported", "path": "generator.pt2"}
DIFFUSERS = {"kind": "diffusers", "model": "a/pipeline", "prompts": ["a cat", "a dog"]}


def told(**values: Any) -> str:
    """What is said of a configuration that must be refused."""
    with pytest.raises(ConfigError) as error:
        build({"name": "x", **values})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/"])
def test_a_name_is_one_directory(name: str) -> None:
    assert told(name=name) == f"name must be a single directory name, got {name!r}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"stream": {"batch_size": 100}, "learners": {"num_workers": 3}},
            "stream.batch_size must be a multiple of learners.num_workers (3), got 100; the nearest is 99",
        ),
        (
            {"stream": {"batch_size": 3}, "learners": {"num_workers": 8}},
            "stream.batch_size must be a multiple of learners.num_workers (8), got 3; the nearest is 8",
        ),
        (
            {"stream": {"batch_size": 8}, "learners": {"num_workers": 8}},
            "stream.batch_size must be at least 2 anchors per learner, got 8",
        ),
        (
            {"stream": {"batch_size": 100}, "learners": {"num_workers": [1, 4]}},
            "stream.batch_size must be a multiple of every number of learners from 1 to 4 (12), got 100; the nearest "
            "is 96",
        ),
        (
            {"stream": {"batch_size": 12}, "learners": {"num_workers": [4, 5]}},
            "stream.batch_size must be a multiple of every number of learners from 4 to 5 (20), got 12; the nearest "
            "is 20",
        ),
        (
            {"stream": {"batch_size": 10}, "learners": {"num_workers": [3, 3]}},
            "stream.batch_size must be a multiple of learners.num_workers (3), got 10; the nearest is 9",
        ),
        (
            {"stream": {"batch_size": 2}, "learners": {"num_workers": [1, 2]}},
            "stream.batch_size must be at least 2 anchors per learner, got 2",
        ),
        ({"learners": {"num_workers": [3, 1]}}, "learners.num_workers must be [min, max] with min <= max, got [3, 1]"),
        (
            {"model": {"sync_batch_norm": True}, "learners": {"num_workers": [1, 2], "num_gpus": 0}},
            "model.sync_batch_norm must be false for learners without GPUs, got true",
        ),
        ({"generators": {"num": [3, 1]}}, "generators.num must be [min, max] with min <= max, got [3, 1]"),
        ({"augment": {"scale": [0.5, 0.2]}}, "augment.scale must be [least, most] in order, got [0.5, 0.2]"),
        (
            {"training": {"steps": 10, "warmup_steps": 11}},
            "training.warmup_steps must be at most training.steps (10), got 11",
        ),
        (
            {"stream": {"num_anchors": 255}},
            "stream.num_anchors must be at least stream.batch_size (256), or one step would show an anchor twice, "
            "got 255",
        ),
        (
            {"stream": {"num_neighbors": 2}, "view": {"kind": "none"}},
            "stream.num_neighbors must not be given where anchors have no neighbours (view.kind = 'none'), got 2",
        ),
        (
            {"stream": {"num_views": 4, "num_neighbors": 2}},
            "stream.num_neighbors must be at least stream.num_views - 1 (3), or an anchor would show one of them "
            "twice, got 2",
        ),
        (
            {"probe": {"neighbors": 200, "images": 100}},
            "probe.neighbors must be at most probe.images (100), got 200",
        ),
        ({"generator": {"kind": "custom"}}, "generator.target must be `package.module:factory`, got ''"),
        (
            {"generator": {"cuda_graphs": True}, "generators": {"num_gpus": 0}},
            "generator.cuda_graphs must be false where images are rendered without GPUs (generators.num_gpus = 0), "
            "got true; raise generators.num_gpus",
        ),
        (
            {"generator": {"cuda_graphs": True}, "generators": {"mode": "inline"}, "learners": {"num_gpus": 0}},
            "generator.cuda_graphs must be false where images are rendered without GPUs (learners.num_gpus = 0), "
            "got true; raise learners.num_gpus",
        ),
        (
            {"generator": {"precision": "half"}},
            "generator.precision must be one of float32, tf32, bfloat16, float16, got 'half'",
        ),
        (
            {"generator": {"kind": "custom", "target": "a:b:c"}},
            "generator.target must be `package.module:factory`, got 'a:b:c'",
        ),
    ],
)
def test_fields_must_agree(values: dict[str, Any], message: str) -> None:
    assert told(**values) == message


@pytest.mark.parametrize(
    "values",
    [
        {"name": "x"},
        {"stream": {"batch_size": 256, "num_anchors": 256}},
        {"stream": {"num_views": 4, "num_neighbors": 3}},
        {"stream": {"batch_size": 16}, "learners": {"num_workers": 8}},
        {"generators": {"num": [2, 2]}},
        {"stream": {"batch_size": 12}, "learners": {"num_workers": [1, 4]}},
        {"stream": {"batch_size": 8}, "learners": {"num_workers": [4, 4]}},
        {"stream": {"batch_size": 4}, "learners": {"num_workers": [1, 2]}},
        {"learners": {"max_failures": 0}},
        {"augment": {"scale": [0.3, 0.3]}},
        {"training": {"steps": 10, "warmup_steps": 10}},
        {"probe": {"neighbors": 100, "images": 100}},
        {"generator": CUSTOM},
        {"generator": {**CUSTOM, "micro_batch": "auto"}},
        {"generator": {"micro_batch": "auto", "precision": "float16", "compile": True}},
        {"generator": {"cuda_graphs": True}, "learners": {"num_gpus": 0}},
        {"generator": {"cuda_graphs": True}, "generators": {"mode": "inline", "num_gpus": 0}},
    ],
)
def test_what_lies_on_the_edge_is_allowed(values: dict[str, Any]) -> None:
    check(build({"name": "x", **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, "seed must be greater than or equal to 0, got -1"),
        ({"seed": "x"}, "seed must be an integer, got 'x'"),
        ({"name": 3}, "name must be a text, got 3"),
        ({"training": {"steps": 1.5}}, "training.steps must be an integer, got 1.5"),
        ({"training": {"final_lr": "high"}}, "training.final_lr must be a number, got 'high'"),
        ({"model": {"compile": "maybe"}}, "model.compile must be true or false, got 'maybe'"),
        ({"stream": {"num_views": 1}}, "stream.num_views must be greater than or equal to 2, got 1"),
        ({"stream": {"batch_size": 1}}, "stream.batch_size must be greater than 1, got 1"),
        ({"stream": {"ticket_batches": 0}}, "stream.ticket_batches must be greater than 0 or 'auto', got 0"),
        ({"stream": {"reuse": 0}}, "stream.reuse must be greater than 0 or 'auto', got 0"),
        ({"stream": {"reuse": 1.5}}, "stream.reuse must be an integer or 'auto', got 1.5"),
        ({"stream": {"reuse_window": 1}}, "stream.reuse_window must be greater than or equal to 2, got 1"),
        ({"generator": {"truncation": 1.5}}, "generator.truncation must be less than or equal to 1, got 1.5"),
        ({"view": {"std": 0}}, "view.std must be greater than 0, got 0"),
        (
            {"objective": {"kind": "supcon", "temperature": 0}},
            "objective.temperature must be greater than 0, got 0",
        ),
        (
            {"objective": {"kind": "byol", "momentum": 2}},
            "objective.momentum must be less than or equal to 1, got 2",
        ),
        (
            {"objective": {"kind": "simsiam", "projection": [8, 0]}},
            "objective.projection.1 must be greater than 0, got 0",
        ),
        ({"optimizer": {"lr": -1}}, "optimizer.lr must be greater than 0, got -1"),
        ({"generators": {"num": 0}}, "generators.num must be greater than 0, got 0"),
        ({"generators": {"num": [0, 2]}}, "generators.num.0 must be greater than 0, got 0"),
        ({"generators": {"num": [1, 2, 3]}}, "generators.num must have at most 2 values, got [1, 2, 3]"),
        ({"generators": {"num": "many"}}, "generators.num must be an integer, got 'many'"),
        ({"learners": {"num_workers": [0, 2]}}, "learners.num_workers.0 must be greater than 0, got 0"),
        ({"learners": {"max_failures": -1}}, "learners.max_failures must be greater than or equal to 0, got -1"),
        ({"learners": {"hang_timeout_s": 0}}, "learners.hang_timeout_s must be greater than 0, got 0"),
        ({"generators": {"max_attempts": 0}}, "generators.max_attempts must be greater than 0, got 0"),
        ({"generators": {"ticket_timeout_s": 0}}, "generators.ticket_timeout_s must be greater than 0, got 0"),
        ({"augment": {"scale": 0.5}}, "augment.scale must be a list, got 0.5"),
        ({"augment": {"scale": [0.5, 2]}}, "augment.scale.1 must be less than or equal to 1, got 2"),
        ({"augment": {"jitter": [0.4, 0.4]}}, "augment.jitter must have more values, got [0.4, 0.4]"),
        (
            {"probe": {"beside": ["knn", "map"]}},
            "probe.beside.1 must be one of knn, linear, few, sgd, similarity, svm, got 'map'",
        ),
        ({"model": {"model_args": 3}}, "model.model_args must be a section of fields, got 3"),
        ({"view": 3}, "view must be a section of fields, got 3"),
        ({"stream": None}, "stream must be a section of fields, got None"),
    ],
)
def test_a_value_must_be_of_its_type(values: dict[str, Any], message: str) -> None:
    assert told(**values) == message


def test_a_name_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"^name must be given$"):
        build({})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strem": {}}, "strem must be a field of the configuration; did you mean 'stream'?"),
        ({"stream": {"batchsize": 4}}, "stream.batchsize must be a field of stream; did you mean 'batch_size'?"),
        ({"view": {"sdt": 1}}, "view.sdt must be a field of view; did you mean 'std'?"),
        ({"view": {"kind": "none", "std": 1}}, "view.std must be a field of view; it has kind"),
        (
            {"objective": {"kind": "supcon", "temperatur": 1}},
            "objective.temperatur must be a field of objective; did you mean 'temperature'?",
        ),
        (
            {"objective": {"kind": "simclear"}},
            "objective.kind must be one of simclr, supcon, inverter, classifier, simsiam, byol, got 'simclear'; did "
            "you mean 'simclr'?",
        ),
        (
            {"optimizer": {"kind": "adamw", "beta": 1}},
            "optimizer.beta must be a field of optimizer; did you mean 'betas'?",
        ),
        ({"generator": {**CUSTOM, "model": 1}}, "generator.model must be a field of generator; it has kind, target, "),
        (
            {"view": {"kind": "gausian"}},
            "view.kind must be one of none, independent, gaussian, uniform, angular, variance_preserving, chunked, "
            "steered, navigator, got 'gausian'; did you mean 'gaussian'?",
        ),
        (
            {"optimizer": {"kind": "adam"}},
            "optimizer.kind must be one of sgd, lars, adamw, got 'adam'; did you mean 'adamw'?",
        ),
        (
            {"augment": {"policy": "genrp"}},
            "augment.policy must be one of genrep, simclr, digits, none, got 'genrp'; did you mean 'genrep'?",
        ),
        (
            {"model": {"precision": "bf16"}},
            "model.precision must be one of float32, bfloat16, got 'bf16'; did you mean 'bfloat16'?",
        ),
    ],
)
def test_a_typo_gets_a_suggestion(values: dict[str, Any], message: str) -> None:
    assert told(**values).startswith(message)


def test_a_section_of_several_kinds_has_a_default_one() -> None:
    config = build({"name": "x", "optimizer": {"lr": 0.5}, "view": {"std": 0.1}, "generator": {"truncation": 0.5}})
    assert (config.optimizer.kind, config.optimizer.lr) == ("sgd", 0.5)
    assert config.view.kind == "gaussian"
    assert config.generator.kind == "biggan"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"view": {"kind": "independent"}, "optimizer": {"kind": "adamw", "betas": [0.8, 0.9]}},
        {"learners": {"num_workers": [2, 4], "hang_timeout_s": 0.5}, "stream": {"batch_size": 48}},
        {"generators": {"num": [1, 4]}, "augment": {"scale": [0.1, 1.0], "jitter": [1, 1, 1, 0.5], "flip": 0.0}},
        {"generator": {**CUSTOM, "options": {"depth": [1, 2], "inner": {"a": None}}}, "view": {"kind": "none"}},
        {"generator": {**EXPORTED, "micro_batch": "auto"}, "source": {"kind": "mix", "directory": "x", "share": 0.25}},
        {"generator": DIFFUSERS, "view": {"kind": "independent"}},
        {"stream": {"ticket_batches": 1, "reuse": 4, "reuse_window": 16}},
        {"objective": {"kind": "supcon", "temperature": 0.5}},
        {"objective": {"kind": "byol", "projection": [32, 16], "momentum": 0.9}},
        {"stream": {"num_anchors": 1000, "num_neighbors": 20}, "tracking": {"uri": "http://mlflow:5000"}},
    ],
)
def test_json_and_back_is_the_identity(values: dict[str, Any]) -> None:
    config = build({"name": "x", **values})
    text = json.dumps(config.to_dict())
    again = build(json.loads(text))
    assert again == config
    assert json.dumps(again.to_dict()) == text


def test_json_spells_out_every_default() -> None:
    values = Config(name="x").to_dict()
    assert values["training"]["steps"] == 10_000
    assert values["stream"]["num_anchors"] is None
    assert (values["stream"]["reuse"], values["stream"]["reuse_window"]) == (1, 64)
    assert values["view"] == {"kind": "gaussian", "std": 1.0, "truncated": True}


def test_a_configuration_is_frozen_and_checked_when_made() -> None:
    with pytest.raises(FrozenInstanceError):
        Config(name="x").seed = 1  # type: ignore[misc]
    config = Config(name="x", view=Independent(), optimizer=AdamW(lr=1))
    assert config.to_dict()["view"] == {"kind": "independent"}


@pytest.mark.parametrize(("count", "bounds"), [(3, (3, 3)), ([1, 3], (1, 3)), ([2, 2], (2, 2))])
def test_a_number_of_learners_or_of_generators_has_bounds(count: int | list[int], bounds: tuple[int, int]) -> None:
    config = build(
        {"name": "x", "stream": {"batch_size": 24}, "learners": {"num_workers": count}, "generators": {"num": count}}
    )
    assert config.learners.bounds == config.generators.bounds == bounds


def test_differences_are_dotted_paths_with_both_values() -> None:
    ours = build({"name": "x", "view": {"std": 0.5}, "stream": {"num_anchors": 1000}}).to_dict()
    theirs = build({"name": "y", "view": {"kind": "none"}}).to_dict()
    assert list(differences(ours, theirs)) == [
        ("name", "x", "y"),
        ("stream.num_anchors", 1000, None),
        ("view.kind", "gaussian", "none"),
        ("view.std", 0.5, None),
        ("view.truncated", True, None),
    ]
    assert list(differences(ours, ours)) == []


def test_paths_that_may_change_exist() -> None:
    for path in MAY_CHANGE:
        node: Any = Config(name="x").to_dict()
        for step in path.split("."):
            node = node[step]


def test_the_reference_says_what_may_change() -> None:
    section, found = "", set()
    for line in reference().splitlines():
        if line.startswith("["):
            section = line[1:].partition("]")[0]
            name = section
        elif " = " in line:
            name = f"{section}.{line.strip().partition(' = ')[0]}".removeprefix(".")
        if "May change when a run is resumed." in line:
            found.add(name)
    placed = {"placement", "generators", "learners", "probe.num_cpus", "probe.num_gpus", "probe.timeout_s"}
    assert found == placed | {"tracking", "stream.ticket_batches", "generator.cuda_graphs"}
    assert set(MAY_CHANGE) == found | {"storage_path", "training.log_every"}


def test_the_reference_explains_every_field() -> None:
    section, found = "", set()
    for line in reference().splitlines():
        if line.startswith("["):
            section = line[1:].partition("]")[0]
            assert line.partition("]")[2].strip(), line
        elif line:
            name, _, default_and_meaning = line.strip().partition(" = ")
            meaning = default_and_meaning.partition("  ")[2].strip()
            assert meaning.endswith("."), f"{section}.{name} has no docstring"
            found.add(f"{section}.{name}".lstrip("."))
    kinds = [
        {},
        {"view": {"kind": "none"}, "optimizer": {"kind": "lars"}, "generator": CUSTOM},
        {"view": {"kind": "independent"}, "optimizer": {"kind": "adamw"}, "generator": DIFFUSERS},
        {"generator": EXPORTED, "source": {"kind": "mix", "directory": "x"}},
        {"view": {"kind": "none"}, "source": {"kind": "images", "directory": "x"}, "generators": {"num_gpus": 0}},
        {"source": {"kind": "stored", "directory": "x"}, "generators": {"num_gpus": 0}},
        *({"objective": {"kind": kind}} for kind in ("supcon", "inverter", "classifier", "simsiam", "byol")),
    ]
    for values in kinds:
        for section, fields in build({"name": "x", **values}).to_dict().items():
            names = [f"{section}.{name}" for name in fields] if isinstance(fields, dict) else [section]
            kinded = ("view", "optimizer", "generator", "source", "objective")
            assert set(names) - {f"{section}.kind" for section in kinded} <= found
