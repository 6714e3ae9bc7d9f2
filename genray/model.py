"""The network that is trained: a timm backbone under the heads of an objective."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from genray.config import Model
from genray.losses import alignment, uniformity
from genray.random import words
from genray.settings import ConfigError

Outputs = dict[str, Tensor]
"""What a network makes of images, rows by view: `embeddings` `[V * n, D]`, and what else its objective compares."""
Columns = dict[str, Tensor]
"""Columns of a batch on the learner's device, by their names in a block, a row for each anchor."""


class Encoder(nn.Module):
    """A backbone, which is kept, and what only training uses: the heads of an objective, in a subclass.

    One step is `loss(forward(images), columns)`, its gradient, and `after_step`. `forward` holds every parameter that
    is trained, so that it is all that runs data-parallel, compiled and in lower precision; `loss` is float32 at least.
    Whatever a step changes is in the state dict, so that a run goes on from there exactly.

    Args:
        backbone: a timm model without its classifier.
        views: views of each anchor.
    """

    columns: tuple[str, ...] = ()
    """Columns of a block that the loss is taken against."""

    def __init__(self, backbone: nn.Module, views: int) -> None:
        super().__init__()
        self.num_features = feature_width(backbone)
        self.backbone, self.views = backbone, views

    def forward(self, images: Tensor) -> Outputs:
        """Embeddings, not normalised, and the like of normalised images `[V * n, 3, H, W]`, all first views first."""
        raise NotImplementedError  # each objective has its own

    def loss(self, outputs: Outputs, columns: Columns) -> Tensor:
        """A scalar whose mean over the learners is that of one process on the rows of all."""
        raise NotImplementedError  # each objective has its own

    def metrics(self, outputs: Outputs, columns: Columns) -> dict[str, Tensor]:
        """Scalars that tell how training goes, of this learner's rows."""
        embeddings = self.by_view(outputs["embeddings"])
        return {"alignment": alignment(embeddings), "uniformity": uniformity(embeddings)}

    def after_step(self, progress: float) -> None:
        """What is to be done after the optimiser's step, `progress` being the share of the run that lay before it."""

    def by_view(self, rows: Tensor) -> Tensor:
        """Rows `[V * n, …]` as `[V, n, …]`."""
        return rows.unflatten(0, (self.views, -1))

    def features(self, images: Tensor) -> Tensor:
        """Pooled features of the backbone, `[n, num_features]`: what probes and exports see."""
        return cast(Tensor, self.backbone(images))


@contextmanager
def first_weights(seed: int) -> Iterator[None]:
    """Within it, weights are drawn from a random state that the seed decides; the caller's is not moved."""
    start = int(words(seed, "model", np.zeros(1, dtype=np.int64), 1)[0, 0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(start)
        yield


def build_backbone(config: Model) -> nn.Module:
    """The timm model alone, randomly initialised, whose output is the pooled features; raises ConfigError."""
    import timm  # takes seconds: it imports every architecture

    known = timm.list_models()
    if config.backbone not in known:
        without_tag = config.backbone.partition(".")[0]  # a tag names pretrained weights, which are not used here
        close = difflib.get_close_matches(without_tag, known, 1, cutoff=0.5)
        remedy = f"did you mean {close[0]!r}?" if close else "timm.list_models() names them"
        raise ConfigError(f"model.backbone must be a timm model, got {config.backbone!r}; {remedy}")
    try:
        backbone: nn.Module = timm.create_model(config.backbone, pretrained=False, num_classes=0, **config.model_args)
        feature_width(backbone)
    except Exception as error:  # whatever an architecture raises on arguments it cannot use
        raise ConfigError(
            f"model.model_args must suit timm's {config.backbone}, got {config.model_args!r}: {error}"
        ) from error
    return backbone


def feature_width(backbone: nn.Module) -> int:
    """Length of a timm model's pooled features, which for some is not its `num_features` (MobileNetV3's wide head)."""
    return cast(int, backbone.head_hidden_size)
