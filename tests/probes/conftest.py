"""What several tests of probes use."""

import pytest
import torch
from torch import nn


@pytest.fixture
def encoder() -> nn.Module:
    """A small network whose two modes differ."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
