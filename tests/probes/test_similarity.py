"""Alignment and uniformity of features against their definitions."""

import math

import pytest
import torch

from genray.probes.similarity import similarity


def test_they_are_those_of_wang_and_isola():
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(9, 5, generator=random), torch.randn(9, 5, generator=random)
    found = dict(similarity(first, second))
    a, b = (part / part.norm(dim=1, keepdim=True) for part in (first, second))
    assert found["alignment"] == pytest.approx(float((a - b).square().sum(1).mean()), rel=1e-5)
    pairs = [
        math.exp(-2 * float((view[i] - view[j]).square().sum()))
        for view in (a, b)
        for i in range(9)
        for j in range(9)
        if i != j
    ]
    assert found["uniformity"] == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)


def test_what_does_not_tell_images_apart_is_aligned_and_not_uniform():
    same = torch.ones(6, 4)
    assert dict(similarity(same, 3 * same)) == pytest.approx({"alignment": 0.0, "uniformity": 0.0}, abs=1e-6)
