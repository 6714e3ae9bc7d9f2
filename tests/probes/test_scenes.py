import math

import pytest
import torch

from genray.probes import scenes
from genray.probes.features import features
from genray.probes.knn import knn

NUM_FACTORS = scenes.NUM_FACTORS


def factors(n: int = 1, **values: float) -> torch.Tensor:
    """Factors that draw white ink on black paper, upright in the middle at the largest scale, unless told otherwise."""
    found = torch.zeros(n, NUM_FACTORS)
    found[:, :2], found[:, 2], found[:, 3], found[:, 4:7] = 0.5, 1.0, 0.5, 1.0
    for name, value in values.items():
        found[:, ("x", "y", "scale", "angle").index(name)] = value
    return found


def centroid(image: torch.Tensor) -> tuple[float, float]:
    """Horizontal and vertical centre of mass of the ink in pixels, counted from the frame's centre."""
    ink = image.mean(0)
    steps = torch.arange(scenes.IMAGE_SIZE) + 0.5 - scenes.IMAGE_SIZE / 2
    total = ink.sum()
    return float((ink.sum(0) * steps).sum() / total), float((ink.sum(1) * steps).sum() / total)


def test_the_split_has_the_promised_sizes_and_holds_every_scan_once():
    from sklearn.datasets import load_digits

    splits = [scenes.digits(split)[0] for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [1000, 200, 597]
    ours = torch.cat(splits).mul(16).flatten(1).numpy().astype(int)
    assert sorted(map(tuple, ours)) == sorted(map(tuple, load_digits().data.astype(int)))


def test_the_splits_share_no_scan():
    seen = [{scan.numpy().tobytes() for scan in scenes.digits(split)[0]} for split in ("train", "val", "test")]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_every_class_is_in_every_split():
    for split in ("train", "val", "test"):
        labels = scenes.digits(split)[1]
        assert torch.bincount(labels, minlength=10).min() >= 0.05 * len(labels)


def test_scenes_are_a_function_of_split_count_and_seed():
    images, labels = scenes.scenes("val", 300)
    again, _ = scenes.scenes("val", 300)
    longer, _ = scenes.scenes("val", 450)
    assert images.dtype == torch.uint8
    assert images.shape == (300, 3, 32, 32)
    assert torch.equal(images, again)
    assert torch.equal(images, longer[:300])
    assert torch.equal(labels, scenes.digits("val")[1][torch.arange(300) % 200])
    assert not torch.equal(images, scenes.scenes("val", 300, seed=1)[0])
    assert not torch.equal(images[0], images[200])  # the same scan, another scene


def test_a_digit_is_placed_where_its_factors_say_and_stays_inside_the_frame():
    blob = torch.zeros(1, 8, 8)
    blob[:, 2:6, 2:6] = 1  # the middle half of the scan, so that no soft edge leaves the frame
    size = scenes.IMAGE_SIZE
    for scale, share in ((0.0, 0.45), (1.0, 0.95)):
        slack = (1 - share) * size / 2
        for x, y in ((0.0, 0.0), (1.0, 0.0), (0.5, 1.0)):
            image = scenes.compose(blob, factors(x=x, y=y, scale=scale))[0]
            assert centroid(image) == pytest.approx(((2 * x - 1) * slack, (2 * y - 1) * slack), abs=0.05)
            assert float(image[0].sum()) == pytest.approx((share * size / 2) ** 2, rel=0.05)
    corner = scenes.compose(torch.ones(1, 8, 8), factors(x=0.0, y=1.0, scale=0.0))[0, 0]
    assert corner[-1, 0] > 0.2  # the box touches the frame
    assert corner[:16].max() == 0
    assert corner[:, 16:].max() == 0


def test_scale_is_the_digits_share_of_the_frame():
    blob = torch.ones(1, 8, 8)
    for scale, share in ((0.0, 0.45), (0.5, 0.7), (1.0, 0.95)):
        image = scenes.compose(blob, factors(scale=scale))[0, 0]
        assert float(image[16].sum()) == pytest.approx(share * 32, abs=1.0)


def test_rotation_turns_a_known_digit_by_up_to_25_degrees_in_one_sense():
    one = torch.zeros(1, 8, 8)
    one[0, :, 3:5] = 1  # an upright stroke

    def lean(angle: float) -> float:
        """Degrees by which the stroke leans to the right at its top."""
        ink = scenes.compose(one, factors(angle=angle))[0, 0]
        steps = torch.arange(32) + 0.5 - 16
        total = ink.sum()
        xy, yy = (ink * steps * steps[:, None]).sum() / total, (ink * steps[:, None] ** 2).sum() / total
        xx = (ink * steps**2).sum() / total
        return math.degrees(0.5 * math.atan2(-2 * float(xy), float(yy - xx)))

    assert lean(0.5) == pytest.approx(0, abs=0.1)
    assert abs(lean(1.0)) == pytest.approx(25, abs=1.5)
    assert lean(1.0) == pytest.approx(-lean(0.0), abs=0.1)
    assert lean(0.75) == pytest.approx(lean(1.0) / 2, abs=1.5)
    assert lean(1.0) > 0  # the last factor values lean to the right: clockwise on the screen


def test_a_scan_is_drawn_neither_mirrored_nor_turned_over():
    scans, labels = scenes.digits("train")
    scan = scans[labels == 7][:1]
    image = scenes.compose(scan, factors())[0, 0]
    reduced = torch.nn.functional.interpolate(image[None, None], size=8, mode="area")[0, 0]
    match = [
        torch.corrcoef(torch.stack([reduced.flatten(), turned.flatten()]))[0, 1]
        for turned in (scan[0], scan[0].flip(0), scan[0].flip(1), scan[0].rot90(2))
    ]
    assert match[0] > 0.95
    assert match[0] == max(match)


def test_ink_and_paper_take_the_colours_of_their_factors():
    blank = torch.zeros(1, 8, 8)
    chosen = factors()
    chosen[:, 7:11] = torch.tensor([0.0, 1.0, 0.0, 1.0])  # red rises to the right, green and blue stay black
    paper = scenes.compose(blank, chosen)[0]
    assert paper[0, 5, 0] == 0
    assert float(paper[0, 5, 31]) == pytest.approx(0.55)
    assert paper[1:].abs().max() == 0
    chosen[:, 4:7] = torch.tensor([0.0, 0.5, 1.0])
    ink = scenes.compose(torch.ones(1, 8, 8), chosen)[0, :, 16, 16]
    assert ink.tolist() == pytest.approx([0.4, 0.7, 1.0])


def test_raw_pixels_say_something_but_not_much():
    train, train_labels = scenes.scenes("train", 10_000)
    val, val_labels = scenes.scenes("val", 400)
    pixels = [features(lambda batch: batch.flatten(1), images) for images in (train, val)]
    reached = knn(pixels[0], train_labels, pixels[1], val_labels, k=10)
    assert 0.35 < reached < 0.48
    assert knn(pixels[0], train_labels, pixels[0][:50], train_labels[:50], k=1) == 1.0  # its own neighbour
