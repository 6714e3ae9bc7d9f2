"""The encoder that is trained: a timm backbone and a projection head."""

from __future__ import annotations

import difflib
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from genray.config import Model
from genray.random import words
from genray.settings import ConfigError


class Encoder(nn.Module):
    """A backbone, which is kept, and the two-layer projection head that only training uses.

    The head is Linear, ReLU, Linear without batch norm, as in arXiv 2106.05258.
    """

    def __init__(self, backbone: nn.Module, projection: tuple[int, int]) -> None:
        super().__init__()
        hidden, out = projection
        self.num_features = feature_width(backbone)
        self.backbone = backbone
        self.head = nn.Sequential(nn.Linear(self.num_features, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings `[n, projection[1]]`, not normalised, of normalised images `[n, 3, H, W]`."""
        return cast(Tensor, self.head(self.features(images)))

    def features(self, images: Tensor) -> Tensor:
        """Pooled features of the backbone, `[n, num_features]`: what probes and exports see."""
        return cast(Tensor, self.backbone(images))


def build(config: Model, seed: int) -> Encoder:
    """An untrained encoder on the CPU, a function of its configuration and the seed alone.

    So every learner starts from the same network, and the untrained baseline is that network again. The caller's
    random state is neither used nor moved.

    Raises:
        ConfigError: timm has no such model, or the model does not take the `model_args`.
    """
    start = int(words(seed, "model", np.zeros(1, dtype=np.int64), 1)[0, 0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(start)
        encoder = Encoder(build_backbone(config), config.projection)
    return encoder.to(memory_format=torch.channels_last) if config.channels_last else encoder


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
