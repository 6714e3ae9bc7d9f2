"""A folder of images as a source: which are shown when, what becomes of their pixels, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import MODEL, folder, noise, of_images
from PIL import ExifTags, Image, ImageOps

from genray.commands.preview import preview
from genray.config.errors import ConfigError, UserError
from genray.config.load import build
from genray.learner.learner import Learner
from genray.stream.plan import Plan
from genray.stream.renderer import Renderer
from genray.stream.run import Run
from genray.stream.tickets import Course
from genray.views.pin import pinned
from genray.views.sources import describe
from genray.views.sources.images import ImageSource, decode_square
from genray.views.sources.listing import listing

CLASSES = {"cat": 5, "dog": 4, "owl": 3}


def told(call: Any, *arguments: Any, **more: Any) -> str:
    """What is said of something that must be refused."""
    with pytest.raises(ConfigError) as error:
        call(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_epoch_shows_every_image_once_as_it_is(tmp_path: Path) -> None:
    config = of_images(folder(tmp_path, CLASSES), stream={"num_views": 3})
    shown = Renderer(config).block_at(np.arange(36))
    assert shown["views"].shape == (36, 1, 3, 8, 8)
    assert shown["latent"].shape == (36, 1, 0)
    assert shown["epoch"].tolist() == [0] * 12 + [1] * 12 + [2] * 12
    orders = shown["anchor"].reshape(3, 12)
    assert all(sorted(order) == list(range(12)) for order in orders.tolist())
    assert len({tuple(order) for order in orders.tolist()}) == 3
    labels = np.repeat([0, 1, 2], [5, 4, 3])
    for view, label, anchor in zip(shown["views"], shown["label"], shown["anchor"], strict=True):
        np.testing.assert_array_equal(view[0], noise(anchor).transpose(2, 0, 1))
        assert label == labels[anchor]


def test_images_without_classes_have_no_label(tmp_path: Path) -> None:
    config = of_images(folder(tmp_path, {"": 6}))
    assert (Renderer(config).block_at(np.arange(12))["label"] == -1).all()
    found = describe(config)
    assert (found.num_classes, found.latent_dim, found.views, found.population) == (0, 0, 1, 6)
    assert "supcon" in told(Plan.of, of_images(tmp_path, objective={"kind": "supcon"}))
    assert Plan.of(of_images(folder(tmp_path / "classes", CLASSES), objective={"kind": "supcon"})).num_classes == 3


def test_a_block_is_what_its_positions_show_in_any_portions(tmp_path: Path) -> None:
    config = of_images(folder(tmp_path, CLASSES))
    whole, places = Renderer(config).block_at(np.arange(24)), np.array([23, 4, 11])
    part = Renderer(of_images(tmp_path, pool={"num_cpus": 3})).block_at(places)
    for name, column in part.items():
        np.testing.assert_array_equal(column, whole[name][places])
    other = Renderer(of_images(tmp_path, seed=1)).block_at(np.arange(24))
    assert (other["anchor"] != whole["anchor"]).any()


@pytest.mark.parametrize(("width", "height"), [(16, 16), (24, 16), (16, 40), (5, 9), (12, 9), (8, 8)])
def test_the_middle_square_is_resized(tmp_path: Path, width: int, height: int) -> None:
    """Against torchvision's antialiased resize of torchvision's centre crop."""
    from torchvision.transforms.functional import InterpolationMode, center_crop, resize, to_pil_image

    path = tmp_path / "x.png"
    Image.fromarray(noise(1, width, height)).save(path)
    square = center_crop(to_pil_image(noise(1, width, height)), [min(width, height)])
    expected = np.asarray(resize(square, [8, 8], InterpolationMode.BILINEAR)).transpose(2, 0, 1)
    found = decode_square(path, 8)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_any_kind_of_image_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"x.{'tif' if mode == 'CMYK' else 'png'}"
    Image.fromarray(noise(2)).convert(mode).save(path)
    assert decode_square(path, 8).shape == (3, 8, 8)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_of_sixteen_bits_the_upper_eight_are_taken(tmp_path: Path, name: str) -> None:
    grey = np.random.default_rng(0).integers(0, 2**16, (8, 8), dtype=np.uint16)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5\n8 8\n65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(tmp_path / name)
    np.testing.assert_array_equal(decode_square(tmp_path / name, 8), np.stack([grey // 256] * 3))


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.full((8, 8), 0.5, np.float32), "its pixels are floats"),
        (np.full((8, 8), 2**16, np.int32), "its pixels have more than 16 bits"),
        (np.full((8, 8), -1, np.int32), "its pixels have more than 16 bits"),
    ],
)
def test_numbers_that_are_no_colours_are_refused(tmp_path: Path, pixels: np.ndarray, told: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=rf"^source\.directory must hold images .* got '.*x\.tif' \({told}\); repair"):
        decode_square(tmp_path / "x.tif", 8)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path: Path, name: str, orientation: int) -> None:
    """Against PIL's own way; the picture is not square, so that what is its middle shows too."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(noise(3, 13, 8))
    image.save(tmp_path / name, exif=exif, **({"lossless": True} if name.endswith("webp") else {}))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(image).save(tmp_path / "upright.png")
    np.testing.assert_array_equal(decode_square(tmp_path / name, 8), decode_square(tmp_path / "upright.png", 8))
    assert (decode_square(tmp_path / name, 8) != decoded_as_it_lies(image)).any() == (orientation > 1)


def decoded_as_it_lies(image: Image.Image) -> np.ndarray:
    """The middle of an image of 13 x 8 pixels."""
    return np.asarray(image)[:, 2:10].transpose(2, 0, 1)


def test_damaged_exif_data_do_not_matter(tmp_path: Path) -> None:
    Image.fromarray(noise(4)).save(tmp_path / "x.png", exif=b"Exif\0\0none of it")
    np.testing.assert_array_equal(decode_square(tmp_path / "x.png", 8), noise(4).transpose(2, 0, 1))


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    folder(tmp_path, CLASSES)
    whole = (tmp_path / "dog" / "001.png").read_bytes()
    config = of_images(tmp_path)
    for content in (b"no image", b"", whole[: len(whole) // 2]):
        (tmp_path / "dog" / "001.png").write_bytes(content)
        with pytest.raises(
            UserError, match=r"^source\.directory must hold images that can be decoded, got '.*001\.png' \("
        ):
            Renderer(config).block_at(np.arange(12))


def test_what_is_no_image_by_its_name_is_left_out(tmp_path: Path) -> None:
    folder(tmp_path, CLASSES)
    for name in (".hidden.png", "readme.txt", "cat/notes.md", "cat/.x.png"):
        (tmp_path / name).write_text("")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "empty").mkdir()
    deeper = tmp_path / "owl" / "more"
    deeper.mkdir()
    Image.fromarray(noise(99)).save(deeper / "x.JPEG")
    found = listing(str(tmp_path))
    assert found.classes == ("cat", "dog", "owl")
    assert len(found.files) == 13
    assert found.files[-1] == "owl/more/x.JPEG"
    assert found.labels[-1] == 2


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (None, "source.directory must be a directory that exists, got '{path}'"),
        ({}, "source.directory must hold images (.bmp, .gif, .jpeg, "),
        ({"": 2, "cat": 3}, "source.directory must hold either images or a directory of them for each class, got "),
        (
            {"cat": 3},
            "source.directory must hold at least 4 images, those of one step, got '{path}' with 3; add some or lower "
            "stream.batch_size",
        ),
    ],
)
def test_a_folder_that_cannot_be_shown_is_refused(tmp_path: Path, counts: Any, message: str) -> None:
    path = tmp_path / "images"
    if counts is not None:
        path.mkdir()
        folder(path, counts)
    assert told(Plan.of, of_images(path)).startswith(message.format(path=path))
    if not counts:
        assert told(pinned, of_images(path)).startswith(message.format(path=path))


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (folder(tmp_path, CLASSES) / "ring").symlink_to("ring")
    assert told(listing, str(tmp_path)).startswith(
        f"source.directory must be readable with all below it, got {str(tmp_path)!r} ("
    )


def test_views_that_are_used_again_need_a_window_of_images(tmp_path: Path) -> None:
    folder(tmp_path, CLASSES)
    assert Plan.of(of_images(tmp_path, stream={"reuse": 2, "reuse_window": 3})).population == 12
    assert "at least 16 images, those of a window of reused views, got" in told(
        Plan.of, of_images(tmp_path, stream={"reuse": 2, "reuse_window": 4})
    )


def test_a_run_keeps_the_files_that_it_began_with(tmp_path: Path) -> None:
    config = pinned(of_images(folder(tmp_path / "photos", CLASSES)))
    assert len(config.source.digest or "") == 64  # type: ignore[union-attr]
    assert pinned(config) is config
    ImageSource(config)
    again = folder(tmp_path / "again", CLASSES)
    assert listing(str(again)).digest == config.source.digest  # type: ignore[union-attr]  # wherever they lie
    later = pinned(of_images(again))
    for directory in (tmp_path / "photos", again):
        (directory / "cat" / "000.png").unlink()
    assert told(describe, later).startswith(
        "source.directory must hold the files that it held when the run began, got "
    )
    assert describe(config).population == 12  # a process looks once


def test_no_torch_is_needed_to_decode(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from genray.config.load import build; from genray.stream.renderer import Renderer;"
        "c = build({'name': 'x', 'view': {'kind': 'none'}, 'pool': {'num_gpus': 0}, 'stream': {'batch_size': 4},"
        f"'source': {{'kind': 'images', 'directory': {str(folder(tmp_path, CLASSES))!r}}}}});"
        "print(Renderer(c).block_at(np.arange(4))['views'].shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(4, 1, 3, 128, 128) False"


def test_a_learner_trains_on_them(tmp_path: Path) -> None:
    config = of_images(folder(tmp_path, CLASSES), model=MODEL, training={"steps": 5, "log_every": 1})
    learner, renderer = Learner(Run.of(config), 0, torch.device("cpu")), Renderer(config)
    blocks = map(renderer.block, Course(learner.plan).of_learner(0))
    found = [report.record for report in learner.train(blocks) if report.record]
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5]
    lines = [line for record in found for line in record["batches"]]
    assert len({line["pixels"] for line in lines}) == 5
    assert {line["latents"] for line in lines} == {"00000000"}  # there are none


def test_they_are_previewed_and_planned(tmp_path: Path) -> None:
    config = of_images(folder(tmp_path / "photos", CLASSES), model=MODEL)
    preview(config, tmp_path / "x.png", 3)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size[0] > 3 * 64
    lines = Plan.of(config).lines(config)
    assert lines[0] == f"images         {tmp_path / 'photos'}: 8 px, no latents, 3 classes"
    assert any(line.endswith("3333.3 epochs of 12") for line in lines)


def test_a_relative_folder_is_named_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "photos", CLASSES)
    monkeypatch.chdir(tmp_path)
    config = pinned(build({**of_images(Path("photos")).to_dict(), "name": "x"}))
    assert config.source.directory == str(tmp_path / "photos")  # type: ignore[union-attr]
