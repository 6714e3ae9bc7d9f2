"""Floats become bytes: clamped, rounded, and checked before a pixel that is not finite looks like an ordinary one."""

from __future__ import annotations

import pytest
import torch

from genray.views.generators.quantise import quantise, to_bytes
from genray.views.types import BadImages


def test_quantise_clamps_rounds_and_names_the_first_bad_image():
    images = torch.tensor([-3.0, -1, -0.5, 0, 0.999, 1, 2]).view(1, 1, 1, 7)
    assert quantise(images).flatten().tolist() == [0, 0, 64, 128, 255, 255, 255]
    bad = torch.zeros(4, 3, 2, 2)
    bad[2, 1, 0, 0], bad[3, 0, 0, 0] = torch.nan, torch.inf
    with pytest.raises(BadImages, match="2 of 4 images have pixels that are not finite, image 2 first"):
        quantise(bad)


def test_bytes_are_contiguous_and_tell_what_is_not_finite():
    images = torch.rand(3, 3, 4, 4).mul(2).sub(1).to(memory_format=torch.channels_last)
    before = images.clone()
    images[1, 2, 0, 0] = torch.inf
    before[1, 2, 0, 0] = torch.inf
    pixels, finite = to_bytes(images)
    assert pixels.is_contiguous()
    assert finite.tolist() == [True, False, True]
    assert torch.equal(images, before)  # which a custom generator may want to keep
    assert torch.equal(pixels[0], ((images[0] + 1) * 127.5).round().to(torch.uint8))
    half = images[:1].bfloat16()
    assert torch.equal(to_bytes(half)[0], to_bytes(half.float())[0])  # rounded in float32, whatever they come in
