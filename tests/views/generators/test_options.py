"""What is asked of a BigGAN-deep on top of float32: how far its pixels may be off, and what must not change them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import latents, network, random_model, write
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from genray.config.errors import ConfigError
from genray.config.generator import BigGANGenerator
from genray.views.generators import biggan, load
from genray.views.generators.biggan import load_biggan
from genray.views.generators.checkpoints import EMBEDDED_DIRECTORY
from genray.views.types import BadImages

slow = pytest.mark.slow
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
ON_A_GPU = [
    pytest.param({"cuda_graphs": True}, marks=cuda),
    pytest.param({"cuda_graphs": True, "compiled": True, "precision": "bfloat16"}, marks=cuda),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled from the tests before."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def off(images: torch.Tensor, reference: torch.Tensor) -> tuple[float, float, int]:
    """Grey levels between two renderings: the mean, the 99.9th percentile and the most."""
    levels = (images.cpu().int() - reference.cpu().int()).abs().float().flatten()
    return float(levels.mean()), float(levels.quantile(0.999)), int(levels.max())


@pytest.mark.parametrize(
    ("options", "mean", "percentile", "most"),
    [
        ({"precision": "bfloat16"}, 0.3, 1, 3),
        ({"precision": "float16"}, 0.05, 1, 1),
        pytest.param({"precision": "bfloat16", "compiled": True}, 0.3, 1, 3, marks=slow),
        pytest.param({"cuda_graphs": True}, 0, 0, 0, marks=cuda),
    ],
)
def test_an_option_is_off_by_a_little_where_weights_are_trained(options, mean, percentile, most):
    directory, device = EMBEDDED_DIRECTORY, "cuda" if "cuda_graphs" in options else "cpu"
    z = torch.randn(32, 32, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    exact = load_biggan(directory, 0.5, device)(z, torch.arange(32) % 10)
    images = load_biggan(directory, 0.5, device, **options)(z, torch.arange(32) % 10)
    assert images.dtype == torch.uint8
    found = off(images, exact)
    assert found[0] <= mean
    assert found[1] <= percentile
    assert found[2] <= most
    if "precision" in options:
        assert found[0] > 0.001  # it does compute in less


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_what_norms_multiply_by_and_add_is_not_rounded(precision):
    dtype = getattr(torch, precision)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    scale, offset = torch.randn(2, 2, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    found = biggan.activate(x, iter([(scale, offset)]))
    assert found.dtype == dtype
    assert torch.equal(found, (offset + x.float() * scale).relu().to(dtype))
    rounded = (offset.to(dtype) + x * scale.to(dtype)).relu()
    assert not torch.equal(found, rounded)
    z = x.clone().requires_grad_()
    assert torch.equal(biggan.activate(z, iter([(scale, offset)])), found)


@cuda
@pytest.mark.parametrize(("precision", "share"), [("float32", 0.001), ("tf32", 0.05)])
def test_a_gpu_renders_what_a_cpu_does(precision, share, tmp_path):
    """But for a share of the pixels, none is off by more than a grey level."""
    directory = EMBEDDED_DIRECTORY
    z = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    exact = load_biggan(directory, 1.0, "cpu")(z, torch.arange(64) % 10)
    images = load_biggan(directory, 1.0, "cuda", precision=precision)(z, torch.arange(64) % 10)
    levels = (images.cpu().int() - exact.int()).abs()
    assert float((levels > 1).float().mean()) <= share


def test_tf32_is_float32_on_a_cpu(small, checkpoint):
    z, classes = latents(small[0], 4)
    directory = checkpoint()
    exact = load_biggan(directory, 1.0, "cpu")(z, classes)
    assert torch.equal(load_biggan(directory, 1.0, "cpu", precision="tf32")(z, classes), exact)


def test_the_settings_of_a_gpu_are_those_that_are_asked_for_and_put_back():
    """They are global; a learner that renders for itself has its own."""

    def now() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        products = cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
        return cudnn.benchmark, cudnn.deterministic, *products

    before = now()
    for tf32, products in ((False, "ieee"), (True, "tf32")):
        with biggan.deterministic_kernels(torch.device("cuda"), tf32):
            assert now() == (False, True, products, products)
        assert now() == before
    with biggan.deterministic_kernels(torch.device("cpu"), True):
        assert now() == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_next_to_nothing(precision, tmp_path):
    """Generators and learners that render for themselves may have different ones. 1x1 convolutions would differ."""
    config = network(128, width=32)
    directory = write(tmp_path, config, random_model(config).state_dict())
    z, classes = latents(config, 4)
    generator, threads = load_biggan(directory, 1.0, "cpu", precision=precision), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(generator(z, classes))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert off(found[0], found[2])[2] <= 1
    assert float((found[0] != found[2]).float().mean()) < 1e-4


@pytest.mark.parametrize("size", [128, 256, 512])
def test_bfloat16_renders_the_same_images_at_published_layouts(size, tmp_path):
    """Random weights make what is rounded off grow from layer to layer; two different images differ by 40 and more."""
    config = network(size, width=8)
    directory = write(tmp_path, config, random_model(config).state_dict())
    z, classes = latents(config, 1)
    exact = load_biggan(directory, 1.0, "cpu")(z, classes)
    mean, _, _ = off(load_biggan(directory, 1.0, "cpu", precision="bfloat16")(z, classes), exact)
    assert 0.01 < mean < 8


def test_only_weights_and_activations_are_in_lower_precision(checkpoint):
    made = load_biggan(checkpoint(), 1.0, "cpu", precision="bfloat16").network
    kinds = {name: parameter.dtype for name, parameter in made.named_parameters()}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {"classes", "norms_weight", "norms_bias"}
    assert {kind for name, kind in kinds.items() if "conv" in name} == {torch.bfloat16}
    assert made(torch.zeros(1, 16), torch.tensor([0])).dtype == torch.float32


def test_what_overflows_in_float16_is_refused_not_white(checkpoint, small):
    """A tanh of infinity is an ordinary white pixel."""
    directory = checkpoint(lambda state: state["generator.conv_to_rgb.bias"].fill_(1e6))
    z, classes = latents(small[0], 2)
    assert int(load_biggan(directory, 1.0, "cpu")(z, classes).min()) == 255
    with pytest.raises(BadImages, match="2 of 2 images have pixels that are not finite"):
        load_biggan(directory, 1.0, "cpu", precision="float16")(z, classes)


def test_the_network_is_one_graph_and_another_truncation_does_not_compile_again(small, checkpoint, monkeypatch):
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile_(function, backend=counter, **how))
    z, classes = latents(small[0], 4)
    directory = checkpoint()
    images = []
    for truncation in (1.0, 0.5, 0.43):
        images.append(load_biggan(directory, truncation, "cpu", compiled=True)(z, classes))
        assert torch.equal(images[-1], load_biggan(directory, truncation, "cpu")(z, classes))
        assert counter.frame_count == 1
    assert off(images[0], images[1])[2] > 10
    assert sum(counters["graph_break"].values()) == 0
    load_biggan(directory, 1.0, "cpu", compiled=True)(z[:3], classes[:3])
    assert counter.frame_count == 2  # another micro-batch does: the counter counts


@pytest.mark.parametrize("name", ["InvalidCxxCompiler", "TritonMissing"])
def test_compiling_without_a_compiler_says_what_to_do(small, checkpoint, monkeypatch, name):
    class Failed(Exception):
        inner_exception = type(name, (RuntimeError,), {})("No working C++ compiler\nfound")

    def fail(*args: Any) -> None:
        raise Failed

    monkeypatch.setattr(torch, "compile", lambda function, **how: fail)
    generator = load_biggan(checkpoint(), 1.0, "cpu", compiled=True)
    with pytest.raises(
        ConfigError,
        match=r"generator.compile must be false unless torch finds a compiler, got true \(No working C\+\+ compiler\)",
    ):
        generator(*latents(small[0], 2))


def test_what_else_fails_while_compiling_keeps_its_name(small, checkpoint, monkeypatch):
    def fail(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "compile", lambda function, **how: fail)
    with pytest.raises(MemoryError):
        load_biggan(checkpoint(), 1.0, "cpu", compiled=True)(*latents(small[0], 2))


def test_a_configuration_reaches_the_network(checkpoint, monkeypatch):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(biggan, "load_biggan", lambda *args, **how: asked.update(how))
    load(BigGANGenerator(model=str(checkpoint())), "cpu")
    assert asked == {"precision": "float32", "compiled": False, "cuda_graphs": False}
    load(BigGANGenerator(model=str(checkpoint()), precision="float16", compile=True, cuda_graphs=True), "cpu")
    assert asked == {"precision": "float16", "compiled": True, "cuda_graphs": True}


def test_on_a_cpu_cuda_graphs_are_left_out(small, checkpoint):
    z, classes = latents(small[0], 4)
    directory = checkpoint()
    images = load_biggan(directory, 1.0, "cpu", cuda_graphs=True)(z, classes)
    assert torch.equal(images, load_biggan(directory, 1.0, "cpu")(z, classes))


GROUPS = ([8], [3, 5], [1, 1, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"compiled": True}, *ON_A_GPU])
def test_an_image_is_the_same_whatever_it_is_grouped_with(small, checkpoint, options):
    """As `genray.views.sources.generated` groups: always as many at once, the last of them padded."""
    device = "cuda" if "cuda_graphs" in options else "cpu"
    generator = load_biggan(checkpoint(), 1.0, device, **options)
    z, classes = latents(small[0], 8)
    found = []
    for sizes in GROUPS:
        images = []
        for start, size in zip(torch.tensor([0, *sizes]).cumsum(0).tolist(), sizes, strict=False):
            rows = torch.arange(start, start + 8).clamp(max=start + size - 1)
            images.append(generator(z[rows], classes[rows])[:size])
        found.append(torch.cat(images))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    if options == {"compiled": True}:
        mean, _, most = off(found[0], load_biggan(checkpoint(), 1.0, device)(z, classes))
        assert mean < 0.01
        assert most <= 1


@pytest.mark.parametrize("options", [pytest.param({"compiled": True}, marks=slow), *ON_A_GPU])
def test_two_processes_render_the_same_bytes(small, checkpoint, options):
    directory, device = checkpoint(), "cuda" if "cuda_graphs" in options else "cpu"
    code = (
        "import hashlib, sys, torch; from pathlib import Path; from genray.views.generators.biggan import load_biggan;"
        f"made = load_biggan(Path({str(directory)!r}), 0.5, {device!r}, **{options!r});"
        "z = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).clamp(-2, 2);"
        "print(hashlib.sha256(made(z, torch.arange(6)).cpu().numpy().tobytes()).hexdigest())"
    )
    told = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert told[0].stdout == told[1].stdout
    assert len(told[0].stdout.strip()) == 64


@cuda
def test_a_graph_renders_what_is_given_each_time_into_memory_of_its_own(small, checkpoint):
    config, directory = small[0], checkpoint()
    graphed, plain = (load_biggan(directory, 1.0, "cuda", cuda_graphs=on) for on in (True, False))
    z, classes = latents(config, 12)
    first = graphed(z[:6], classes[:6])
    second = graphed(z[6:], classes[6:])
    assert torch.equal(first, plain(z[:6], classes[:6]))
    assert torch.equal(second, plain(z[6:], classes[6:]))
    assert torch.equal(graphed(z[:4], classes[:4]), plain(z[:4], classes[:4]))
    assert sorted(graphed.render.graphs) == [4, 6]
    with pytest.raises(BadImages, match="1 of 6 images have pixels that are not finite, image 2 first"):
        graphed(z[:6].clone().index_fill_(0, torch.tensor([2]), torch.nan), classes[:6])
