"""Backbones of timm, torchvision and genray, without a network."""

import functools

import pytest
import timm
import torch
import torchvision
from fakes import small
from safetensors.torch import save_file

from genray.config.errors import UserError
from genray.learner import objectives
from genray.learner.export import export_timm
from genray.learner.learner import Learner
from genray.learner.load import open_run
from genray.probes import backbones
from genray.probes.backbones import RAW_SIZE
from genray.probes.crops import Geometry
from genray.runs import checkpoint
from genray.stream.plan import Plan
from genray.stream.run import Run

MODEL = {
    "backbone": "resnet18",
    "model_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 12]},
    "projection": [8, 4],
}


load = functools.partial(backbones.load, open_run=open_run)


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def pixels(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_timm_model_is_normalised_as_its_own_configuration_says():
    found = load("untrained:timm:mobilenetv3_small_050")
    data = timm.data.resolve_model_data_config(found.module)
    assert found.geometry == Geometry(data["input_size"][-1], int(224 / data["crop_pct"]), data["interpolation"])
    images = pixels(224)
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
    expected = found.module((images / 255 - mean) / std)
    torch.testing.assert_close(found.features(images), expected, rtol=1e-4, atol=1e-5)
    assert not found.module.training
    again = load("untrained:timm:mobilenetv3_small_050")
    assert torch.equal(again.features(images), found.features(images))  # the untrained one is always the same


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_loaded_from_a_file_whatever_their_prefix(suffix, tmp_path):
    torch.manual_seed(1)
    theirs = timm.create_model("resnet18", num_classes=7).eval()
    for prefix in ("", "module.", "backbone."):
        state = {prefix + key: value for key, value in theirs.state_dict().items()}
        file = tmp_path / f"weights{suffix}"
        save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
        found = load("timm:resnet18", weights=file, size=64)
        expected = theirs.forward_head(theirs.forward_features(torch.ones(1, 3, 64, 64)), pre_logits=True)
        torch.testing.assert_close(found(torch.ones(1, 3, 64, 64)), expected)
    assert found.geometry.size == 64


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_a_torchvision_model_gives_what_its_classifier_is_given(name, tmp_path):
    torch.manual_seed(2)
    theirs = torchvision.models.get_model(name).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    found = load(f"torchvision:{name}", weights=tmp_path / "weights.pth")
    assert found.geometry.size == 224
    last = [part for part in theirs.modules() if isinstance(part, torch.nn.Linear)][-1]
    given = []
    last.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    images = pixels(224)
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    theirs((images / 255 - mean) / std)
    torch.testing.assert_close(found.features(images), given[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_export_is_the_backbone_that_was_exported(tmp_path):
    config = small(model=MODEL, seed=3)
    encoder = objectives.build(config, Plan.of(config)).eval()
    export_timm(encoder.state_dict(), config.model, tmp_path / "export", image_size=24)
    for name in (str(tmp_path / "export"), f"timm:local-dir:{tmp_path / 'export'}"):
        found = load(name)
        assert (found.geometry, found.run) == (Geometry(24, 24, "bilinear"), None)
        images = torch.randn(2, 3, 24, 24)
        torch.testing.assert_close(found(images), encoder.features(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_run_is_its_last_checkpoint(tmp_path, monkeypatch):
    run = Run.of(small(storage_path=str(tmp_path), model=MODEL))
    directory = run.directory.path
    run.directory.claim(run.config)
    learner = Learner(run, 0, torch.device("cpu"))
    for parameter in learner.encoder.parameters():
        parameter.add_(0.05)
    (directory / "checkpoint_0").mkdir()
    learner.step = 8
    learner.save(directory / "checkpoint_0")
    monkeypatch.setattr(checkpoint, "last", lambda path: path / "checkpoint_0")
    found, untrained = load(str(directory)), load(f"untrained:{directory}")
    images = torch.randn(2, 3, learner.policy.size, learner.policy.size)
    assert torch.equal(found(images), learner.features(images))
    assert (found.run, found.step, found.geometry.size) == (directory, 8, learner.policy.size)
    assert untrained.run is None
    fresh = Learner(run, 0, torch.device("cpu"))
    assert torch.equal(untrained(images), fresh.features(images))


def test_raw_pixels_are_a_backbone():
    found = load("pixels")
    assert found.geometry == Geometry(RAW_SIZE, RAW_SIZE)
    assert found.features(pixels(RAW_SIZE)).shape == (2, 3 * RAW_SIZE**2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet81", r"a backbone must be one of timm's models, got timm:resnet81; did you mean 'resnet\d+'\?"),
        ("torchvision:resnet500", r"one of torchvision's models, got torchvision:resnet500; did you mean 'resnet50'\?"),
        ("tim:resnet18", r"a backbone must be .*, got 'tim:resnet18'; did you mean 'timm:'\?"),
        ("runs/frist", r"a backbone must be .*, got 'runs/frist', which does not exist"),
        ("pixel", r"a backbone must be .*, got 'pixel'; did you mean 'pixels'\?"),
        ("timm:local-dir:no/such", r"the weights of timm:local-dir:no/such must be cached or downloadable"),
        (
            "timm:resnet18",
            r"the weights of timm:resnet18 must be cached or downloadable, and loading them failed \(.+\); --weights "
            "FILE loads them, untrained:timm:resnet18 needs none",
        ),
        ("torchvision:squeezenet1_0", r"must end in a linear classifier|the weights of torchvision:squeezenet1_0"),
    ],
)
def test_what_is_no_backbone_is_told(name, message):
    with pytest.raises(UserError, match=rf"{message}"):
        load(name)


def test_weights_that_do_not_fit_are_told(tmp_path):
    file = tmp_path / "weights.safetensors"
    fitted = functools.partial(load, "timm:resnet18", weights=file)
    with pytest.raises(UserError, match=r"^--weights must be a file that can be read, got '.*' \("):
        fitted()
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    for changed, message in (
        ({key: value for key, value in state.items() if key != "conv1.weight"}, "which lacks conv1.weight"),
        ({**state, "extra.weight": torch.zeros(1)}, "which also has extra.weight"),
        ({**state, "conv1.weight": torch.zeros(1)}, r"\(.*size mismatch for conv1.weight"),
    ):
        save_file(changed, file)
        with pytest.raises(UserError, match=rf"^--weights must hold the weights of the backbone, got '.*'.*{message}"):
            fitted()


def test_a_size_that_does_not_suit_is_told():
    with pytest.raises(
        UserError, match=r"^--size must suit the backbone, got 30 for untrained:timm:vit_tiny_patch16_224"
    ):
        load("untrained:timm:vit_tiny_patch16_224", size=30)
