"""The network: one per seed, the paper's head, and errors that name what to mend."""

import pytest
import torch
from torch import nn

from genray.config import sections
from genray.config.errors import ConfigError
from genray.config.run import Config
from genray.learner import objectives
from genray.learner.objectives.contrastive import ContrastiveEncoder
from genray.stream.plan import Plan

SMALL = sections.Model(
    backbone="resnet18",
    model_args={"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]},
    projection=(20, 12),
    channels_last=False,
)


def build(model: sections.Model, seed: int) -> ContrastiveEncoder:
    config = Config(name="run", model=model, seed=seed)
    encoder = objectives.build(config, Plan.of(config))
    assert isinstance(encoder, ContrastiveEncoder)
    return encoder


def test_shapes_and_head() -> None:
    encoder = build(SMALL, seed=0)
    images = torch.randn(3, 3, 32, 32)
    assert encoder.num_features == 32
    assert encoder.features(images).shape == (3, 32)
    assert encoder(images)["embeddings"].shape == (3, 12)
    assert [type(layer) for layer in encoder.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"backbone", "head"}


@pytest.mark.parametrize(
    ("backbone", "model_args", "width"),
    [
        ("mobilenetv3_small_050", {}, 1024),  # its classifier sees more than num_features, 288
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, 192),
    ],
)
def test_head_fits_other_families(backbone: str, model_args: dict[str, int], width: int) -> None:
    encoder = build(sections.Model(backbone=backbone, model_args=model_args, projection=(8, 4)), seed=0).eval()
    images = torch.randn(2, 3, 32, 32)
    assert encoder.features(images).shape == (2, width)
    assert encoder(images)["embeddings"].shape == (2, 4)


def test_the_seed_alone_decides_the_network_and_leaves_the_callers_randomness() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = build(SMALL, seed=7).state_dict()
    assert torch.equal(torch.rand(1), expected)
    again, other = build(SMALL, seed=7).state_dict(), build(SMALL, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    for weight in ("backbone.conv1.weight", "head.0.weight"):
        assert not torch.equal(first[weight], other[weight])


def test_channels_last_changes_the_memory_not_the_network() -> None:
    plain, last = build(SMALL, 0), build(sections.Model(**{**vars_of(SMALL), "channels_last": True}), 0)
    weight = last.backbone.get_parameter("layer1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(last(images), plain(images), rtol=1e-4, atol=1e-5)


def vars_of(model: sections.Model) -> dict[str, object]:
    return {name: getattr(model, name) for name in ("backbone", "model_args", "projection")}


@pytest.mark.parametrize("name", ["resnet5O", "local-dir:weights", "resnet50.a1_in1k"])
def test_unknown_backbone(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.backbone must be a timm model, got '{name}'") as raised:
        build(sections.Model(backbone=name), seed=0)
    if name.startswith("resnet"):
        assert "did you mean 'resnet50'?" in str(raised.value)


@pytest.mark.parametrize(
    "model_args", [{"lairs": [1, 1, 1, 1]}, {"layers": "many"}, {"num_classes": 10}, {"features_only": True}]
)
def test_bad_model_args(model_args: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"model\.model_args must suit timm's resnet18, got"):
        build(sections.Model(backbone="resnet18", model_args=model_args), seed=0)
