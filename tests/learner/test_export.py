"""What is exported is the backbone that was trained, for timm and for torchvision."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

from genray.config import objective, sections
from genray.config.errors import UserError
from genray.config.run import Config
from genray.learner import objectives
from genray.learner.encoder import Encoder
from genray.learner.export import export_encoder, export_program, export_timm, export_torchvision, torchvision_mismatch
from genray.stream.plan import Plan

TINY = sections.Model(
    backbone="resnet18",
    model_args={"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]},
    projection=(20, 12),
)
VIT = sections.Model(
    backbone="vit_tiny_patch16_224", model_args={"img_size": 32, "depth": 1, "patch_size": 8}, projection=(8, 4)
)


def build(model: sections.Model, seed: int, **others: objective.Objective) -> Encoder:
    config = Config(name="run", model=model, seed=seed, **others)
    return objectives.build(config, Plan.of(config))


def trained(model: sections.Model, **others: objective.Objective) -> Encoder:
    """An encoder whose batch-norm statistics have moved, as training moves them."""
    encoder = build(model, 3, **others)
    encoder(torch.randn(8, 3, 32, 32))
    return encoder.eval()


@torch.no_grad()
@pytest.mark.parametrize("model", [TINY, VIT], ids=["resnet", "vit"])
def test_timm_reads_the_directory_back(model: sections.Model, tmp_path: Path) -> None:
    encoder, images = trained(model), torch.randn(4, 3, 32, 32)
    directory = export_timm(encoder.state_dict(), model, tmp_path / "export" / "timm", image_size=32, crop_pct=0.875)
    loaded = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    torch.testing.assert_close(loaded(images), encoder.features(images), rtol=1e-4, atol=1e-5)
    data = timm.data.resolve_model_data_config(loaded)
    assert (list(data["input_size"]), data["crop_pct"]) == ([3, 32, 32], 0.875)
    assert tuple(data["mean"]) == (0.485, 0.456, 0.406)
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((directory / "config.json").read_text())["num_features"] == encoder.num_features


@torch.no_grad()
def test_the_backbone_that_is_exported_is_not_the_slow_copy(tmp_path: Path) -> None:
    encoder, images = trained(TINY, objective=objective.BYOL(projection=(16, 8))), torch.randn(4, 3, 32, 32)
    for parameter in encoder.backbone.parameters():
        parameter.mul_(1.5)
    directory = export_timm(encoder.state_dict(), TINY, tmp_path / "timm", image_size=32)
    loaded = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    torch.testing.assert_close(loaded(images), encoder.features(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_timm_puts_a_new_classifier_on_it(tmp_path: Path) -> None:
    encoder, images = trained(TINY), torch.randn(2, 3, 32, 32)
    export_timm(encoder.backbone.state_dict(), TINY, tmp_path / "timm", image_size=32)  # the backbone's state will do
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, num_classes=10).eval()
    assert loaded(images).shape == (2, 10)
    torch.testing.assert_close(
        loaded.forward_head(loaded.forward_features(images), pre_logits=True), encoder.features(images)
    )


@torch.no_grad()
@pytest.mark.parametrize("model", [TINY, VIT], ids=["resnet", "vit"])
def test_torch_alone_runs_the_program(model: sections.Model, tmp_path: Path) -> None:
    encoder, path = trained(model), tmp_path / "encoder.pt2"
    assert export_program(encoder.state_dict(), model, path, image_size=32) is None
    network = torch.export.load(path).module()
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        torch.testing.assert_close(network(images), encoder.features(images), rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]


def test_a_whole_export_is_replaced(tmp_path: Path) -> None:
    config = Config(name="run", model=TINY)
    for seed in (1, 2):
        export_encoder(build(TINY, seed).state_dict(), config, tmp_path / "export", 32)
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"config.json", "model.safetensors", "encoder.pt2"}


def test_an_earlier_export_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for seed in (1, 2):
        encoder = build(TINY, seed)
        export_timm(encoder.state_dict(), TINY, tmp_path / "timm", image_size=32)
    assert [p.name for p in tmp_path.iterdir()] == ["timm"]
    stored = load_file(tmp_path / "timm" / "model.safetensors")["conv1.weight"]
    assert torch.equal(stored, encoder.backbone.get_parameter("conv1.weight"))


def test_a_state_of_another_network_is_refused_and_the_earlier_export_stays(tmp_path: Path) -> None:
    export_timm(build(TINY, 1).state_dict(), TINY, tmp_path / "timm", image_size=32)
    with pytest.raises(RuntimeError, match=r"blocks\.0"):
        export_timm(build(VIT, 1).state_dict(), TINY, tmp_path / "timm", image_size=32)
    assert [p.name for p in tmp_path.iterdir()] == ["timm"]
    assert timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).num_features == 32


@pytest.mark.parametrize("content", ["notes.txt", "config.json"], ids=["anything", "another model"])
def test_a_directory_that_is_no_export_is_never_replaced(content: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    export_timm(build(TINY, 1).state_dict(), TINY, theirs, image_size=32)  # empty: may be taken
    (theirs / content).write_text('{"architecture": "resnet18"}')
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    for directory in (theirs, theirs / content):
        with pytest.raises(
            UserError, match=r"an export must go to a new or empty directory.*which holds something else"
        ):
            export_timm(build(TINY, 2).state_dict(), TINY, directory, image_size=32)
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before
    assert list(tmp_path.iterdir()) == [theirs]


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = Config(name="run", model=TINY)
    with pytest.raises(UserError, match=r"must go to a directory that can be written, got '.*/file/x' \(Not a dir"):
        export_encoder(build(TINY, 1).state_dict(), config, tmp_path / "file" / "x", 32)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_reads_the_standard_resnets(name: str, tmp_path: Path) -> None:
    model = sections.Model(backbone=name, model_args={"zero_init_last": False}, projection=(8, 4))
    encoder, images = trained(model), torch.randn(2, 3, 64, 64)
    path = export_torchvision(encoder.state_dict(), model, tmp_path / "export" / "torchvision-resnet.safetensors")
    assert path is not None
    assert [p.name for p in path.parent.iterdir()] == ["torchvision-resnet.safetensors"]
    theirs = getattr(torchvision.models, name)().eval()
    keys = theirs.load_state_dict(load_file(path), strict=False)
    assert (sorted(keys.missing_keys), keys.unexpected_keys) == (["fc.bias", "fc.weight"], [])
    theirs.fc = torch.nn.Identity()
    torch.testing.assert_close(theirs(images), encoder.features(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "why"),
    [(TINY, "another network than torchvision's resnet18: channels, layers"), (VIT, "not for vit_tiny_patch16_224")],
)
def test_other_networks_have_no_torchvision_file(model: sections.Model, why: str, tmp_path: Path) -> None:
    assert export_torchvision(build(model, 0).state_dict(), model, tmp_path / "resnet.safetensors") is None
    assert list(tmp_path.iterdir()) == []
    assert why in (torchvision_mismatch(model) or "")
    assert torchvision_mismatch(sections.Model()) is None
