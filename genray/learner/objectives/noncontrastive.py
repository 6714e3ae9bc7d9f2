"""SimSiam and BYOL: each view predicts the others, and nothing repels.

All views share one forward pass, so that batch norm sees them as one batch; the papers pass one view at a time.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from genray.config.objective import BYOL, SimSiam
from genray.learner.encoder import Columns, Encoder, Outputs
from genray.probes.measures import unit


class SimSiamEncoder(Encoder):
    """Chen and He, "Exploring Simple Siamese Representation Learning" (arXiv 2011.10566).

    The projector has three layers with batch norm after each, the last without scale and offset as in the authors'
    code; the predictor has two layers with batch norm between them. The loss is the negative cosine between each view's
    prediction and each other view's projection, with no gradient to the projection: -1 if all agree.
    """

    def __init__(self, backbone: nn.Module, views: int, objective: SimSiam) -> None:
        super().__init__(backbone, views)
        hidden, out = objective.projection
        self.projector = nn.Sequential(
            *_hidden(self.num_features, hidden),
            *_hidden(hidden, hidden),
            nn.Linear(hidden, out, bias=False),
            nn.BatchNorm1d(out, affine=False),
        )
        self.predictor = nn.Sequential(*_hidden(out, objective.prediction), nn.Linear(objective.prediction, out))

    def forward(self, images: Tensor) -> Outputs:
        projections = self.projector(self.features(images))
        return {"embeddings": projections, "predictions": self.predictor(projections)}

    def loss(self, outputs: Outputs, columns: Columns) -> Tensor:
        return -agreement(self.by_view(outputs["predictions"]), self.by_view(outputs["embeddings"]).detach())

    def metrics(self, outputs: Outputs, columns: Columns) -> dict[str, Tensor]:
        return {**super().metrics(outputs, columns), "spread": spread(outputs["embeddings"])}


class BYOLEncoder(Encoder):
    """Grill et al., "Bootstrap Your Own Latent" (arXiv 2006.07733).

    Projector and predictor are Linear, batch norm, ReLU, Linear. The target network is an exponential moving average of
    backbone and projector: after each step it keeps the share `momentum` of itself. The loss is the squared distance on
    the unit sphere between each view's prediction and the target's projection of each other view, 0 to 4. It is the
    mean over pairs of views; the paper sums its two.
    """

    def __init__(self, backbone: nn.Module, views: int, objective: BYOL) -> None:
        super().__init__(backbone, views)
        hidden, out = objective.projection
        self.base = objective.momentum
        self.projector = nn.Sequential(*_hidden(self.num_features, hidden), nn.Linear(hidden, out, bias=False))
        self.predictor = nn.Sequential(
            *_hidden(out, objective.prediction), nn.Linear(objective.prediction, out, bias=False)
        )
        online = OrderedDict(backbone=self.backbone, projector=self.projector)
        self.target = nn.Sequential(copy.deepcopy(online)).requires_grad_(False)

    def forward(self, images: Tensor) -> Outputs:
        projections = self.projector(self.features(images))
        with torch.no_grad():
            targets = self.target(images)
        return {"embeddings": projections, "predictions": self.predictor(projections), "targets": targets}

    def loss(self, outputs: Outputs, columns: Columns) -> Tensor:
        return 2 - 2 * agreement(self.by_view(outputs["predictions"]), self.by_view(outputs["targets"]))

    def metrics(self, outputs: Outputs, columns: Columns) -> dict[str, Tensor]:
        return {**super().metrics(outputs, columns), "spread": spread(outputs["embeddings"])}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        rate = 1 - self.momentum(progress)
        online = [*self.backbone.parameters(), *self.projector.parameters()]
        for average, parameter in zip(self.target.parameters(), online, strict=True):
            average.lerp_(parameter, rate)

    def momentum(self, progress: float) -> float:
        """Share of itself that the target keeps: from the configured value at the start of the run to 1 at its end."""
        return 1 - (1 - self.base) * (1 + math.cos(math.pi * progress)) / 2


def agreement(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean cosine between each view's prediction and each other view's target, over all ordered pairs of views.

    Args:
        predictions: `[V, n, D]`, of any length.
        targets: the same.
    """
    targets = unit(targets)
    others = targets.sum(0) - targets
    return (unit(predictions) * others).sum(-1).mean() / (len(targets) - 1)


@torch.no_grad()
def spread(embeddings: Tensor) -> Tensor:
    """Standard deviation over unit rows times the root of their width: 0 if collapsed, 1 if all directions are used.

    The measure of figure 2 in arXiv 2011.10566.

    Args:
        embeddings: `[n, D]`, of any length.
    """
    return unit(embeddings).std(0, correction=0).mean() * math.sqrt(embeddings.shape[-1])


def _hidden(inputs: int, width: int) -> list[nn.Module]:
    """Linear, batch norm, ReLU; the linear layer needs no bias, which batch norm would cancel."""
    return [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
