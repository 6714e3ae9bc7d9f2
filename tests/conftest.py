"""What all tests share: where workers find the modules of the tests, the settings of Ray, and fixtures."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SUPPORT = str(Path(__file__).parent / "support")
sys.path.insert(0, SUPPORT)
os.environ["PYTHONPATH"] = os.pathsep.join([SUPPORT, os.environ.get("PYTHONPATH", "")])  # for workers

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - at Ray's default of 15 a busy machine would starve them
os.environ["RAY_AUTH_MODE"] = "disabled"  # before ray is imported: it would write a token into the home directory

# Held for as long as the tests run; what they keep of generators is not for the user's own directory.
_CACHE = tempfile.TemporaryDirectory(prefix="genray-cache-", ignore_cleanup_errors=True)
os.environ["GENRAY_CACHE"] = _CACHE.name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    monkeypatch.setenv("GENRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def small() -> tuple[dict[str, Any], Any]:
    """A small BigGAN-deep of 32 pixels: its config.json and the network."""
    from networks import network, random_model

    config = network(32)
    return config, random_model(config)


@pytest.fixture
def checkpoint(small: tuple[dict[str, Any], Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes the 32-pixel network to a directory, its state changed by a function first."""
    from networks import write

    def make(change: Callable[[dict[str, Any]], object] = len, legacy: bool = False) -> Path:
        config, model = small
        state = {key: value.clone() for key, value in model.state_dict().items()}
        change(state)
        return write(tmp_path / "network", config, state, legacy)

    return make


@pytest.fixture
def encoder() -> Any:
    """A small network whose two modes differ."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.fixture(autouse=True)
def no_run_is_left() -> Iterator[None]:
    """A test that failed must not leave its run to the next ones."""
    yield
    if (harness := sys.modules.get("harness")) is not None:
        while harness.Run.started:
            harness.Run.started.pop().kill_everything()
