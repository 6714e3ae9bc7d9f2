"""How a representation spreads real images: alignment and uniformity of Wang and Isola (ICML 2020)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from genray import losses

IMAGES = 4096
"""Images that are compared, each with all others."""


def similarity(first: Tensor, second: Tensor) -> Iterator[tuple[str, float]]:
    """`alignment`, 0 (two crops of an image are the same) to 4, and `uniformity`, 0 (collapsed) down to about -4.

    Args:
        first: features of a random crop of each image, `[n, F]`.
        second: features of another one.
    """
    views = first.new_empty(2, *first.shape)
    views[0], views[1] = first, second
    yield "alignment", float(losses.alignment(views))
    yield "uniformity", float(losses.uniformity(views))
