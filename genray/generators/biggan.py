"""BigGAN-deep for rendering: the published network with everything that is constant computed once.

Brock, Donahue, Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (ICLR 2019), in the
checkpoint format of pytorch-pretrained-biggan. Against that package's forward pass, with equal pixels:

- spectral norm is folded into the weights;
- the last convolution computes the 3 channels that are kept;
- every batch norm is one multiply-add: for one truncation its statistics are constants, and what is left is affine in
  the condition (latent and class), so a single matrix product gives the scales and offsets of all layers;
- doubling the resolution and the 3x3 convolution after it are one transposed convolution, with fewer than half of the
  multiplications; on the skip path it is an addition to each of four positions;
- a class is looked up, not multiplied out of a one-hot vector;
- 1x1 convolutions are products of matrices, whose last bits hardly ever depend on the number of threads.

Lower precision, compilation and CUDA graphs come on top, where they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genray.generators.checkpoints import Layout, read_layout
from genray.generators.folded import folded
from genray.generators.graphs import Graphed
from genray.generators.pixels import refuse, to_bytes
from genray.settings import ConfigError

TF32 = "tf32"
Affines = Iterator[tuple[Tensor, Tensor]]
Rendering = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def load_biggan(
    directory: Path,
    truncation: float,
    device: torch.device | str,
    *,
    precision: str = "float32",
    compiled: bool = False,
    cuda_graphs: bool = False,
) -> BigGANDeep:
    """The generator of a directory with config.json and model.safetensors or pytorch_model.bin.

    Args:
        directory: as found by `genray.generators.checkpoints.resolve`.
        truncation: in (0, 1]; chooses the batch-norm statistics. The latents must have been scaled by it already.
        device: where it renders.
        precision: name of a torch dtype, that of weights and activations; or `tf32`, which is float32 with products
            of fewer bits where a GPU has them.
        compiled: whether torch.compile makes one graph of the network, for each number of images.
        cuda_graphs: whether the kernels are launched as a CUDA graph, one for each number of images; without effect on
            another device.

    Raises:
        ConfigError: the weights cannot be read, or are not exactly those of the network in config.json.
    """
    layout = read_layout(directory)
    dtype = getattr(torch, "float32" if precision == TF32 else precision)
    network = Network(layout, folded(directory, layout), truncation, dtype)
    return BigGANDeep(network, layout, torch.device(device), compiled, cuda_graphs, tf32=precision == TF32)


class BigGANDeep:
    """The generator of genray's protocol (`genray.generators.Generator`) around a network."""

    def __init__(
        self,
        network: Network,
        layout: Layout,
        device: torch.device,
        compiled: bool = False,
        cuda_graphs: bool = False,
        tf32: bool = False,
    ):
        self.network = network.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self.device, self.tf32 = device, tf32
        self.image_size, self.latent_dim, self.num_classes = layout.output_dim, layout.z_dim, layout.num_classes
        self.render: Rendering = self.network.render
        if compiled:
            self.render = _compiled(self.render)
        if cuda_graphs and device.type == "cuda":
            self.render = Graphed(self.render)

    @torch.inference_mode()
    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """uint8 images `[n, 3, H, W]` of latents `[n, d]` and classes `[n]`; no seeds are needed.

        Raises:
            BadImages: a pixel is not finite.
            ConfigError: the network was to be compiled, and nothing here can.
        """
        images, finite = self.unchecked(z, labels, seeds)
        refuse(finite)
        return images

    def differentiable(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """float32 images in [-1, 1] with their gradient in z; neither compiled nor a CUDA graph."""
        if labels is None:
            raise ValueError("BigGAN renders classes: labels must be given")
        with same_kernels(self.device, self.tf32):
            return self.network(z.to(self.device, torch.float32), labels.to(self.device))

    @torch.inference_mode()
    def unchecked(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same images, and which of them are finite, bool `[n]`, without waiting for the device."""
        if labels is None:
            raise ValueError("BigGAN renders classes: labels must be given")
        with same_kernels(self.device, self.tf32):
            return self.render(z.to(self.device, torch.float32), labels.to(self.device))


class Network(nn.Module):
    """BigGAN-deep at one truncation.

    Args:
        layout: the network of a config.json.
        tensors: as `genray.generators.folding.fold` gives them; they are not copied.
        truncation: in (0, 1].
        precision: of weights and activations. What the norms multiply by and add is computed in float32.
    """

    def __init__(
        self,
        layout: Layout,
        tensors: Mapping[str, Tensor],
        truncation: float,
        precision: torch.dtype = torch.float32,
    ):
        super().__init__()
        width, condition = layout.channel_width, 2 * layout.z_dim
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("norms.")}
        weights["norms_weight"], weights["norms_bias"] = _affine(tensors, layout.eps, truncation)
        with torch.device("meta"):
            self.classes = nn.Parameter(torch.empty(layout.num_classes, condition // 2))
            self.input = nn.Linear(condition, 4 * 4 * 16 * width)
            self.layers = nn.ModuleList()
            self.widths: list[int] = []
            for i, (up, wide, narrow) in enumerate(layout.layers):
                if i == layout.attention_layer_position:
                    self.layers.append(Attention(width * wide))
                block = Block(width * wide, width * narrow, up)
                self.layers.append(block)
                self.widths += block.widths
            self.widths.append(width)
            self.to_rgb = nn.Conv2d(width, 3, 3, padding=1)
            self.norms_weight = nn.Parameter(torch.empty(2 * sum(self.widths), condition))
            self.norms_bias = nn.Parameter(torch.empty(2 * sum(self.widths)))
        self.load_state_dict(weights, assign=True)
        for module in (self.input, self.layers, self.to_rgb):
            module.to(precision)
        self.precision = precision

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """float32 images in [-1, 1], `[n, 3, H, W]`, of latents `[n, d]` and classes `[n]`; differentiable in z.

        What overflowed on the way is NaN, although tanh would make it an ordinary white or black.
        """
        condition = torch.cat([z, F.embedding(labels, self.classes)], 1)
        affine = F.linear(condition, self.norms_weight, self.norms_bias)
        scales, offsets = affine[:, :, None, None].chunk(2, 1)
        affines = zip(torch.split(scales, self.widths, 1), torch.split(offsets, self.widths, 1), strict=True)
        # The input layer's numbers are ordered height, width, channel, as in the original TensorFlow network.
        x = self.input(condition.to(self.precision)).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)
        for layer in self.layers:
            x = layer(x, affines)
        x = self.to_rgb(_activate(x, affines)).float()
        return torch.where(x.isfinite(), torch.tanh(x), torch.nan)

    def render(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The images as bytes, and which of them are finite; see `genray.generators.pixels.to_bytes`."""
        return to_bytes(self(z, labels))


class Pointwise(nn.Linear):
    """A 1x1 convolution of `[n, c, h, w]` with the channels innermost."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Residual bottleneck block: 1x1, 3x3, 3x3 and 1x1 convolutions, each after a conditional norm and ReLU.

    The skip path drops the channels that the block drops, and both paths double the resolution where the block does:
    before the first 3x3 convolution, which `genray.generators.folding` has made a transposed one for that.
    """

    def __init__(self, inputs: int, outputs: int, up: bool):
        super().__init__()
        middle = inputs // 4
        self.widths = [inputs, middle, middle, middle]
        first = nn.ConvTranspose2d(middle, middle, 4, 2, 1) if up else nn.Conv2d(middle, middle, 3, padding=1)
        second = nn.Conv2d(middle, middle, 3, padding=1)
        self.convs = nn.ModuleList([Pointwise(inputs, middle), first, second, Pointwise(middle, outputs)])
        self.up, self.channels = up, outputs

    def forward(self, x: Tensor, affines: Affines) -> Tensor:
        skip = x[:, : self.channels]
        for conv in self.convs:
            x = conv(_activate(x, affines))
        return _add_doubled(x, skip) if self.up else x.add_(skip)


class Attention(nn.Module):
    """Self-attention over positions, with keys and values of half the resolution (Zhang et al., arXiv 1805.08318)."""

    def __init__(self, channels: int):
        super().__init__()
        self.keys = channels // 8
        self.query = Pointwise(channels, self.keys, bias=False)
        self.key_value = Pointwise(channels, self.keys + channels // 2, bias=False)
        self.out = Pointwise(channels // 2, channels, bias=False)

    def forward(self, x: Tensor, affines: Affines) -> Tensor:
        pooled = F.max_pool2d(self.key_value(x), 2)
        key, value = _positions(pooled[:, : self.keys]), _positions(pooled[:, self.keys :])
        query, pad = _positions(self.query(x)), value.shape[-1] - self.keys
        if not x.is_cuda and pad > 0:  # a CPU's fused attention wants all equally wide; zeros add nothing
            query, key = F.pad(query, (0, pad)), F.pad(key, (0, pad))
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return torch.add(x, self.out(attended.transpose(2, 3).reshape(x.shape[0], -1, *x.shape[2:])))


def statistics(rows: Tensor, truncation: float) -> Tensor:
    """Batch-norm statistics `[c]` at a truncation, from rows `[n, c]` that stand for k / (n - 1): exact on that grid,
    linear between.

    The package interpolates backwards: it gives each of the two neighbours the other's weight. It does so on the grid
    too, where `truncation / (1 / 50)` is not a whole number in floating point, and so takes the row above at .14, .28
    and .56 and the row below at .58 and .94. genray takes the right ones.
    """
    position = truncation * (len(rows) - 1)
    nearest = round(position)
    if abs(position - nearest) < 1e-6:
        return rows[nearest]
    low = int(position)
    return torch.lerp(rows[low], rows[low + 1], position - low)


def _affine(tensors: Mapping[str, Tensor], eps: float, truncation: float) -> tuple[Tensor, Tensor]:
    """All norms at a truncation, as a matrix and a vector that turn a condition into their scales, then offsets."""
    mean = statistics(tensors["norms.means"], truncation)[:, None]
    rate = (statistics(tensors["norms.variances"], truncation)[:, None] + eps).rsqrt()
    scale, offset = tensors["norms.scale"], tensors["norms.offset"]
    weight, bias = torch.cat([rate * scale, offset - mean * rate * scale]).tensor_split([-1], dim=1)
    return weight.contiguous(), bias.flatten()


def _activate(x: Tensor, affines: Affines) -> Tensor:
    """Scale and offset, in float32 whatever the precision, and ReLU; when rendering without memory in between."""
    scale, offset = next(affines)
    bare = torch.is_grad_enabled() or torch.compiler.is_exporting()  # `out` has no gradient, nor has a program with it
    out = None if bare else torch.empty_like(x)
    return torch.addcmul(offset, x, scale, out=out).relu_().to(x.dtype)


def _add_doubled(x: Tensor, skip: Tensor) -> Tensor:
    """`x` `[n, c, 2h, 2w]`, to which `skip` `[n, c, h, w]` in twice the resolution is added in place."""
    height, width = skip.shape[2:]
    places = x.permute(0, 2, 3, 1).unflatten(2, (width, 2)).unflatten(1, (height, 2))
    places.add_(skip.permute(0, 2, 3, 1)[:, :, None, :, None])
    return x


def _positions(x: Tensor) -> Tensor:
    """`[n, c, h, w]` to one attention head over positions, `[n, 1, h * w, c]`."""
    return x.flatten(2).transpose(1, 2)[:, None]


@contextmanager
def same_kernels(device: torch.device, tf32: bool) -> Iterator[None]:
    """Keep a GPU from choosing kernels by their time, or such as add up in another order each time, or round."""
    if device.type != "cuda":
        yield
        return
    cudnn, products = torch.backends.cudnn, "tf32" if tf32 else "ieee"
    wanted: list[tuple[Any, str, Any]] = [
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
        (cudnn.conv, "fp32_precision", products),  # type: ignore[attr-defined]
        (torch.backends.cuda.matmul, "fp32_precision", products),
    ]
    before = [getattr(owner, name) for owner, name, _ in wanted]
    for owner, name, value in wanted:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(wanted, before, strict=True):
            setattr(owner, name, value)


def _compiled(render: Rendering) -> Rendering:
    """The same through torch.compile. Parameters are arguments of its graph, so another truncation is none of its."""
    compiled = torch.compile(render, fullgraph=True, dynamic=False)

    def call(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return compiled(z, labels)
        except Exception as error:
            cause = getattr(error, "inner_exception", error)
            if type(cause).__name__ not in NO_COMPILER:
                raise
            reason = str(cause).partition("\n")[0]
            raise ConfigError(
                f"generator.compile must be false where torch finds no compiler, got true ({reason}); install a C++ "
                "compiler, or Triton for a GPU"
            ) from None

    return call


NO_COMPILER = ("InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton")
"""Errors of torch._inductor.exc that tell so."""
