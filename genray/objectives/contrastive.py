"""SimCLR and SupCon, with any number of views: rows that belong together attract, all others repel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genray import losses
from genray.model import Columns, Encoder, Outputs
from genray.objectives import Contrastive


class ContrastiveEncoder(Encoder):
    """A two-layer projection head, compared over the views of all learners; see `losses.contrastive_loss`.

    The head is Linear, ReLU, Linear without batch norm, as in arXiv 2106.05258.
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
        """What makes two anchors' views attract, int64 `[n]`: the anchor's id, or its class.

        With SupCon an anchor without a class (-1) attracts its own views alone, by a label that no class has.
        """
        anchor = columns["anchor"]
        if self.objective.kind == "simclr":
            return anchor
        return torch.where(columns["label"] < 0, -1 - anchor, columns["label"])
