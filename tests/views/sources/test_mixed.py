"""Real and rendered images in one batch: whose place is whose, their classes, and that neither changes the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import small
from folders import MODEL, folder, noise
from PIL import Image

from genray.commands.preview import preview
from genray.config.errors import ConfigError
from genray.config.run import Config
from genray.learner.learner import Learner
from genray.stream.plan import Plan
from genray.stream.renderer import Renderer
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.sources import describe
from genray.views.sources.mixed import split_positions

CLASSES = {"0": 4, "2": 3, "owl": 2, "yak": 3}


def mixed(directory: Path, **sections: Any) -> Config:
    source = {"kind": "mix", "directory": str(directory), **sections.pop("source", {})}
    return small(**{"source": source, **sections})


@pytest.mark.parametrize(("batch", "real"), [(8, 1), (8, 3), (8, 7), (256, 100), (2, 1), (7, 5)])
def test_every_batch_has_its_real_places_evenly_spread(batch: int, real: int) -> None:
    position = np.arange(5 * batch)
    is_real, place = split_positions(position, batch, real)
    assert is_real.reshape(5, batch).sum(1).tolist() == [real] * 5
    assert place[is_real].tolist() == list(range(5 * real))  # each side's own stream, without a gap
    assert place[~is_real].tolist() == list(range(5 * (batch - real)))
    where = np.flatnonzero(is_real[:batch])
    gaps = np.diff([*where, where[0] + batch])
    assert gaps.max() - gaps.min() <= 1
    shuffled = np.random.default_rng(0).permutation(position)
    for ordered, any_order in zip((is_real, place), split_positions(shuffled, batch, real), strict=True):
        np.testing.assert_array_equal(ordered[shuffled], any_order)


@pytest.mark.parametrize(("view", "views"), [({"kind": "gaussian"}, 3), ({"kind": "none"}, 1)])
def test_each_side_shows_what_it_would_show_alone(tmp_path: Path, view: dict[str, Any], views: int) -> None:
    sections = {"view": view, "stream": {"batch_size": 8, "num_views": 3}}
    config = mixed(folder(tmp_path, CLASSES), source={"share": 0.375}, **sections)
    shown = Renderer(config, "cpu").block_at(np.arange(48))
    real = shown["anchor"] < 0
    assert real.reshape(6, 8).sum(1).tolist() == [3] * 6
    alone = Renderer(small(**sections), "cpu").block_at(np.arange(30))
    for name in ("views", "label", "anchor", "epoch"):
        np.testing.assert_array_equal(shown[name][~real], alone[name])
    assert shown["views"].shape == (48, views, 3, 8, 8)
    assert shown["latent"].shape == (48, views, 0)
    images = -1 - shown["anchor"][real]
    assert sorted(images[:12].tolist()) == list(range(12))  # an epoch of the folder
    assert shown["epoch"][real].tolist() == [0] * 12 + [1] * 6
    for number, row in zip(images, shown["views"][real], strict=True):
        for view_ in row:
            np.testing.assert_array_equal(view_, noise(number).transpose(2, 0, 1))


def test_portions_do_not_matter_even_without_a_real_one(tmp_path: Path) -> None:
    config = mixed(folder(tmp_path, CLASSES), source={"share": 0.25})
    renderer = Renderer(config, "cpu")
    whole = renderer.block_at(np.arange(16))
    for places in ([0], [3], [7, 1], [15, 14, 13, 12]):
        part = renderer.block_at(np.array(places))
        for name, column in part.items():
            np.testing.assert_array_equal(column, whole[name][places])
    assert {(whole["anchor"][[3]] < 0).all(), (whole["anchor"][[0]] < 0).all()} == {True, False}


@pytest.mark.parametrize(
    ("how", "expected", "classes"),
    [("names", [0, 2, 3, 4], 5), ("apart", [3, 4, 5, 6], 7), ("order", [0, 1, 2], 3)],
)
def test_classes_join_those_of_the_generator_or_stay_apart(
    tmp_path: Path, how: str, expected: list[int], classes: int
) -> None:
    counts = dict(list(CLASSES.items())[: len(expected)])  # in order there must be as many as the generator has
    config = mixed(folder(tmp_path, counts), source={"classes": how})
    assert describe(config).num_classes == classes
    shown = Renderer(config, "cpu").block_at(np.arange(80))
    of_image = np.repeat(expected, list(counts.values()))
    real = shown["anchor"] < 0
    np.testing.assert_array_equal(shown["label"][real], of_image[-1 - shown["anchor"][real]])
    assert set(shown["label"][~real].tolist()) == {0, 1, 2}


def test_where_one_side_has_no_classes_there_are_none(tmp_path: Path) -> None:
    loose, classes = folder(tmp_path / "loose", {"": 8}), folder(tmp_path / "classes", CLASSES)
    for config in (mixed(loose), mixed(classes, generator={"num_classes": 0, "options": {"num_classes": 0}})):
        assert describe(config).num_classes == 0
        with pytest.raises(ConfigError, match="'supcon'"):
            Plan.of(Config(**{**vars(config), "objective": type(config.objective)(kind="supcon")}))
    shown = Renderer(mixed(loose), "cpu").block_at(np.arange(8))
    assert (shown["label"][shown["anchor"] < 0] == -1).all()
    # A second z of the same class still makes a view, also where the real images have no class.
    assert Plan.of(mixed(loose, view={"kind": "independent"})).rendered_views == 2
    with pytest.raises(ConfigError, match=r"^view\.kind must not be 'independent' with fewer than two classes"):
        Plan.of(
            mixed(classes, view={"kind": "independent"}, generator={"num_classes": 0, "options": {"num_classes": 0}})
        )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"share": 0.1},
            r"^source\.share must leave at least one real and one rendered image in a batch of 4, got 0\.1$",
        ),
        (
            {"share": 0.9},
            r"^source\.share must leave at least one real and one rendered image in a batch of 4, got 0\.9$",
        ),
        ({"share": 1.0}, r"^source\.share must be less than 1, got 1\.0$"),
        ({"directory": ""}, r"^source\.directory must be a directory of images, got ''$"),
        ({"classes": "order"}, r"^source\.classes must not be 'order' unless there is a directory for each of the 3"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    folder(tmp_path, CLASSES)
    with pytest.raises(ConfigError, match=message):
        Plan.of(mixed(tmp_path, source=source))


def test_a_batch_must_not_show_an_image_twice(tmp_path: Path) -> None:
    folder(tmp_path, {"": 3})
    assert Plan.of(mixed(tmp_path, stream={"batch_size": 6}))
    with pytest.raises(
        ConfigError, match=r"at least 4 images, those of one step, .* with 3; add some or lower source.share"
    ):
        Plan.of(mixed(tmp_path, stream={"batch_size": 8}))


@pytest.mark.parametrize("kind", ["simclr", "supcon"])
def test_a_learner_trains_on_both(tmp_path: Path, kind: str) -> None:
    config = mixed(
        folder(tmp_path, CLASSES),
        model=MODEL,
        objective={"kind": kind},
        stream={"reuse": 2, "reuse_window": 2},
        training={"steps": 7, "log_every": 1},
    )
    learner, renderer = Learner(Run.of(config), 0, torch.device("cpu")), Renderer(config, "cpu")
    blocks = map(renderer.block, Course(learner.plan).of_learner(0))
    found = [report.record for report in learner.train(blocks) if report.record]
    assert len(found) == 7
    assert all(np.isfinite(record["loss"]) for record in found)


def test_copies_of_a_real_image_are_augmented_each_in_its_own_way(tmp_path: Path) -> None:
    config = mixed(folder(tmp_path, CLASSES), model=MODEL)
    batch = Renderer(config, "cpu").block_at(np.arange(4))
    images = Learner(Run.of(config), 0, torch.device("cpu")).images(batch).view(2, 4, 3, *[7] * 2)
    assert (images[0] - images[1]).abs().amax((1, 2, 3)).min() > 0.01


def test_it_is_previewed_and_planned(tmp_path: Path) -> None:
    config = mixed(folder(tmp_path / "photos", CLASSES), model=MODEL)
    preview(config, tmp_path / "x.png", 4)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size[1] > 4 * 64
    said = Plan.of(config).lines(config)[0]
    assert said == f"mix            fakes:Fake and {tmp_path / 'photos'}: 8 px, no latents, 5 classes"
