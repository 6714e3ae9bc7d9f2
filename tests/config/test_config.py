"""The configuration itself: its defaults, and its way to JSON and back."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from genray.config.load import build, differences
from genray.config.run import MAY_CHANGE_ON_RESUME, Config
from genray.config.sections import AdamW
from genray.config.view import Independent

CUSTOM = {"kind": "custom", "target": "package.module:factory"}
EXPORTED = {"kind": "exported", "path": "generator.pt2"}
DIFFUSERS = {"kind": "diffusers", "model": "a/pipeline", "prompts": ["a cat", "a dog"]}


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
        {"pool": {"num": [1, 4]}, "augment": {"scale": [0.1, 1.0], "jitter": [1, 1, 1, 0.5], "flip": 0.0}},
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
        {"name": "x", "stream": {"batch_size": 24}, "learners": {"num_workers": count}, "pool": {"num": count}}
    )
    assert config.learners.bounds == config.pool.bounds == bounds


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
    for path in MAY_CHANGE_ON_RESUME:
        node: Any = Config(name="x").to_dict()
        for step in path.split("."):
            node = node[step]
