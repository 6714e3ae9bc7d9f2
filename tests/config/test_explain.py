"""Errors about values of the wrong type and about names that do not exist, each in one line."""

from __future__ import annotations

from typing import Any

import pytest

from genray.config.errors import ConfigError
from genray.config.load import build

CUSTOM = {"kind": "custom", "target": "package.module:factory"}


def told(**values: Any) -> str:
    """What is said of a configuration that must be refused."""
    with pytest.raises(ConfigError) as error:
        build({"name": "x", **values})
    assert "\n" not in str(error.value)
    return str(error.value)


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
        ({"pool": {"num": 0}}, "pool.num must be greater than 0, got 0"),
        ({"pool": {"num": [0, 2]}}, "pool.num.0 must be greater than 0, got 0"),
        ({"pool": {"num": [1, 2, 3]}}, "pool.num must have at most 2 values, got [1, 2, 3]"),
        ({"pool": {"num": "many"}}, "pool.num must be an integer, got 'many'"),
        ({"learners": {"num_workers": [0, 2]}}, "learners.num_workers.0 must be greater than 0, got 0"),
        ({"learners": {"max_failures": -1}}, "learners.max_failures must be greater than or equal to 0, got -1"),
        ({"learners": {"hang_timeout_s": 0}}, "learners.hang_timeout_s must be greater than 0, got 0"),
        ({"pool": {"max_attempts": 0}}, "pool.max_attempts must be greater than 0, got 0"),
        ({"pool": {"ticket_timeout_s": 0}}, "pool.ticket_timeout_s must be greater than 0, got 0"),
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
