"""SimCLR and SupCon with any number of views: positives attract, all other rows repel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genray.config.objective import Contrastive
from genray.learner import losses
from genray.learner.encoder import Columns, Encoder, Outputs


class ContrastiveEncoder(Encoder):
    """A projection head under `losses.contrastive_loss`, which compares the views of all learners.

    The head is Linear, ReLU, Linear, without batch norm, as in arXiv 2106.05258.
    """

    def __init__(self, backbone: nn.Module, views: int, objective: Contrastive, projection: tuple[int, int]) -> None:
        super().__init__(backbone, views)
        hidden, out = projection
        self.objective = objective
        self.columns = ("anchor",) if objective.kind == "simclr" else ("anchor", "label")
        self.head = nn.Sequential(nn.Linear(self.num_features, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def forward(self, images: Tensor) -> Outputs:
        return {"embeddings": self.head(self.features(images))}

    def loss(self, outputs: Outputs, columns: Columns) -> Tensor:
        return losses.contrastive_loss(
            outputs["embeddings"],
            self.labels(columns).repeat(self.views),
            self.objective.temperature,
            self.objective.base_temperature,
        )

    def labels(self, columns: Columns) -> Tensor:
        """Labels int64 `[n]`; views with equal labels attract. SimCLR uses the anchor's id, SupCon its class.

        With SupCon an anchor without a class (-1) gets a label of its own, so only its own views attract.
        """
        anchor = columns["anchor"]
        if self.objective.kind == "simclr":
            return anchor
        return torch.where(columns["label"] < 0, -1 - anchor, columns["label"])
