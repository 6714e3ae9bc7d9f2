"""The network that is trained: a timm backbone with the heads of an objective."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from genray.config.errors import ConfigError
from genray.config.sections import Model
from genray.probes.measures import alignment, uniformity
from genray.views.random import words

Outputs = dict[str, Tensor]
"""A network's outputs, all first views first: `embeddings` `[V * n, D]`, and whatever else its objective compares."""
Columns = dict[str, Tensor]
"""Columns of a batch on the learner's device by their names in a block, with a row for each anchor."""


class Encoder(nn.Module):
    """A backbone, which is kept, and the heads of an objective, which only training uses; each objective is a subclass.

    >>> outputs = encoder(images)  # [V * n, 3, H, W] -> {"embeddings": [V * n, D], …}
    >>> encoder.loss(outputs, {"anchor": torch.arange(n)}).backward()
    >>> optimizer.step()
    >>> encoder.after_step(progress=0.1)
    >>> encoder.features(images)  # [V * n, num_features], for probes and exports

    `forward` uses every trained parameter: it alone is wrapped for data parallelism, compiled and run in lower
    precision. `loss` is float32 at least. Whatever a step changes is in the state dict, so a run resumes exactly.

    Args:
        backbone: a timm model without its classifier.
        views: of each anchor.
    """

    columns: tuple[str, ...] = ()
    """Columns of a block that the loss needs."""

    def __init__(self, backbone: nn.Module, views: int) -> None:
        super().__init__()
        self.num_features = feature_width(backbone)
        self.backbone, self.views = backbone, views

    def forward(self, images: Tensor) -> Outputs:
        """The outputs for normalised images `[V * n, 3, H, W]`, first views first; embeddings are not normalised."""
        raise NotImplementedError  # each objective has its own

    def loss(self, outputs: Outputs, columns: Columns) -> Tensor:
        """A scalar; its mean over the learners is the loss of one process on the rows of all."""
        raise NotImplementedError  # each objective has its own

    def metrics(self, outputs: Outputs, columns: Columns) -> dict[str, Tensor]:
        """Scalars that show how training proceeds, over this learner's rows."""
        embeddings = self.by_view(outputs["embeddings"])
        return {"alignment": alignment(embeddings), "uniformity": uniformity(embeddings)}

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step; `progress` is the share of the run before the step, 0 to 1."""

    def by_view(self, rows: Tensor) -> Tensor:
        """Rows `[V * n, …]` as `[V, n, …]`."""
        return rows.unflatten(0, (self.views, -1))

    def features(self, images: Tensor) -> Tensor:
        """The backbone's pooled features, `[n, num_features]`, which probes and exports use."""
        return cast(Tensor, self.backbone(images))


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """A context in which torch initialises weights from the seed; the caller's random state is left untouched."""
    start = int(words(seed, "model", np.zeros(1, dtype=np.int64), 1)[0, 0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(start)
        yield


def build_backbone(config: Model) -> nn.Module:
    """The timm model, randomly initialised, with pooled features as output; raises ConfigError."""
    import timm  # takes seconds: it imports every architecture

    known = timm.list_models()
    if config.backbone not in known:
        without_tag = config.backbone.partition(".")[0]  # a tag names pretrained weights, which genray does not use
        close = difflib.get_close_matches(without_tag, known, 1, cutoff=0.5)
        remedy = f"did you mean {close[0]!r}?" if close else "timm.list_models() names them"
        raise ConfigError(f"model.backbone must be a timm model, got {config.backbone!r}; {remedy}")
    try:
        backbone: nn.Module = timm.create_model(config.backbone, pretrained=False, num_classes=0, **config.model_args)
        feature_width(backbone)
    except Exception as error:  # an architecture may raise anything on arguments that it cannot use
        raise ConfigError(
            f"model.model_args must suit timm's {config.backbone}, got {config.model_args!r}: {error}"
        ) from error
    return backbone


def feature_width(backbone: nn.Module) -> int:
    """Length of a timm model's pooled features; for some not its `num_features`, such as MobileNetV3's wide head."""
    return cast(int, backbone.head_hidden_size)
