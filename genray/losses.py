"""Contrastive losses over the rows of all learners, and two measures of what they reach."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


def contrastive_loss(
    embeddings: Tensor, labels: Tensor, temperature: float = 0.1, base_temperature: float = 0.07
) -> Tensor:
    """Pulls rows with equal labels together and pushes all others apart.

    With unit rows u, temperatures T and T0, and P(i) the other rows that carry row i's label,

        L_i = -(T / T0) * mean_{p in P(i)} [ u_i.u_p / T - log sum_{a != i} exp(u_i.u_a / T) ],

    averaged over the rows that have a positive. Anchor ids as labels give SimCLR (Chen et al., arXiv 2002.05709), with
    more than two views its multi-positive form (StableRep, arXiv 2306.00984); classes give SupCon (Khosla et al.,
    arXiv 2004.11362).

    Rows of all learners are compared. Each learner gets its own rows' share times the number of learners, so that the
    mean over learners, which is also what DDP does to gradients, is the loss of one process on the whole batch.

    Args:
        embeddings: this learner's rows, `[n, D]`; of any length, they are normalised here, in float32 at least. Every
            learner must bring the same n.
        labels: int64 `[n]`, any values.
        temperature: T.
        base_temperature: T0.

    Returns:
        A scalar; 0 where no row has a positive. Close to (T / T0) * ln(N - 1) for N rows that say nothing yet.
    """
    rank, world = _rank_and_world()
    with torch.autocast(embeddings.device.type, enabled=False):
        own = unit(embeddings)
        rows, row_labels = (_Gather.apply(own), _Gather.apply(labels)) if world > 1 else (own, labels)
        itself = torch.zeros(len(own), len(rows), dtype=torch.bool, device=own.device)
        itself.diagonal(offset=rank * len(own)).fill_(True)
        positive = (labels[:, None] == row_labels[None]) & ~itself
        positives = positive.sum(1)

        logits = own @ rows.T / temperature
        attraction = logits.where(positive, 0).sum(1) / positives.clamp(min=1)
        per_row = torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1) - attraction
        total = per_row.where(positives > 0, 0).sum()

    return mean_over_learners(total, (positives > 0).sum(), temperature / base_temperature)


def mean_over_learners(total: Tensor, count: Tensor, scale: float = 1.0) -> Tensor:
    """This learner's share of the mean over the rows of all learners, times the number of learners.

    Learners need not have equally many rows that count. All of them must call it.

    Args:
        total: sum over this learner's rows.
        count: int64, how many rows that is; afterwards those of all learners.
        scale: of the result.
    """
    _, world = _rank_and_world()
    if world > 1:
        dist.all_reduce(count)
    return scale * world * total / count.clamp(min=1)


@torch.no_grad()
def alignment(embeddings: Tensor) -> Tensor:
    """Mean squared distance between two views of an anchor, 0 (the same) to 4 (Wang & Isola, ICML 2020).

    Args:
        embeddings: this learner's rows, `[V, B, D]`, of any length.
    """
    # The mean of |u - u'|^2 over pairs is twice the unbiased variance over views, summed over coordinates.
    return 2 * unit(embeddings).var(0).sum(-1).mean()


@torch.no_grad()
def uniformity(embeddings: Tensor) -> Tensor:
    """log E exp(-2 |u_i - u_j|^2) over pairs of anchors, 0 (collapsed) down to about -4 (Wang & Isola, ICML 2020).

    Args:
        embeddings: this learner's rows, `[V, B, D]`, of any length; pairs are formed within each view.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = unit(embeddings)
        views, anchors, _ = rows.shape
        exponent = 4 * (rows @ rows.mT) - 4  # |a - b|^2 = 2 - 2 a.b between unit rows
        itself = torch.eye(anchors, dtype=torch.bool, device=rows.device)
        pairs = views * anchors * (anchors - 1)
        return exponent.masked_fill(itself, -torch.inf).flatten().logsumexp(0) - math.log(pairs)


def unit(embeddings: Tensor) -> Tensor:
    """Rows divided by their length, in float32 at least."""
    return F.normalize(widened(embeddings), dim=-1)


def widened(values: Tensor) -> Tensor:
    """The same values, in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@torch.no_grad()
def sum_over_learners(value: Tensor) -> Tensor:
    """The sum of every learner's value; all learners must call it."""
    _, world = _rank_and_world()
    if world > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def _rank_and_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    """Rows of all learners in the order of their ranks; a learner's rows get the gradients of all learners' losses."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor) -> Tensor:
        everyone = own.new_empty(len(own) * dist.get_world_size(), *own.shape[1:])
        dist.all_gather_into_tensor(everyone, own.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # autograd may still need the one it gave us
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
