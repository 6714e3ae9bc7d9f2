"""Measures of a representation that need no labels: alignment and uniformity."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def alignment(embeddings: Tensor) -> Tensor:
    """Mean squared distance between two views of an anchor, 0 (identical) to 4 (Wang & Isola, ICML 2020).

    Args:
        embeddings: this learner's rows, `[V, B, D]`, not necessarily of unit length.
    """
    # The mean of |u - u'|^2 over pairs is twice the unbiased variance over views, summed over coordinates.
    return 2 * unit(embeddings).var(0).sum(-1).mean()


@torch.no_grad()
def uniformity(embeddings: Tensor) -> Tensor:
    """log E exp(-2 |u_i - u_j|^2) over pairs of anchors, 0 (collapsed) down to about -4 (Wang & Isola, ICML 2020).

    Args:
        embeddings: this learner's rows, `[V, B, D]`, not necessarily of unit length; pairs are formed within a view.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = unit(embeddings)
        views, anchors, _ = rows.shape
        exponent = 4 * (rows @ rows.mT) - 4  # |a - b|^2 = 2 - 2 a.b between unit rows
        itself = torch.eye(anchors, dtype=torch.bool, device=rows.device)
        pairs = views * anchors * (anchors - 1)
        return exponent.masked_fill(itself, -torch.inf).flatten().logsumexp(0) - math.log(pairs)


def unit(embeddings: Tensor) -> Tensor:
    """Rows scaled to unit length, in float32 or wider."""
    return F.normalize(widened(embeddings), dim=-1)


def widened(values: Tensor) -> Tensor:
    """The values in float32 or wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
