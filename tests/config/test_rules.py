"""The rules on fields; what breaks one is told in one line."""

from __future__ import annotations

from typing import Any

import pytest

from genray.config.errors import ConfigError
from genray.config.load import build
from genray.config.rules import check

CUSTOM = {"kind": "custom", "target": "package.module:factory"}
DIFFUSERS = {"kind": "diffusers", "model": "a/pipeline", "prompts": ["a cat", "a dog"]}
PROMPTED = {"generator": DIFFUSERS, "view": {"kind": "independent"}}
IMAGES = {"source": {"kind": "images", "directory": "x"}, "view": {"kind": "none"}, "pool": {"num_gpus": 0}}
STORED = {"source": {"kind": "stored", "directory": "x"}, "pool": {"num_gpus": 0}}


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
        ({"pool": {"num": [3, 1]}}, "pool.num must be [min, max] with min <= max, got [3, 1]"),
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
            "stream.num_neighbors must not be given if anchors have no neighbours (view.kind = 'none'), got 2",
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
            {"generator": {"cuda_graphs": True}, "pool": {"num_gpus": 0}},
            "generator.cuda_graphs must be false if images are rendered without GPUs (pool.num_gpus = 0), "
            "got true; raise pool.num_gpus",
        ),
        (
            {"generator": {"cuda_graphs": True}, "render_on": "learners", "learners": {"num_gpus": 0}},
            "generator.cuda_graphs must be false if images are rendered without GPUs (learners.num_gpus = 0), "
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
        (
            {"generator": {"kind": "exported"}},
            "generator.path must be a .pt2 file, got ''; python jobs/export_generator.py writes one",
        ),
        (
            {**PROMPTED, "generator": {**DIFFUSERS, "model": ""}},
            "generator.model must be a directory with model_index.json, or a name at the hub, got ''",
        ),
        (
            {**PROMPTED, "generator": {**DIFFUSERS, "prompts": []}},
            "generator.prompts or generator.prompts_file must be given, one of them, got neither",
        ),
        (
            {**PROMPTED, "generator": {**DIFFUSERS, "prompts_file": "x"}},
            "generator.prompts or generator.prompts_file must be given, one of them, got both",
        ),
        (
            {**PROMPTED, "generator": {**DIFFUSERS, "prompts": ["a", " "]}},
            "generator.prompts must not be blank, got a blank one",
        ),
        (
            {**PROMPTED, "view": {"kind": "gaussian"}},
            "view.kind must be 'independent' (each view another noise seed) or 'none' for a generator without latents, "
            "got 'gaussian' with generator.kind = 'diffusers'",
        ),
        ({**IMAGES, "source": {"kind": "images"}}, "source.directory must be a directory of images, got ''"),
        (
            {**IMAGES, "view": {"kind": "gaussian"}},
            "view.kind must be 'none' for a source of real images, which have no latents, got 'gaussian'",
        ),
        *(
            (
                {**IMAGES, "stream": {name: value}},
                f"stream.{name} must not be given for a source of real images (they are the anchors, "
                f"all of them in each epoch and without neighbours), got {got}",
            )
            for name, value, got in (
                ("num_anchors", 300, "300"),
                ("num_neighbors", 5, "5"),
                ("classes", [0], "(0,)"),
                ("class_weights", [1], "(1.0,)"),
            )
        ),
        (
            {**IMAGES, "pool": {"num_gpus": 0.5}},
            "pool.num_gpus must be 0 for source.kind = 'images' (decoding images takes none), got 0.5",
        ),
        (
            {**STORED, "pool": {"num_gpus": 1}},
            "pool.num_gpus must be 0 for source.kind = 'stored' (reading files takes none), got 1",
        ),
        *(
            (
                {**STORED, "stream": {name: "auto"}},
                f"stream.{name} must be a number for a source of files, which is finite, got 'auto'",
            )
            for name in ("reuse", "ticket_batches")
        ),
        (
            {"stream": {"reuse": "auto"}, "render_on": "learners"},
            "stream.reuse must be a number if learners render (render_on = 'learners'), got 'auto'",
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
        {"pool": {"num": [2, 2]}},
        {"stream": {"batch_size": 12}, "learners": {"num_workers": [1, 4]}},
        {"stream": {"batch_size": 8}, "learners": {"num_workers": [4, 4]}},
        {"stream": {"batch_size": 4}, "learners": {"num_workers": [1, 2]}},
        {"learners": {"max_failures": 0}},
        {"augment": {"scale": [0.3, 0.3]}},
        {"training": {"steps": 10, "warmup_steps": 10}},
        {"probe": {"neighbors": 100, "images": 100}},
        PROMPTED,
        {**PROMPTED, "view": {"kind": "none"}},
        {**IMAGES, "render_on": "learners", "pool": {"num_gpus": 1}},
        {**STORED, "stream": {"ticket_batches": "auto"}, "render_on": "learners"},
        {"generator": CUSTOM},
        {"generator": {**CUSTOM, "micro_batch": "auto"}},
        {"generator": {"micro_batch": "auto", "precision": "float16", "compile": True}},
        {"generator": {"cuda_graphs": True}, "learners": {"num_gpus": 0}},
        {"generator": {"cuda_graphs": True}, "render_on": "learners", "pool": {"num_gpus": 0}},
    ],
)
def test_what_lies_on_the_edge_is_allowed(values: dict[str, Any]) -> None:
    check(build({"name": "x", **values}))
