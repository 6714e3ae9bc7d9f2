"""Alignment and uniformity of a representation on real images (Wang and Isola, ICML 2020)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from genray.probes import measures

MAX_IMAGES = 4096
"""Maximum number of images; each is compared with all others."""


def similarity(first: Tensor, second: Tensor) -> Iterator[tuple[str, float]]:
    """`alignment`, 0 (two crops of an image have equal features) to 4; `uniformity`, 0 (collapsed) to about -4.

    Args:
        first: features of a random crop of each image, `[n, F]`.
        second: features of another random crop of each image, `[n, F]`.
    """
    views = first.new_empty(2, *first.shape)
    views[0], views[1] = first, second
    yield "alignment", float(measures.alignment(views))
    yield "uniformity", float(measures.uniformity(views))
