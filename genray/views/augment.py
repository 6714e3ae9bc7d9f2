"""Batched pixel augmentation (Tx): each image of a batch has its own crop, flip, colour jitter and blur.

Operations, distributions and order are torchvision's (RandomResizedCrop, flip, ColorJitter, greyscale, Gaussian blur,
normalise). Parameters are drawn on the CPU as a pure function of (seed, anchor, view, use), so that the result depends
neither on the rest of the batch nor on the device.

In between, pixels are planes `[3, n, h, w]`: each channel is contiguous, and a subset of the batch is a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genray.config import sections
from genray.views.random import uniforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's channel statistics, with which every policy normalises."""

MAX_RESOLUTION = 128
"""Larger images are reduced to this side length, in pixels, before they are cropped."""

CROP_TRIES = 10
"""Crops drawn for an image, of which the first that lies within it is taken."""
NUM_UNIFORMS = 2 * CROP_TRIES + 15
"""Uniform numbers drawn for each augmented image, the same for every policy."""

MAX_VIEWS = 2**8
"""Views that one `use` of an anchor may have; `use` itself is below 2**24."""

_GREY = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Policy:
    """The distribution of augmentations. The defaults only resize and normalise."""

    resolution: int
    """Side length in pixels to which larger images are reduced, by area, before cropping."""
    size: int
    """Side length of the result in pixels."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the share of the area that a crop keeps."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of a crop's width over its height; must contain 1."""
    flip: float = 0.0
    """Probability of a horizontal flip."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strength of brightness, contrast, saturation and hue."""
    jitter_probability: float = 0.8
    grey: float = 0.0
    """Probability of conversion to greyscale."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of its standard deviation in pixels; the kernel spans about a tenth of the image."""


_POLICIES: dict[str, dict[str, Any]] = {
    "genrep": {"scale": (0.2, 1.0), "flip": 0.5, "jitter": (0.4, 0.4, 0.4, 0.1), "grey": 0.2},
    "simclr": {"scale": (0.08, 1.0), "flip": 0.5, "jitter": (0.8, 0.8, 0.8, 0.2), "grey": 0.2, "blur": 0.5},
    "digits": {"scale": (0.8, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "grey": 0.2},
    "none": {},
}


def policy(config: sections.Augment, image_size: int) -> Policy:
    """The configured policy for images of `image_size` x `image_size` pixels.

    Images of more than 128 pixels are reduced to 128 first, unless `augment.size` is larger.
    """
    resolution = min(image_size, MAX_RESOLUTION)
    size = round(0.875 * resolution) if config.policy in ("genrep", "simclr") else resolution
    if config.size is not None and config.size > MAX_RESOLUTION:
        resolution = image_size
    named = Policy(resolution=resolution, size=size, **_POLICIES[config.policy])
    names = ("size", "scale", "flip", "jitter", "jitter_probability", "grey", "blur")
    return replace(named, **{name: value for name in names if (value := getattr(config, name)) is not None})


@dataclass(frozen=True)
class Parameters:
    """The augmentation drawn for each image of a batch: arrays on the CPU, `[n]` unless stated otherwise."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    """The crop in whole pixels of the reduced image, with its corner at `top` and `left`."""
    flip: np.ndarray
    """bool."""
    order: np.ndarray
    """int64 `[n, 4]`: the colour operations in order, each an index into `factors`; -1 for none."""
    factors: np.ndarray
    """`[n, 4]`: brightness, contrast and saturation (1 changes nothing), and hue in turns (0 changes nothing)."""
    grey: np.ndarray
    """bool."""
    sigma: np.ndarray
    """Standard deviation of the blur in pixels; 0 for none."""


def draw(policy: Policy, uniforms: np.ndarray) -> Parameters:
    """Parameters with the distribution of torchvision's transforms.

    Args:
        policy: what may happen.
        uniforms: uniform numbers in (0, 1), float64 `[n, NUM_UNIFORMS]`.
    """
    areas, ratios, corner, chance, slots, strengths = np.split(
        uniforms, np.cumsum([CROP_TRIES, CROP_TRIES, 2, 4, 4]), axis=1
    )
    side = policy.resolution
    area = side**2 * _between(areas, *policy.scale)
    ratio = np.exp(_between(ratios, *np.log(policy.ratio)))
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    valid = (widths > 0) & (widths <= side) & (heights > 0) & (heights <= side)
    first = np.arange(len(valid)), valid.argmax(1)  # if no try is valid, the whole image is kept
    width, height = (np.where(valid[first], tried[first], side).astype(np.int64) for tried in (widths, heights))

    jitter = np.asarray(policy.jitter)
    jittered = (chance[:, 1] < policy.jitter_probability)[:, None]
    order = np.argsort(slots, axis=1)
    centre = np.array([1.0, 1.0, 1.0, 0.0])
    lowest = np.maximum(centre - jitter, [0.0, 0.0, 0.0, -0.5])
    return Parameters(
        top=(corner[:, 0] * (side - height + 1)).astype(np.int64),
        left=(corner[:, 1] * (side - width + 1)).astype(np.int64),
        height=height,
        width=width,
        flip=chance[:, 0] < policy.flip,
        order=np.where(jittered & (jitter > 0)[order], order, -1),
        factors=_between(strengths[:, :4], lowest, centre + jitter),
        grey=chance[:, 2] < policy.grey,
        sigma=np.where(chance[:, 3] < policy.blur, _between(strengths[:, 4], *policy.blur_sigma), 0.0),
    )


def view_parameters(
    policy: Policy, seed: int, anchor: np.ndarray, num_views: int, use: int | np.ndarray = 0
) -> Parameters:
    """Parameters of all views of these anchors, view-major: view 0 of each anchor, then view 1, ...

    Args:
        policy: what may happen.
        seed: the run's seed.
        anchor: anchor ids, int64 `[n]`.
        num_views: views of each anchor, at most `MAX_VIEWS`.
        use: how often the views were used before, one number or `[n]`, below 2**24; each use is drawn anew.
    """
    view = np.repeat(np.arange(num_views), len(anchor))
    counter = np.tile(np.broadcast_to(use, anchor.shape), num_views) * MAX_VIEWS + view
    return draw(policy, uniforms(seed, "augment", np.tile(anchor, num_views), NUM_UNIFORMS, use=counter))


def augment_views(
    views: Tensor, anchor: np.ndarray, policy: Policy, seed: int, num_views: int, use: int | np.ndarray = 0
) -> Tensor:
    """Augment the rendered views of a batch of anchors on the device that holds them.

    Args:
        views: uint8 `[n, V, 3, H, W]`; V is `num_views`, or 1 if all views are made from one image.
        anchor: anchor ids, int64 `[n]`; with the seed they determine the result.
        policy: what may happen.
        seed: the run's seed.
        num_views: views of each anchor in the result, at most `MAX_VIEWS`.
        use: how often the views were used before, one number or `[n]`; each use is augmented anew.

    Returns:
        Normalised pixels, float32 `[num_views * n, 3, size, size]`, view-major.
    """
    images = views.expand(-1, num_views, -1, -1, -1).transpose(0, 1)
    return augment(images, policy, view_parameters(policy, seed, anchor, num_views, use))


@torch.no_grad()
def augment(images: Tensor, policy: Policy, parameters: Parameters) -> Tensor:
    """Augment uint8 images `[..., 3, H, W]`, n in all: normalised float32 `[n, 3, size, size]` on the same device."""
    with torch.autocast(images.device.type, enabled=False):  # half precision would be off by more than a grey level
        planes = images.movedim(-3, 0).to(torch.float32, memory_format=torch.contiguous_format).flatten(1, -3)
        if planes.shape[-1] > policy.resolution:
            planes = F.interpolate(planes, size=(policy.resolution, policy.resolution), mode="area")
        planes = crop(planes, parameters, policy.size).div_(255)
        jitter(planes, parameters)
        _change(planes, np.flatnonzero(parameters.grey), _to_grey)
        _change(planes, np.flatnonzero(parameters.sigma), blur, parameters.sigma)
        return normalise(planes)


def crop(planes: Tensor, parameters: Parameters, size: int) -> Tensor:
    """Crop, flip and resize planes `[3, n, H, W]` to `[3, n, size, size]`, bilinearly with antialiasing.

    The filter is separable: each image is multiplied by two small matrices of its own.
    """
    upright = np.zeros_like(parameters.flip)
    rows = _resampling(parameters.top, parameters.height, upright, planes.shape[2], size, planes.device)
    columns = _resampling(parameters.left, parameters.width, parameters.flip, planes.shape[3], size, planes.device)
    return _filter(planes, rows, columns)


def jitter(planes: Tensor, parameters: Parameters) -> None:
    """Jitter brightness, contrast, saturation and hue of planes `[3, n, h, w]` in place, in each image's order."""
    for slot in range(4):
        for operation, change in enumerate((_brightness, _contrast, _saturation, _hue)):
            rows = np.flatnonzero(parameters.order[:, slot] == operation)
            _change(planes, rows, change, parameters.factors[:, operation])


def blur(planes: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of planes `[3, n, h, h]`, each with its own `sigma` `[n, 1, 1]` and reflected edges."""
    size = planes.shape[-1]
    radius = max(1, size // 20)
    offset = torch.arange(-radius, radius + 1, device=planes.device)
    weights = torch.softmax(-(offset**2) / (2 * sigma[:, :, 0] ** 2), dim=1)
    index = (torch.arange(size, device=planes.device) + offset[:, None]).abs()
    index = size - 1 - (size - 1 - index).abs()  # the pixel of each tap, reflected at both edges
    taps = F.one_hot(index, size).to(planes.dtype)
    kernels = (weights @ taps.flatten(1)).reshape(-1, size, size)
    return _filter(planes, kernels, kernels)


def normalise(planes: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Planes `[3, n, h, w]` in [0, 1] to images `[n, 3, h, w]`, each channel normalised."""
    scale = torch.tensor(std, device=planes.device)[:, None, None]
    shift = torch.tensor(mean, device=planes.device)[:, None, None]
    images = planes.transpose(0, 1)
    out = torch.empty(images.shape, device=planes.device)
    return torch.addcmul(-shift / scale, images, 1 / scale, out=out)


def _to_grey(planes: Tensor) -> Tensor:
    """Luma of planes `[3, m, h, w]`, expanded to three channels."""
    red, green, blue = planes
    grey: Tensor = (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])
    return grey.expand(planes.shape)


def _brightness(planes: Tensor, factor: Tensor) -> Tensor:
    return planes.mul_(factor).clamp_(0, 1)


def _contrast(planes: Tensor, factor: Tensor) -> Tensor:
    grey = torch.tensor(_GREY, device=planes.device) @ planes.mean((2, 3))
    return planes.mul_(factor).add_((1 - factor) * grey[:, None, None]).clamp_(0, 1)


def _saturation(planes: Tensor, factor: Tensor) -> Tensor:
    return planes.lerp_(_to_grey(planes), 1 - factor).clamp_(0, 1)


def _hue(planes: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue in HSV, keeping value and chroma: each channel is a trapezoid over the hue circle."""
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    floor = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - floor
    sixths = torch.where(
        value == red, green - blue, torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    )
    sixths.div_(chroma.clamp(min=1e-12)).add_(6 * turns)
    sixths.sub_(torch.floor(sixths / 6), alpha=6)  # the remainder, several times faster
    torch.sub(sixths, 3, out=red).abs_().sub_(1)
    torch.sub(sixths, 2, out=green).abs_().neg_().add_(2)
    torch.sub(sixths, 4, out=blue).abs_().neg_().add_(2)
    return planes.clamp_(0, 1).mul_(chroma).add_(floor)


def _between(u: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    return np.asarray(low + (high - low) * u)


def _resampling(
    start: np.ndarray, length: np.ndarray, flip: np.ndarray, full: int, size: int, device: torch.device
) -> Tensor:
    """Weights `[n, size, full]` that resample an interval of `full` pixels to `size`, reversed if flipped.

    A triangle filter, as wide as an output pixel if the interval shrinks, cut off at the interval's ends.
    """
    step = length[:, None] / size
    position = np.arange(size) + 0.5
    centre = start[:, None] + step * np.where(flip[:, None], size - position, position)
    pixel = np.arange(full)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.float32)).to(device, non_blocking=True)

    distance = (tensor(pixel + 0.5) - tensor(centre)[:, :, None]).abs_()
    weights = distance.mul_(tensor(-1 / np.maximum(step, 1))[:, :, None])
    weights.add_(1).clamp_(min=0).mul_(tensor(inside)[:, None])
    return weights.div_(weights.sum(2, keepdim=True))


def _filter(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows [n, h, H] @ plane [n, H, W] @ columns [n, w, W]^T` for each plane."""
    across = columns.transpose(1, 2)
    out = planes.new_empty(*planes.shape[:2], rows.shape[1], columns.shape[1])
    for plane, filtered in zip(planes, out, strict=True):
        torch.bmm(rows, torch.bmm(plane, across), out=filtered)
    return out


def _change(planes: Tensor, rows: np.ndarray, change: Callable[..., Tensor], amount: np.ndarray | None = None) -> None:
    """Apply `change` to these rows of the batch in place, with their entries of the per-image amounts `[n]`."""
    if not len(rows):
        return
    index = torch.from_numpy(rows).to(planes.device, non_blocking=True)
    picked = planes.index_select(1, index)
    if amount is None:
        planes.index_copy_(1, index, change(picked))
    else:
        amounts = torch.from_numpy(amount[rows].astype(np.float32)).to(planes.device, non_blocking=True)
        planes.index_copy_(1, index, change(picked, amounts[:, None, None]))
