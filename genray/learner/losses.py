"""The contrastive loss, and means and sums over the rows of all learners."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from genray.probes.measures import unit


def contrastive_loss(
    embeddings: Tensor, labels: Tensor, temperature: float = 0.1, base_temperature: float = 0.07
) -> Tensor:
    """Attracts rows with equal labels and repels all others.

    With unit rows u, temperatures T and T0, and P(i) the other rows with row i's label,

        L_i = -(T / T0) * mean_{p in P(i)} [ u_i.u_p / T - log sum_{a != i} exp(u_i.u_a / T) ],

    averaged over the rows that have a positive. Anchor ids as labels give SimCLR (Chen et al., arXiv 2002.05709), with
    more than two views its multi-positive form (StableRep, arXiv 2306.00984); classes give SupCon (Khosla et al.,
    arXiv 2004.11362).

    The rows of all learners are compared. Each learner gets its own rows' share times the number of learners; the mean
    over learners, which DDP takes of the gradients too, is then the loss of one process on the whole batch.

    Args:
        embeddings: this learner's rows `[n, D]`, of any length: they are normalised here, in float32 at least. n must
            be the same on every learner.
        labels: int64 `[n]`, any values.
        temperature: T.
        base_temperature: T0.

    Returns:
        A scalar; 0 if no row has a positive. About (T / T0) * ln(N - 1) for N rows of an untrained network.
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

    A collective operation: all learners must call it. They may have different numbers of rows that count.

    Args:
        total: sum over this learner's rows.
        count: int64, the number of those rows; changed in place to that of all learners.
        scale: factor of the result.
    """
    _, world = _rank_and_world()
    if world > 1:
        dist.all_reduce(count)
    return scale * world * total / count.clamp(min=1)


@torch.no_grad()
def sum_over_learners(value: Tensor) -> Tensor:
    """The sum of the value over all learners. A collective operation: all learners must call it."""
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
    """Rows of all learners in the order of their ranks; backward sums the gradients of all learners' losses."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor) -> Tensor:
        everyone = own.new_empty(len(own) * dist.get_world_size(), *own.shape[1:])
        dist.all_gather_into_tensor(everyone, own.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # autograd may still need the original
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
