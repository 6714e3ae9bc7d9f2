"""Walks: they are learned to do what their names say, measured on the pixels."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import blob
from torch import Tensor

from genray.commands.lessons.differentiable import DifferentiableGenerator
from genray.commands.lessons.steer import SteerOptions, Walks, steer
from genray.config import view
from genray.config.errors import ConfigError, UserError
from genray.config.load import load
from genray.views import walk_files
from genray.views.generators import load as load_generator
from genray.views.types import Generator

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
ANCHORS = 300


def learn(directory: Path, config=None, **options) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    out = directory / "walks.safetensors"
    steer(config or blob(), out, SteerOptions(**options), say=lambda line: None)
    return dict(walk_files.WALKS.read("view.walks", str(out)).tensors)


def test_walks_find_the_latents_that_do_it(tmp_path: Path) -> None:
    """`Blob` has a latent for each edit but brightness, which is three together."""
    walks = learn(tmp_path, steps=150, batch=16, lr=0.02, zoom=1.5, shift=0.15, rotation=20)
    assert list(walks) == sorted(["zoom", "shift_x", "shift_y", "rotation", "brightness", "red", "green", "blue"])
    towards = {"shift_x": [0], "shift_y": [1], "zoom": [2], "rotation": [3], "red": [4], "green": [5], "blue": [6]}
    for name, coordinates in {**towards, "brightness": [4, 5, 6]}.items():
        direction = walks[name] / np.linalg.norm(walks[name])
        expected = np.zeros(8)
        expected[coordinates] = len(coordinates) ** -0.5
        assert direction @ expected > 0.9, name
        assert walks[name][7] == 0  # what does nothing gets no gradient
    # 0.3 z is the place in the frame [-1, 1], and 0.15 sides are 0.3 of it.
    assert walks["shift_x"][0] == pytest.approx(1, abs=0.15)
    assert 0.3 * walks["zoom"][2] == pytest.approx(math.log(1.5), abs=0.1)


def test_the_file_says_how_it_came_about(tmp_path: Path) -> None:
    config = blob(seed=3, stream={"classes": [1]}, generator={"truncation": 0.7})
    learn(tmp_path, config, steps=30, batch=2, walks=("shift_y", "zoom"), zoom=2.0)
    about = walk_files.WALKS.read("view.walks", str(tmp_path / "walks.safetensors")).about
    assert about["generator"] == "fakes:Blob"
    assert about["latent_dim"] == 8
    assert about["ranges"] == {"shift_y": [-0.39, 0.39], "zoom": [0.5, 2.0]}
    settings = about["settings"]
    assert settings["seed"] == 3
    assert settings["stream"] == {"classes": [1], "class_weights": None}
    assert settings["generator"]["truncation"] == 0.7
    assert settings["steer"]["steps"] == 30
    assert settings["steer"]["walks"] == ["shift_y", "zoom"]
    assert about["curve_ends"].keys() == {"step", "loss", "shift_y", "zoom"}
    assert about["curve_ends"]["step"] == 30
    assert set(about["versions"]) == {"genray", "torch"}


def test_a_step_is_the_error_over_known_pixels(tmp_path: Path) -> None:
    """Against the definition, image by image, before anything has been learned: the walks lead nowhere yet."""
    options = SteerOptions(walks=("shift_x", "red"), batch=3, steps=1)
    walks = Walks(DifferentiableGenerator(blob(generator={"micro_batch": 4})), options)
    z, labels, seeds = walks.source.draw(5, 6)
    strength = 2 * torch.from_numpy(walk_draws(5, 6)) - 1
    images = walks.source.render(z, labels, seeds)
    errors = []
    for i, name in enumerate(["shift_x"] * 3 + ["red"] * 3):
        edited, known = walks.edits[name](images[i : i + 1], strength[i : i + 1].float())
        mask = known[0, 0].bool()
        errors.append(float(((images[i] - edited[0])[:, mask] ** 2).mean()))
    found = walks.step(5)
    assert found["loss"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert found["shift_x"] == found["red"] == pytest.approx(1)  # all of the error is left
    assert walks.step(6)["red"] < 1


def walk_draws(step: int, count: int) -> np.ndarray:
    from genray.views.random import uniforms

    return uniforms(0, "steer", step * count + np.arange(count), 1)[:, 0]


def test_the_size_of_a_micro_batch_does_not_matter() -> None:
    found = []
    for size in (4, 64):
        walks = Walks(DifferentiableGenerator(blob(generator={"micro_batch": size})), SteerOptions(batch=3))
        for number in range(3):
            walks.step(number)
        found.append(walks.walks[0].detach())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_labels_are_those_that_are_configured() -> None:
    source = DifferentiableGenerator(blob(stream={"classes": [1]}))
    assert source.draw(0, 50)[1].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("returns", "told"),
    [
        ("uint8", "generator.target must render floats with a gradient in z, .*got uint8 from a Blob"),
        ("constant", "generator.target must render floats with a gradient in z, .*got floats without one"),
    ],
)
def test_a_generator_without_a_gradient_is_refused(tmp_path: Path, returns: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        learn(tmp_path, blob({"returns": returns}), steps=2)
    assert not list(tmp_path.glob("*.safetensors"))
    learn(tmp_path, steps=2, batch=1)  # the failed start leaves the name free


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"walks": ("zoom", "shift_z")}, "--walks must be of zoom, shift_x, .*, blue, got 'shift_z'"),
        ({"steps": 0}, "--steps must be more than 0, got 0"),
        ({"lr": -1.0}, "--lr must be more than 0, got -1"),
        ({"zoom": 1.0}, "--zoom must be more than 1, got 1"),
        ({"shift": 1.2}, "--shift must be at most 0.9, beyond which too little of an edited image is known, got 1.2"),
        ({"zoom": 64.0}, "--zoom must be at most 16, .*, got 64"),
        ({"rotation": 200.0}, "--rotation must be at most 180, .*, got 200"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options, told: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=f"^{told}$"):
        learn(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def ink(images: Tensor) -> Tensor:
    """How much a digit scene differs from its paper, which its corners tell: `[n, h, w]`."""
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].view(-1, 3, 2, 2)
    paper = torch.nn.functional.interpolate(corners, images.shape[-1], mode="bilinear", align_corners=True)
    return (images - paper).abs().mean(1)


def measured(generator: Generator, walk: np.ndarray) -> dict[str, list[float]]:
    """Means over anchors at each strength: place and area of the ink, its turn against the middle, and the colours."""
    from genray.views.anchors import Anchors

    anchors = Anchors(seed=5, latent_dim=32, num_classes=10)
    z, labels = anchors.latents(np.arange(ANCHORS)), torch.from_numpy(anchors.labels(np.arange(ANCHORS)))
    axis = (torch.arange(32) + 0.5) / 16 - 1
    found: dict[str, list[float]] = {name: [] for name in ("x", "y", "area", "turn", "red", "green", "blue")}
    inks = []
    for strength in STRENGTHS:
        images = generator(torch.from_numpy(z + strength * walk).float(), labels).float() / 255
        dark = ink(images)
        inks.append(dark)
        whole = dark.sum((1, 2))
        found["x"].append(float(((dark.sum(1) * axis).sum(1) / whole).mean()))
        found["y"].append(float(((dark.sum(2) * axis).sum(1) / whole).mean()))
        found["area"].append(float((dark > 0.1).float().mean()))
        for channel, name in enumerate(("red", "green", "blue")):
            found[name].append(float(images[:, channel].mean()))
    found["turn"] = [turn(inks[2], moved) for moved in inks]
    return found


def turn(before: Tensor, after: Tensor) -> float:
    """Degrees, counter-clockwise, by which the ink has to be turned about its middle to be most like it is after."""
    centred = [_centred(dark) for dark in (before, after)]
    best = torch.full((len(before),), -1.0)
    angle = torch.zeros(len(before))
    for degrees in range(-45, 46, 3):
        a = math.radians(degrees)
        matrix = torch.tensor([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0]]).repeat(len(before), 1, 1)
        places = torch.nn.functional.affine_grid(matrix, [len(before), 1, 32, 32], align_corners=False)
        turned = torch.nn.functional.grid_sample(centred[0][:, None], places, align_corners=False)[:, 0]
        likeness = torch.cosine_similarity(turned.flatten(1), centred[1].flatten(1))
        angle = torch.where(likeness > best, torch.tensor(float(degrees)), angle)
        best = torch.maximum(likeness, best)
    return float(angle.median())


def _centred(dark: Tensor) -> Tensor:
    axis = (torch.arange(32) + 0.5) / 16 - 1
    whole = dark.sum((1, 2))
    offset = torch.stack([(dark.sum(1) * axis).sum(1) / whole, (dark.sum(2) * axis).sum(1) / whole], 1)
    matrix = torch.cat([torch.eye(2).repeat(len(dark), 1, 1), offset[:, :, None]], 2)
    places = torch.nn.functional.affine_grid(matrix, [len(dark), 1, 32, 32], align_corners=False)
    return torch.nn.functional.grid_sample(dark[:, None], places, align_corners=False)[:, 0]


WHAT = {
    "shift_x": ["x"],
    "shift_y": ["y"],
    "zoom": ["area"],
    "rotation": ["turn"],
    "brightness": ["red", "green", "blue"],
    "red": ["red"],
    "green": ["green"],
    "blue": ["blue"],
}
LEAST = {"x": 0.1, "y": 0.1, "area": 0.08, "turn": 12, "red": 0.1, "green": 0.1, "blue": 0.1}
"""By how much they grow from one end of the range to the other, at the least; places in halves of the frame."""


def judge(walks: dict[str, np.ndarray]) -> None:
    generator = load_generator(load("demo").generator, "cpu")
    for name, measures in WHAT.items():
        found = measured(generator, walks[name])
        for measure, values in found.items():
            if measure in measures:
                assert all(a < b for a, b in pairwise(values)), (name, measure, values)
                assert values[-1] - values[0] > LEAST[measure], (name, measure, values)
            elif measure in ("x", "y", "turn"):
                assert abs(values[-1] - values[0]) <= LEAST[measure] / 2, (name, measure, values)  # and nothing else


def test_the_shipped_walks_do_what_their_names_say() -> None:
    judge(dict(walk_files.WALKS.read("view.walks", view.EMBEDDED_GENERATOR).tensors))


@pytest.mark.slow
def test_walks_learned_by_the_defaults_do_what_their_names_say(tmp_path: Path) -> None:
    config = load("demo", ["--tracking.mlflow", "false"])
    judge(learn(tmp_path, config))
