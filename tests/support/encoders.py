"""A small network for every objective, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from fakes import small
from torch import Tensor

from genray.config.run import Config
from genray.learner import objectives
from genray.learner.encoder import Encoder
from genray.stream.plan import Plan

MODEL = {
    "backbone": "resnet18",
    "model_args": {"layers": [1, 1, 0, 0], "channels": [8, 12, 12, 12], "stem_width": 8, "zero_init_last": False},
    "projection": [16, 8],
}
KINDS: dict[str, dict[str, Any]] = {
    "simclr": {},
    "supcon": {},
    "inverter": {},
    "classifier": {},
    "simsiam": {"projection": [16, 8], "prediction": 4},
    "byol": {"projection": [16, 8], "prediction": 16, "momentum": 0.9},
}
"""Every objective, with heads of a small size."""


def config_of(kind: str, **sections: Any) -> Config:
    """A run on 8-pixel images of three classes, whose latents have four numbers."""
    model = {**MODEL, **sections.pop("model", {})}
    return small(model=model, objective={"kind": kind, **KINDS[kind]}, **sections)


def encoder_of(kind: str, **sections: Any) -> Encoder:
    """Its network, of 12 features."""
    config = config_of(kind, **sections)
    return objectives.build(config, Plan.of(config))


def columns_of(encoder: Encoder, anchors: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """What a block tells its objective of so many anchors."""
    rng = torch.Generator().manual_seed(seed)
    found = {
        "anchor": torch.arange(anchors) + 40,
        "label": torch.randint(3, (anchors,), generator=rng),
        "latent": torch.randn(anchors, encoder.views, 4, generator=rng),
    }
    return {name: found[name] for name in encoder.columns}


def images_of(encoder: Encoder, anchors: int = 5, seed: int = 0) -> Tensor:
    """Their views."""
    return torch.randn(encoder.views * anchors, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
