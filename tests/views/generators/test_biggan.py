"""Our BigGAN-deep against the package's own forward pass, and every refusal of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import latents, network, one_hot, random_model, write
from pytorch_pretrained_biggan import BigGAN, BigGANConfig

from genray.config.errors import ConfigError
from genray.views.generators.biggan import load_biggan, statistics
from genray.views.generators.checkpoints import EMBEDDED_DIRECTORY
from genray.views.generators.quantise import quantise
from genray.views.types import BadImages


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("truncation", [1.0, 0.5, 0.4])
def test_pixels_equal_the_package(small, checkpoint, truncation):
    config, model = small
    z, classes = latents(config, 8)
    expected = quantise(model(z, one_hot(classes, config), truncation))
    ours = load_biggan(checkpoint(), truncation, "cpu")(z, classes)
    assert ours.dtype == torch.uint8
    assert ours.shape == (8, 3, 32, 32)
    assert expected.float().std() > 30  # not a constant image, not black and white
    assert largest_difference(ours, expected) <= 1


def test_truncation_chooses_other_statistics(small, checkpoint):
    z, classes = latents(small[0], 4)
    directory = checkpoint()
    a, b = (load_biggan(directory, truncation, "cpu")(z, classes) for truncation in (1.0, 0.5))
    assert largest_difference(a, b) > 10


@pytest.mark.parametrize(("size", "truncation"), [(128, 1.0), (128, 0.4), (256, 0.5), (512, 1.0)])
def test_published_layouts_equal_the_package(size, truncation, tmp_path):
    config = network(size, width=8)
    model = random_model(config, settle=size == 128)
    z, classes = latents(config, 1)
    expected = quantise(model(z, one_hot(classes, config), truncation))
    ours = load_biggan(write(tmp_path, config, model.state_dict()), truncation, "cpu")(z, classes)
    assert ours.shape == (1, 3, size, size)
    assert expected.float().std() > 10
    assert largest_difference(ours, expected) <= 1


@pytest.mark.parametrize("size", [128, *(pytest.param(size, marks=pytest.mark.slow) for size in (256, 512))])
def test_full_size_biggan_deep(size, tmp_path):
    config = network(size, width=128, z_dim=128, num_classes=1000)
    if size == 128:
        assert config == json.loads(BigGANConfig().to_json_string())
    model = BigGAN(BigGANConfig.from_dict(config))
    torch.manual_seed(0)
    state = {}
    for key, like in model.state_dict().items():
        value = torch.rand_like(like)
        state[key] = value + 0.5 if key.endswith(("vars", "bn.weight")) else (value - 0.5) * 0.2
        if key.endswith("weight_orig"):  # any u and v will do, if they make a sigma that keeps the layer's scale
            state[key] = (value - 0.5) * (12 / value[0].numel()) ** 0.5
        if key.endswith(("weight_u", "weight_v")):
            state[key] = torch.nn.functional.normalize(value, dim=0)
    for key in [key for key in state if key.endswith("weight_u")]:
        state[key] /= state[key] @ state[f"{key[:-1]}orig"].flatten(1) @ state[f"{key[:-1]}v"]
    generator = load_biggan(write(tmp_path, config, state), 0.5, "cpu")
    assert (generator.image_size, generator.latent_dim, generator.num_classes) == (size, 128, 1000)
    model.load_state_dict(state, assign=True)
    z, classes = latents(config, 1)
    with torch.no_grad():
        expected = quantise(model.eval()(z, one_hot(classes, config), 0.5))
    assert expected.float().std() > 10
    assert largest_difference(generator(z, classes), expected) <= 1


@pytest.mark.parametrize("step", range(51))
def test_statistics_on_the_grid_are_its_rows(step):
    rows = torch.randn(51, 3)
    assert torch.equal(statistics(rows, round(step / 50, 2)), rows[step])


def test_statistics_between_two_rows_are_interpolated_towards_the_nearer():
    rows = torch.arange(51.0)[:, None].square()
    for truncation, low, weight in [(0.013, 0, 0.65), (0.505, 25, 0.25), (0.999, 49, 0.95)]:
        expected = (1 - weight) * low**2 + weight * (low + 1) ** 2
        assert statistics(rows, truncation).item() == pytest.approx(expected, rel=1e-4)


def test_an_image_does_not_depend_on_its_batch_or_on_seeds(small, checkpoint):
    z, classes = latents(small[0], 6)
    generator = load_biggan(checkpoint(), 1.0, "cpu")
    whole = generator(z, classes)
    assert torch.equal(whole, generator(z, classes, torch.arange(6)))
    assert largest_difference(whole, torch.cat([generator(z[i : i + 1], classes[i : i + 1]) for i in range(6)])) <= 1


def test_legacy_pytorch_file_renders_as_safetensors_do(small, checkpoint):
    z, classes = latents(small[0], 4)
    images = load_biggan(checkpoint(), 1.0, "cpu")(z, classes)
    directory = checkpoint(legacy=True)
    (directory / "model.safetensors").unlink()
    assert torch.equal(load_biggan(directory, 1.0, "cpu")(z, classes), images)


def test_the_network_is_frozen_and_differentiable_in_z(small, checkpoint):
    z, classes = latents(small[0], 2)
    generator = load_biggan(checkpoint(), 1.0, "cpu")
    assert not any(parameter.requires_grad for parameter in generator.network.parameters())
    z.requires_grad_()
    images = generator.differentiable(z, classes)
    assert torch.equal((127.5 * (images + 1)).round().to(torch.uint8), generator(z, classes))
    slope = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    images.backward(slope)
    theirs = z.detach().clone().requires_grad_()
    small[1](theirs, one_hot(classes, small[0]), 1.0).backward(slope)
    assert theirs.grad.abs().mean() > 0
    torch.testing.assert_close(z.grad, theirs.grad, rtol=1e-2, atol=1e-3 * float(theirs.grad.abs().max()))


def test_a_gradient_needs_classes_too(checkpoint):
    with pytest.raises(ValueError, match="labels must be given"):
        load_biggan(checkpoint(), 1.0, "cpu").differentiable(torch.zeros(1, 16), None)


KEY = "generator.layers.2.conv_1.bias"


def fold(state: dict[str, torch.Tensor]) -> None:
    for key in [key for key in state if key.endswith("weight_orig")]:
        state[key.removesuffix("_orig")] = state.pop(key)
        del state[f"{key[:-4]}u"], state[f"{key[:-4]}v"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop(KEY), f"got 1 missing: {KEY}"),
        (lambda state: state.update(extra=torch.ones(1)), "got 1 unexpected: extra"),
        (lambda state: state.update({KEY: torch.ones(5)}), f"got 1 wrong shape: {KEY} [5] for [16]"),
        (fold, "generator.gen_z.weight_orig, .*its spectral norm is already folded"),
    ],
    ids=["missing", "unexpected", "shape", "folded"],
)
def test_a_wrong_checkpoint_is_refused_with_its_keys(checkpoint, change: Callable[[dict], object], told):
    with pytest.raises(ConfigError, match=told.replace("[", r"\[").replace("]", r"\]")) as error:
        load_biggan(checkpoint(change), 1.0, "cpu")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kept", [0, 100, 100_000])
def test_a_truncated_file_is_refused(checkpoint, legacy, kept):
    path = checkpoint(legacy=legacy) / ("pytorch_model.bin" if legacy else "model.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=f"{path.name} must be a readable checkpoint, got {kept} bytes") as error:
        load_biggan(path.parent, 1.0, "cpu")
    assert "\n" not in str(error.value)


def test_a_pickle_that_runs_code_is_refused(checkpoint):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (directory / "ran",)

    directory = checkpoint(legacy=True)
    torch.save({"weights": Harmful()}, directory / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="must be a readable checkpoint"):
        load_biggan(directory, 1.0, "cpu")
    assert not (directory / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"generator": 3}, {"state": {"generator": torch.ones(1)}}])
def test_a_file_of_something_else_is_refused(checkpoint, content):
    directory = checkpoint(legacy=True)
    torch.save(content, directory / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="must be a readable checkpoint"):
        load_biggan(directory, 1.0, "cpu")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"z_dim": None}, "z_dim: Input should be a valid integer"),
        ({"n_stats": 1}, "n_stats: Input should be greater than or equal to 2"),
        ({"output_dim": 64}, "output_dim must be 32, what its layers produce, got 64"),
    ],
)
def test_a_wrong_config_is_refused(checkpoint, change, told):
    path = checkpoint() / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=told):
        load_biggan(path.parent, 1.0, "cpu")


@pytest.mark.parametrize("key", ["generator.conv_to_rgb.bias", "embeddings.weight"])
def test_weights_that_are_not_finite_render_nothing(small, checkpoint, key):
    generator = load_biggan(checkpoint(lambda state: state[key].fill_(torch.nan)), 1.0, "cpu")
    with pytest.raises(BadImages, match="3 of 3 images have pixels that are not finite"):
        generator(*latents(small[0], 3))


def test_the_embedded_generator_renders_the_same_varied_images_each_time():
    generator = load_biggan(EMBEDDED_DIRECTORY, 1.0, "cpu")
    assert (generator.image_size, generator.latent_dim, generator.num_classes) == (32, 32, 10)
    z, classes = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    images = generator(z, classes)
    assert images.dtype == torch.uint8
    assert images.shape == (20, 3, 32, 32)
    assert torch.equal(images, generator(z, classes))
    flat = images.float().flatten(1)
    assert torch.pdist(flat).min() / flat.shape[1] ** 0.5 > 5  # no two alike
    assert ((images == 0) | (images == 255)).float().mean() < 0.2  # nor saturated
