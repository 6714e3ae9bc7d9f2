"""Optimisers, their parameter groups, and the learning rate as a function of the anchors consumed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from genray.config.sections import LARS, SGD, Optimizer


def build(config: Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """The configured optimiser over a module's trainable parameters.

    SGD uses plain momentum, not Nesterov's, and decays every parameter, as in arXiv 2106.05258. AdamW and LARS do not
    decay biases and norm parameters, and LARS does not adapt them either (arXiv 2002.05709, appendix B.9).
    """
    if isinstance(config, SGD):
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trainable, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    matrices, vectors = parameter_groups(module)
    if isinstance(config, LARS):
        from timm.optim.lars import Lars  # takes seconds: it imports every architecture

        # timm leaves groups without decay unadapted: right for the vectors, wrong for matrices with weight_decay = 0.
        matrices["always_adapt"] = True
        lars: torch.optim.Optimizer = Lars(
            [matrices, vectors],
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            trust_coeff=config.trust,
        )
        return lars
    return torch.optim.AdamW([matrices, vectors], lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def parameter_groups(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two groups of trainable parameters: weights, and without decay biases and norms (at most one dimension)."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return (
        {"params": [parameter for parameter in trainable if parameter.ndim > 1]},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    )


def learning_rate(base: float, anchors: int, total_anchors: int, warmup_anchors: int = 0, final: float = 0.0) -> float:
    """Linear warm-up from zero, then half a cosine down to a share of the base rate.

    Counted in anchors, the schedule stays the same if a run continues with another number of learners.

    Args:
        base: the rate at the end of the warm-up.
        anchors: consumed so far; beyond `total_anchors` the rate keeps its final value.
        total_anchors: of the whole run.
        warmup_anchors: of the warm-up, at most `total_anchors`.
        final: share of `base` that the cosine ends at.
    """
    if anchors < warmup_anchors:
        return base * anchors / warmup_anchors
    progress = min(1.0, (anchors - warmup_anchors) / max(1, total_anchors - warmup_anchors))
    return base * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all groups, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
