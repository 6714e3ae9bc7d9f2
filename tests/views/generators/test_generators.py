"""Describing, finding, downloading and loading generators."""

from __future__ import annotations

import http.client
import subprocess
import sys
import urllib.request
from email.message import Message
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from networks import latents
from pytorch_pretrained_biggan import model as package

from genray.config.errors import ConfigError
from genray.config.generator import BigGANGenerator, CustomGenerator
from genray.views.generators import describe, load
from genray.views.generators.checkpoints import resolve
from genray.views.types import BadImages, GeneratorSpec

NAME = "biggan-deep-128"


class Noise:
    """A custom generator: an image is its seed, its class or its latent's mean everywhere."""

    def __init__(self, size: int = 8, kind: str = "uint8"):
        self.image_size, self.latent_dim, self.num_classes, self.kind = size, 4, 0, kind
        self.shift = torch.zeros(1)

    def __call__(self, z, labels, seeds):
        assert labels is None
        floats = (z.mean(1) + self.shift)[:, None, None, None].expand(-1, 3, self.image_size, self.image_size)
        if self.kind == "seeds":
            return seeds.to(torch.uint8)[:, None, None, None].expand(-1, 3, self.image_size, self.image_size)
        return {"float": floats, "uint8": floats.to(torch.uint8), "small": floats[..., 1:], "long": floats.long()}[
            self.kind
        ]


def custom(target: str = f"{__name__}:Noise", **options: object) -> CustomGenerator:
    return CustomGenerator(target=target, image_size=8, latent_dim=4, options=options)


@pytest.fixture
def offline(monkeypatch):
    asked = []

    def refuse(url, *args, **kwargs):
        asked.append(url)
        raise OSError("network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


@pytest.fixture
def published(checkpoint, monkeypatch):
    """The published addresses point at files of a small network."""
    directory = checkpoint(legacy=True)
    monkeypatch.setitem(package.PRETRAINED_MODEL_ARCHIVE_MAP, NAME, (directory / "pytorch_model.bin").as_uri())
    monkeypatch.setitem(package.PRETRAINED_CONFIG_ARCHIVE_MAP, NAME, (directory / "config.json").as_uri())
    return directory


def test_describe_reads_the_config_alone(checkpoint):
    assert describe(BigGANGenerator()) == GeneratorSpec("digit-scenes", 32, 32, 10)
    directory = checkpoint()
    (directory / "model.safetensors").write_bytes(b"")
    assert describe(BigGANGenerator(model=str(directory))) == GeneratorSpec(str(directory), 32, 16, 7)
    assert describe(custom()) == GeneratorSpec(f"{__name__}:Noise", 8, 4, 0)


def test_describe_knows_published_models_without_their_files(cache, offline):
    assert describe(BigGANGenerator(model="biggan-deep-512")) == GeneratorSpec("biggan-deep-512", 512, 128, 1000)
    assert not offline
    assert not cache.exists()


def test_describe_imports_no_torch():
    code = (
        "import sys; from genray.config.generator import BigGANGenerator as B;"
        "from genray.views.generators import describe;"
        "describe(B()); describe(B(model='biggan-deep-256'));"
        "print([m for m in ('torch', 'ray', 'boto3', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("bigan-deep-256", "one of digit-scenes, .*got 'bigan-deep-256'; did you mean 'biggan-deep-256'"),
        (
            "no/such/place",
            "a directory with config.json and model.safetensors or pytorch_model.bin, got 'no/such/place'; put them in",
        ),
    ],
)
def test_an_unknown_model_is_refused(model, told):
    for use in (describe, lambda config: load(config, "cpu")):
        with pytest.raises(ConfigError, match=f"generator.model must be (.*, or )?{told}"):
            use(BigGANGenerator(model=model))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_directory_without_a_file_is_refused(checkpoint, missing):
    directory = checkpoint()
    (directory / missing).unlink()
    with pytest.raises(ConfigError, match=f"must be a directory with config.json and .*put them in {directory}"):
        describe(BigGANGenerator(model=str(directory)))


def test_load_gives_the_described_generator():
    generator = load(BigGANGenerator(truncation=0.5), "cpu")
    assert (generator.image_size, generator.latent_dim, generator.num_classes) == (32, 32, 10)
    assert generator(torch.zeros(2, 32), torch.tensor([0, 1]), torch.tensor([5, 6])).shape == (2, 3, 32, 32)


def test_published_weights_are_downloaded_once(cache, published, small, request):
    config = BigGANGenerator(model=NAME)
    with pytest.raises(ConfigError, match="must be in the cache"):
        resolve(NAME, download=False)
    images = load(config, "cpu")(*latents(small[0], 2))
    assert sorted(path.name for path in (cache / NAME).iterdir()) == ["config.json", "pytorch_model.bin"]
    asked = request.getfixturevalue("offline")
    assert torch.equal(load(config, "cpu")(*latents(small[0], 2)), images)
    assert describe(config).image_size == 32
    assert not asked


def test_offline_without_a_copy_says_where_the_files_go(cache, offline):
    with pytest.raises(ConfigError) as error:
        load(BigGANGenerator(model=NAME), "cpu")
    assert f"put config.json and pytorch_model.bin at {cache / NAME}" in str(error.value)
    assert "network is unreachable" in str(error.value)
    assert offline


class Cut(BytesIO):
    """A response that ends early, quietly or with the connection's error."""

    def __init__(self, error: type[BaseException] | None):
        super().__init__(bytes(1000))
        self.headers, self.error = Message(), error
        self.headers["Content-Length"] = "2000"

    def read(self, size=-1):
        chunk = super().read(size)
        if not chunk and self.error:
            raise self.error("stopped")
        return chunk


@pytest.mark.parametrize("error", [None, ConnectionResetError, http.client.HTTPException, KeyboardInterrupt])
def test_an_interrupted_download_leaves_nothing(cache, monkeypatch, error):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: Cut(error))
    expected = KeyboardInterrupt if error is KeyboardInterrupt else ConfigError
    with pytest.raises(expected, match="stopped" if error else "ended after 1000 of 2000 bytes"):
        load(BigGANGenerator(model=NAME), "cpu")
    assert list((cache / NAME).iterdir()) == []


def test_two_downloads_at_a_time_do_not_disturb_each_other(cache, published, monkeypatch):
    """While one process copies the weights, another starts and finishes: the first still ends with whole files."""
    urlopen, state = urllib.request.urlopen, SimpleNamespace(inner=False)

    def interleaved(url, *args, **kwargs):
        response = urlopen(url, *args, **kwargs)
        if not state.inner:
            state.inner = True
            response.read(1000)
            response.close()
            assert resolve(NAME, download=True) == cache / NAME
            response = urlopen(url, *args, **kwargs)
        return response

    monkeypatch.setattr(urllib.request, "urlopen", interleaved)
    resolve(NAME, download=True)
    assert (cache / NAME / "pytorch_model.bin").read_bytes() == (published / "pytorch_model.bin").read_bytes()
    assert len(list((cache / NAME).iterdir())) == 2


def test_a_custom_generator_may_return_bytes_or_floats():
    z = torch.tensor([[-1.0] * 4, [0.5] * 4])
    assert load(custom(kind="float"), "cpu")(z, None)[:, 0, 0, 0].tolist() == [0, 191]
    assert load(custom(kind="seeds"), "cpu")(z, None, torch.tensor([7, 9]))[:, 2, 7, 7].tolist() == [7, 9]


@pytest.mark.parametrize("kind", ["small", "long"])
def test_a_custom_generator_must_return_images(kind):
    with pytest.raises(BadImages, match=r"must be uint8, or floats in \[-1, 1\], of shape \[2, 3, 8, 8\], got"):
        load(custom(kind=kind), "cpu")(torch.zeros(2, 4), None)


def test_a_custom_generator_must_return_finite_floats():
    with pytest.raises(BadImages, match="1 of 2 images"):
        load(custom(kind="float"), "cpu")(torch.tensor([[0.0] * 4, [torch.nan] * 4]), None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (custom("no_such_package.at_all:make"), "generator.target must be importable.*No module named"),
        (custom(f"{__name__}:missing"), "generator.target must be importable.*no attribute 'missing'"),
        (custom(f"{__name__}:NAME"), "generator.target must name a function or class, got .*, a str"),
        (custom(colour="red"), "generator.options must be arguments of .*unexpected keyword argument 'colour'"),
        (custom(size=16), "generator.image_size must be that of .*which has 16, got 8"),
        (custom("pathlib:PurePath"), "generator.image_size must be that of .*nothing of that name, got 8"),
    ],
    ids=["module", "attribute", "not callable", "options", "size", "not a generator"],
)
def test_a_wrong_custom_generator_is_refused(config, told):
    with pytest.raises(ConfigError, match=told):
        load(config, "cpu")


def test_a_custom_generator_is_differentiable_where_it_renders_floats():
    z = torch.tensor([[0.1, 0.2, 0.3, 0.4], [2.0] * 4], requires_grad=True)
    images = load(custom(kind="float"), "cpu").differentiable(z, None)
    assert images.shape == (2, 3, 8, 8)
    assert images.max() == 1  # what lies outside is clamped, as in the bytes
    images.sum().backward()
    assert torch.equal(z.grad, torch.tensor([[3 * 8 * 8 / 4.0] * 4, [0.0] * 4]))
    with torch.no_grad():
        assert not load(custom(kind="float"), "cpu").differentiable(z, None).requires_grad
    with pytest.raises(ConfigError, match=r"generator.target must render floats with a gradient in z, .* got uint8"):
        load(custom(kind="uint8"), "cpu").differentiable(z, None)
    with pytest.raises(BadImages):
        load(custom(kind="small"), "cpu").differentiable(z, None)


def test_a_custom_module_is_moved_and_frozen(monkeypatch):
    class Module(torch.nn.Linear):
        image_size, latent_dim, num_classes = 8, 4, 0

    monkeypatch.setattr(sys.modules[__name__], "Noise", lambda: Module(4, 4))
    made = load(custom(), "meta").made  # a device that the factory never heard of
    assert not made.training
    assert not made.weight.requires_grad
    assert made.weight.device.type == "meta"
