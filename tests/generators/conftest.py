"""Checkpoints of a small BigGAN-deep, as they are and spoilt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import network, random_model, write
from pytorch_pretrained_biggan import BigGAN


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    monkeypatch.setenv("GENRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def small() -> tuple[dict[str, Any], BigGAN]:
    """A 32-pixel network and its config.json."""
    config = network(32)
    return config, random_model(config)


@pytest.fixture
def checkpoint(small: tuple[dict[str, Any], BigGAN], tmp_path: Path) -> Callable[..., Path]:
    """Writes the 32-pixel network to a directory, its state changed by a function first."""

    def make(change: Callable[[dict[str, torch.Tensor]], object] = len, legacy: bool = False) -> Path:
        config, model = small
        state = {key: value.clone() for key, value in model.state_dict().items()}
        change(state)
        return write(tmp_path / "network", config, state, legacy)

    return make
