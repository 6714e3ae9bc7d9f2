"""Inverter and classifier: predict from each single view what the generator was given, its latent or its class.

The baselines of Jahanian, Puig, Tian, Isola, arXiv 2106.05258, section 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genray.learner.encoder import Columns, Encoder, Outputs
from genray.learner.losses import mean_over_learners
from genray.probes.measures import widened


class RegressionEncoder(Encoder):
    """A linear layer on the features for the latent, the class, or both. The loss is `squared_error + cross_entropy`.

    Args:
        backbone: see `Encoder`.
        views: of each anchor.
        latent_dim: numbers in a latent; 0 to predict the class alone.
        num_classes: classes of the generator; 0 to predict the latent alone.
    """

    def __init__(self, backbone: nn.Module, views: int, latent_dim: int, num_classes: int) -> None:
        super().__init__(backbone, views)
        widths = {"latent": latent_dim, "label": num_classes}
        self.columns = tuple(name for name, width in widths.items() if width)
        self.heads = nn.ModuleDict({name: nn.Linear(self.num_features, widths[name]) for name in self.columns})

    def forward(self, images: Tensor) -> Outputs:
        features = self.features(images)
        return {"embeddings": features, **{name: head(features) for name, head in self.heads.items()}}

    def loss(self, outputs: Outputs, columns: Columns) -> Tensor:
        terms = {"latent": squared_error, "label": cross_entropy}
        return torch.stack([terms[name](outputs[name], self.target(name, columns)) for name in self.columns]).sum()

    def metrics(self, outputs: Outputs, columns: Columns) -> dict[str, Tensor]:
        metrics = super().metrics(outputs, columns)
        if "latent" in self.columns:
            latent = self.target("latent", columns)
            metrics["latent_error"] = squared_error(outputs["latent"], latent) / latent.var(0, correction=0).mean()
        if "label" in self.columns:
            label = self.target("label", columns)
            right = outputs["label"].argmax(1) == label
            metrics["class_accuracy"] = right.sum() / (label >= 0).sum().clamp(min=1)
        return metrics

    def target(self, name: str, columns: Columns) -> Tensor:
        """The target of a head for each row, `[V * n, …]`: the view's own latent, or its anchor's class."""
        if name == "label":
            return columns["label"].repeat(self.views)
        by_view = columns["latent"].transpose(0, 1)  # a single one if all views are of the same image
        return by_view.expand(self.views, -1, -1).flatten(0, 1)


def squared_error(predicted: Tensor, latent: Tensor) -> Tensor:
    """Mean squared error over rows and coordinates; both arguments are `[n, d]`."""
    return (widened(predicted) - latent).square().mean()


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the rows of all learners that have a class; 0 if none has.

    Each learner gets its own rows' share times the number of learners, as in `losses.contrastive_loss`.

    Args:
        logits: `[n, C]`.
        label: int64 `[n]`, -1 for no class.
    """
    total = F.cross_entropy(widened(logits), label, ignore_index=-1, reduction="sum")
    return mean_over_learners(total, (label >= 0).sum())
