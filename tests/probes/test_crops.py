"""The way from a file to a square, against timm's and torchvision's transforms."""

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from worlds import encoded, picture

from genray.config.errors import UserError
from genray.probes.crops import CROP_UNIFORMS, Geometry, cropped, decode_rgb, random_box, whole


@pytest.mark.parametrize("sides", [(50, 37), (37, 50), (40, 40), (33, 200), (24, 24)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("crop_pct", "mode"), [(0.875, "center"), (1.0, "center"), (0.9, "squash")])
def test_the_whole_image_is_what_timm_makes_of_it(sides, interpolation, crop_pct, mode):
    image = picture("green", 3, *sides)
    transform = timm.data.create_transform(
        (3, 24, 24), interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode, use_prefetcher=True
    )
    geometry = Geometry(24, int(24 / crop_pct), interpolation, mode == "squash")
    assert np.array_equal(whole(image, geometry), np.asarray(transform(image)))


def test_random_parts_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    image = Image.new("RGB", (60, 40))
    ours = np.array([random_box(60, 40, random.random(CROP_UNIFORMS)) for _ in range(4000)])
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = np.stack([ours[:, 1], ours[:, 0], ours[:, 3] - ours[:, 1], ours[:, 2] - ours[:, 0]], 1)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= 40).all()
    assert (ours[:, 1] + ours[:, 3] <= 60).all()
    deviation = theirs.std(0) / np.sqrt(2000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * deviation).all()
    assert ours.std(0) == pytest.approx(theirs.std(0), rel=0.08)


@pytest.mark.parametrize("sides", [(10, 400), (400, 10)])
def test_a_strip_keeps_its_middle(sides):
    uniforms = np.full(CROP_UNIFORMS, 0.999)  # every try is larger than the image
    left, top, right, bottom = random_box(*sides, uniforms)
    theirs = RandomResizedCrop.get_params(Image.new("RGB", sides), [0.999, 1.0], [3 / 4, 4 / 3])
    assert (top, left, bottom - top, right - left) == pytest.approx(theirs, abs=1)


def test_half_of_the_crops_are_mirrored_where_that_is_allowed():
    image, random = picture("red", 0, 30, 30), np.random.default_rng(1)
    turned = 0
    for _ in range(200):
        uniforms = random.random(CROP_UNIFORMS)
        upright, other = (cropped(image, Geometry(8, 8), uniforms, mirrored) for mirrored in (False, True))
        assert upright.shape == (3, 8, 8)
        assert np.array_equal(other, upright) or np.array_equal(other, upright[:, :, ::-1])
        turned += not np.array_equal(other, upright)
    assert 70 < turned < 130


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1"])
def test_every_mode_becomes_colour(mode, tmp_path):
    picture("blue", 0).convert("L" if mode == "I;16" else mode).convert(mode).save(tmp_path / "x.png")
    assert whole(decode_rgb(tmp_path / "x.png", "x"), Geometry(8, 8)).shape == (3, 8, 8)


def test_a_file_that_is_no_image_is_named(tmp_path):
    whole_file = encoded(picture("red", 0))
    for content, reason in ((b"text", "no image of a known format"), (whole_file[:150], ".+")):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(
            UserError, match=rf"^labelled images must be files that can be decoded, got BAD \({reason}\)$"
        ):
            decode_rgb(tmp_path / "bad.png", "BAD")
    with pytest.raises(UserError, match=r"got row 3 of x \(no image"):
        decode_rgb(b"nothing", "row 3 of x")
