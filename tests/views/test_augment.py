"""Each operation against torchvision's on single images; the randomness against its own promises."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from genray.config.sections import Augment
from genray.views import augment
from genray.views.augment import (
    MEAN,
    NUM_UNIFORMS,
    STD,
    Parameters,
    Policy,
    augment_views,
    draw,
    policy,
    view_parameters,
)
from genray.views.random import uniforms


def close(ours: torch.Tensor, theirs: torch.Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def photos(count: int, size: int, views: int = 1) -> torch.Tensor:
    """Smooth and noisy at once, so that both aliasing and edges show: uint8 [count, views, 3, size, size]."""
    random = torch.Generator().manual_seed(count + size)
    coarse = torch.rand(count * views, 3, 5, 5, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    noisy = 0.7 * smooth + 0.3 * torch.rand(smooth.shape, generator=random)
    return noisy.mul(255).round().to(torch.uint8).reshape(count, views, 3, size, size)


def parameters(count: int, side: int, **given: object) -> Parameters:
    """Parameters that change nothing, but for those given."""
    zero = np.zeros(count, dtype=np.int64)
    nothing = Parameters(
        top=zero,
        left=zero,
        height=zero + side,
        width=zero + side,
        flip=zero > 0,
        order=np.full((count, 4), -1),
        factors=np.tile([1.0, 1.0, 1.0, 0.0], (count, 1)),
        grey=zero > 0,
        sigma=np.zeros(count),
    )
    return replace(nothing, **given)  # type: ignore[arg-type]


def unnormalised(images: torch.Tensor) -> torch.Tensor:
    return images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


def run(images: torch.Tensor, size: int, given: Parameters) -> torch.Tensor:
    """Augmented pixels in [0, 1], of uint8 [n, 1, 3, H, W]."""
    return unnormalised(augment.augment(images[:, 0], Policy(images.shape[-1], size), given))


@pytest.mark.parametrize(("side", "size"), [(128, 112), (32, 28), (32, 32), (24, 48)])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_are_torchvisions(side: int, size: int, flip: bool) -> None:
    images = photos(12, side)
    random = np.random.default_rng(side)
    height, width = random.integers(3, side + 1, (2, 12))
    height[0] = width[0] = side
    top, left = random.integers(0, side - height + 1), random.integers(0, side - width + 1)
    given = parameters(12, side, top=top, left=left, height=height, width=width, flip=np.full(12, flip))
    for i, image in enumerate(run(images, size, given)):
        pixels = images[i, 0] / 255
        expected = tv.resized_crop(
            pixels, int(top[i]), int(left[i]), int(height[i]), int(width[i]), [size, size], antialias=True
        )
        close(image, tv.horizontal_flip(expected) if flip else expected)


OPERATIONS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


@pytest.mark.parametrize("operation", range(4))
def test_colour_operations_are_torchvisions(operation: int) -> None:
    images = photos(16, 32)
    images[0] = images[0, :, :1]  # without colour, hue is undefined
    images[1] = 0
    images[2, :, :, :16] = torch.tensor([255, 255, 0], dtype=torch.uint8)[:, None, None]  # two channels tie
    amounts = np.linspace(-0.5, 0.5, 16) if operation == 3 else np.linspace(0, 2, 16)
    factors, order = np.ones((16, 4)), np.full((16, 4), -1)
    factors[:, operation], order[:, 2] = amounts, operation
    for i, image in enumerate(run(images, 32, parameters(16, 32, factors=factors, order=order))):
        close(image, OPERATIONS[operation](images[i, 0] / 255, float(amounts[i])))


def test_colour_operations_follow_each_images_order() -> None:
    count = 24
    images = photos(1, 32).expand(count, -1, -1, -1, -1)
    order = np.argsort(np.random.default_rng(0).random((count, 4)), axis=1)
    factors = np.tile([1.6, 0.5, 1.7, 0.2], (count, 1))
    out = run(images, 32, parameters(count, 32, factors=factors, order=order))
    for i, image in enumerate(out):
        expected = images[i, 0] / 255
        for operation in order[i]:
            expected = OPERATIONS[operation](expected, float(factors[i, operation]))
        close(image, expected)
    assert (out - out[0]).abs().amax((1, 2, 3)).max() > 0.05  # the order matters for these factors


def test_grey_and_blur_are_torchvisions() -> None:
    images = photos(8, 112)
    sigma = np.array([0.0, 0.1, 0.3, 0.5, 1.0, 1.5, 1.9, 2.0])
    grey = np.arange(8) % 2 == 1
    for i, image in enumerate(run(images, 112, parameters(8, 112, grey=grey, sigma=sigma))):
        expected = images[i, 0] / 255
        if grey[i]:
            expected = tv.rgb_to_grayscale(expected, 3)
        if sigma[i]:
            expected = tv.gaussian_blur(expected, [11, 11], [sigma[i], sigma[i]])
        close(image, expected)


def test_none_only_normalises_and_reduces_by_area() -> None:
    chosen = policy(Augment(policy="none"), 32)
    images = photos(3, 32)
    expected = torch.stack([tv.normalize(image / 255, list(MEAN), list(STD)) for image in images[:, 0]])
    close(augment_views(images, np.arange(3), chosen, 0, 1), expected, atol=1e-5)

    large = photos(2, 256)
    means = (large[:, 0] / 255).reshape(2, 3, 128, 2, 128, 2).mean((3, 5))
    out = augment_views(large, np.arange(2), policy(Augment(policy="none"), 256), 0, 1)
    close(unnormalised(out), means)


def test_the_whole_pipeline_is_torchvisions() -> None:
    chosen = policy(Augment(policy="simclr"), 256)
    images, anchors = photos(10, 256), np.arange(10)
    drawn = view_parameters(chosen, 5, anchors, 1)
    assert all(happened.any() for happened in (drawn.grey, drawn.flip, drawn.sigma))
    for i, image in enumerate(augment_views(images, anchors, chosen, 5, 1)):
        box = (int(drawn.top[i]), int(drawn.left[i]), int(drawn.height[i]), int(drawn.width[i]))
        expected = torch.nn.functional.avg_pool2d(images[i, 0] / 255, 2)
        expected = tv.resized_crop(expected, *box, [112, 112], antialias=True)
        expected = tv.horizontal_flip(expected) if drawn.flip[i] else expected
        for operation in drawn.order[i][drawn.order[i] >= 0]:
            expected = OPERATIONS[operation](expected, float(drawn.factors[i, operation]))
        expected = tv.rgb_to_grayscale(expected, 3) if drawn.grey[i] else expected
        expected = tv.gaussian_blur(expected, [11, 11], [drawn.sigma[i]] * 2) if drawn.sigma[i] else expected
        close(image, tv.normalize(expected, list(MEAN), list(STD)), atol=1e-4)


def test_crops_are_distributed_as_torchvisions() -> None:
    count = 4000
    chosen = Policy(resolution=64, size=56, scale=(0.2, 1.0))
    drawn = draw(chosen, uniforms(1, "test", np.arange(count), NUM_UNIFORMS))
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(56, chosen.scale, chosen.ratio)
    boxes = [transform.make_params([torch.empty(3, 64, 64)]) for _ in range(count)]
    for name in ("top", "left", "height", "width"):
        ours, theirs = getattr(drawn, name), np.array([box[name] for box in boxes])
        edges = np.arange(66)
        gap = np.abs(np.cumsum(np.histogram(ours, edges)[0] - np.histogram(theirs, edges)[0])).max() / count
        assert gap < 1.95 * np.sqrt(2 / count), name  # Kolmogorov-Smirnov at p = .001
    assert np.all((drawn.top >= 0) & (drawn.top + drawn.height <= 64) & (drawn.left + drawn.width <= 64))


def test_the_first_valid_try_is_taken_and_else_the_whole_image() -> None:
    chosen = Policy(resolution=100, size=100, scale=(0.5, 1.0), ratio=(0.25, 4.0))
    u = np.full((3, NUM_UNIFORMS), 0.5)
    u[:, :10] = 1.0  # the whole area in each try ...
    u[:, 10:20] = 0.99  # ... far too wide
    u[1, 3], u[1, 13] = 0.0, 0.5  # half the area, square
    u[1, 4], u[1, 14] = 0.2, 0.5  # a later valid try does not count
    u[2, 9], u[2, 19] = 0.28, 0.5
    drawn = draw(chosen, u)
    assert drawn.width.tolist() == drawn.height.tolist() == [100, 71, 80]
    assert drawn.left.tolist() == drawn.top.tolist() == [0, 15, 10]


def test_probabilities_and_ranges() -> None:
    count = 20_000
    chosen = policy(Augment(policy="simclr", flip=0.3), 128)
    drawn = draw(chosen, uniforms(0, "test", np.arange(count), NUM_UNIFORMS))
    jittered = drawn.order[:, 0] >= 0
    observed = [drawn.flip.mean(), jittered.mean(), drawn.grey.mean(), (drawn.sigma > 0).mean()]
    np.testing.assert_allclose(observed, [0.3, 0.8, 0.2, 0.5], atol=0.015)
    np.testing.assert_allclose(drawn.factors.min(0), [0.2, 0.2, 0.2, -0.2], atol=0.01)
    np.testing.assert_allclose(drawn.factors.max(0), [1.8, 1.8, 1.8, 0.2], atol=0.01)
    assert drawn.sigma.max() < 2
    assert drawn.sigma[drawn.sigma > 0].min() >= 0.1
    orders, counts = np.unique(drawn.order[jittered], axis=0, return_counts=True)
    assert len(orders) == 24
    np.testing.assert_allclose(counts / jittered.sum(), 1 / 24, atol=0.006)
    assert np.isclose(np.corrcoef(drawn.flip, jittered)[0, 1], 0, atol=0.03)


def test_an_operation_without_strength_is_left_out() -> None:
    chosen = policy(Augment(policy="genrep", jitter=(0.4, 0.0, 0.4, 0.0), jitter_probability=1.0), 32)
    drawn = draw(chosen, uniforms(0, "test", np.arange(200), NUM_UNIFORMS))
    assert set(np.unique(drawn.order)) == {-1, 0, 2}
    assert ((drawn.order >= 0).sum(1) == 2).all()


def test_an_image_does_not_depend_on_its_batch() -> None:
    chosen = policy(Augment(policy="simclr"), 32)
    images, anchors = photos(12, 32, views=2), np.arange(100, 112)
    whole = augment_views(images, anchors, chosen, 3, 2).reshape(2, 12, 3, 28, 28)
    some = [7, 2, 9]
    part = augment_views(images[some], anchors[some], chosen, 3, 2).reshape(2, 3, 3, 28, 28)
    close(part, whole[:, some], atol=1e-5)


def test_seed_anchor_view_and_use_each_give_another_augmentation() -> None:
    chosen = policy(Augment(policy="genrep"), 32)
    image = photos(1, 32)
    one = np.array([5])

    def made(anchor: np.ndarray = one, seed: int = 0, use: int = 0) -> torch.Tensor:
        return augment_views(image, anchor, chosen, seed, 2, use)

    variants = [*made(), *made(anchor=one + 1), *made(seed=1), *made(use=1), *made(use=2)]
    for i, a in enumerate(variants):
        for b in variants[:i]:
            assert (a - b).abs().max() > 0.05
    assert torch.equal(made(), made())


def test_use_may_differ_between_anchors() -> None:
    chosen = policy(Augment(), 32)
    anchors = np.arange(4)
    mixed = view_parameters(chosen, 0, anchors, 2, use=np.array([0, 1, 0, 1]))
    for use in (0, 1):
        alone = view_parameters(chosen, 0, anchors, 2, use=use)
        rows = [i for i in range(8) if i % 2 == use]
        np.testing.assert_array_equal(mixed.factors[rows], alone.factors[rows])


def test_views_come_out_view_major() -> None:
    images = photos(3, 32, views=2)
    out = augment_views(images, np.arange(3), policy(Augment(policy="none"), 32), 0, 2)
    expected = torch.cat([images[:, 0], images[:, 1]]) / 255
    close(unnormalised(out), expected)


@pytest.mark.parametrize(
    ("name", "size", "given"), [("genrep", 28, 32), ("genrep", 112, 256), ("digits", 32, 32), ("none", 128, 256)]
)
def test_shapes(name: str, size: int, given: int) -> None:
    chosen = policy(Augment(policy=name), given)  # type: ignore[arg-type]
    out = augment_views(photos(2, given), np.arange(2), chosen, 0, 3)
    assert out.shape == (6, 3, size, size)
    assert out.dtype == torch.float32
    assert out.is_contiguous()


def test_policies_and_what_replaces_them() -> None:
    genrep = policy(Augment(), 128)
    assert (genrep.size, genrep.scale, genrep.flip, genrep.blur) == (112, (0.2, 1.0), 0.5, 0.0)
    assert policy(Augment(), 256) == policy(Augment(), 512) == genrep
    assert policy(Augment(policy="digits"), 32).flip == 0
    changed = policy(Augment(policy="simclr", size=64, scale=(0.5, 0.9), flip=0.0, blur=0.1), 128)
    assert (changed.size, changed.scale, changed.flip, changed.blur, changed.grey) == (64, (0.5, 0.9), 0.0, 0.1, 0.2)
    large = policy(Augment(size=224), 256)
    assert (large.resolution, large.size) == (256, 224)
    assert policy(Augment(size=96), 256).resolution == 128
