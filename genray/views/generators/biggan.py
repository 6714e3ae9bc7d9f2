"""BigGAN-deep optimised for rendering: everything that is constant is computed once.

Brock, Donahue, Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (ICLR 2019), in the
checkpoint format of pytorch-pretrained-biggan. Differences from that package's forward pass, at equal pixels:

- spectral norm is folded into the weights;
- the last convolution computes only the 3 channels that are kept;
- each batch norm is one multiply-add: at a fixed truncation its statistics are constant and the rest is affine in the
  condition (latent and class), so a single matrix product computes the scales and offsets of all layers;
- upsampling and the 3x3 convolution after it are one transposed convolution with fewer than half the multiplications;
  on the skip path, upsampling is an addition to each of four positions;
- the class embedding is a lookup rather than a product with a one-hot vector;
- 1x1 convolutions are matrix products, whose last bits hardly ever depend on the number of threads.

Lower precision, compilation and CUDA graphs are options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genray.config.errors import ConfigError
from genray.views.generators.checkpoints import Layout, read_layout
from genray.views.generators.cuda_graphs import CudaGraphed
from genray.views.generators.fold_cache import folded
from genray.views.generators.quantise import check_finite, to_bytes

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
    """The generator in a directory with config.json and model.safetensors or pytorch_model.bin.

    Args:
        directory: as returned by `genray.views.generators.checkpoints.resolve`.
        truncation: in (0, 1]; selects the batch-norm statistics. Latents must be scaled by it already.
        device: where it renders.
        precision: torch dtype of weights and activations by name; or `tf32`: float32, with TF32 products on GPUs that
            have them.
        compiled: whether to use torch.compile; compiles once for each batch size.
        cuda_graphs: whether to replay a CUDA graph, one for each batch size; ignored on other devices.

    Raises:
        ConfigError: the weights cannot be read, or do not match the network in config.json exactly.
    """
    layout = read_layout(directory)
    dtype = getattr(torch, "float32" if precision == TF32 else precision)
    network = Network(layout, folded(directory, layout), truncation, dtype)
    return BigGANDeep(network, layout, torch.device(device), compiled, cuda_graphs, tf32=precision == TF32)


class BigGANDeep:
    """A `genray.views.types.Generator` around a `Network`."""

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
            self.render = CudaGraphed(self.render)

    @torch.inference_mode()
    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """uint8 images `[n, 3, H, W]` of latents `[n, d]` and classes `[n]`; seeds are ignored.

        Raises:
            BadImages: a pixel is not finite.
            ConfigError: `compiled` was given and torch finds no compiler.
        """
        images, finite = self.unchecked(z, labels, seeds)
        check_finite(finite)
        return images

    def differentiable(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """float32 images in [-1, 1] with a gradient with respect to z; neither compiled nor a CUDA graph."""
        if labels is None:
            raise ValueError("BigGAN renders classes: labels must be given")
        with deterministic_kernels(self.device, self.tf32):
            return self.network(z.to(self.device, torch.float32), labels.to(self.device))

    @torch.inference_mode()
    def unchecked(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same images, and which of them are finite, bool `[n]`, without waiting for the device."""
        if labels is None:
            raise ValueError("BigGAN renders classes: labels must be given")
        with deterministic_kernels(self.device, self.tf32):
            return self.render(z.to(self.device, torch.float32), labels.to(self.device))


class Network(nn.Module):
    """BigGAN-deep at one truncation.

    Args:
        layout: the network described by a config.json.
        tensors: as returned by `genray.views.generators.fold.fold`; they are not copied.
        truncation: in (0, 1].
        precision: of weights and activations. Scales and offsets of the norms are computed in float32.
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
                block = ResidualBlock(width * wide, width * narrow, up)
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

        Overflows become NaN, which tanh alone would turn into ordinary white or black.
        """
        condition = torch.cat([z, F.embedding(labels, self.classes)], 1)
        affine = F.linear(condition, self.norms_weight, self.norms_bias)
        scales, offsets = affine[:, :, None, None].chunk(2, 1)
        affines = zip(torch.split(scales, self.widths, 1), torch.split(offsets, self.widths, 1), strict=True)
        # The input layer's outputs are ordered height, width, channel, as in the original TensorFlow network.
        x = self.input(condition.to(self.precision)).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)
        for layer in self.layers:
            x = layer(x, affines)
        x = self.to_rgb(activate(x, affines)).float()
        return torch.where(x.isfinite(), torch.tanh(x), torch.nan)

    def render(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The images as bytes, and which of them are finite; see `genray.views.generators.quantise.to_bytes`."""
        return to_bytes(self(z, labels))


class Pointwise(nn.Linear):
    """A 1x1 convolution of `[n, c, h, w]` as a matrix product over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Residual bottleneck block: 1x1, 3x3, 3x3 and 1x1 convolutions, each after a conditional norm and ReLU.

    The skip path drops the channels that the block drops. If the block upsamples, so do both paths: the first 3x3
    convolution is then a transposed one (see `genray.views.generators.fold`).
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
            x = conv(activate(x, affines))
        return _add_doubled(x, skip) if self.up else x.add_(skip)


class Attention(nn.Module):
    """Self-attention over positions, with keys and values at half the resolution (Zhang et al., arXiv 1805.08318)."""

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
        if not x.is_cuda and pad > 0:  # fused attention on a CPU needs equal widths; zeros add nothing
            query, key = F.pad(query, (0, pad)), F.pad(key, (0, pad))
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return torch.add(x, self.out(attended.transpose(2, 3).reshape(x.shape[0], -1, *x.shape[2:])))


def statistics(rows: Tensor, truncation: float) -> Tensor:
    """Batch-norm statistics `[c]` at a truncation, from rows `[n, c]` for the truncations k / (n - 1): exact on that
    grid, linear in between.

    The package interpolates backwards: it gives each of the two neighbours the other's weight. It does so even on the
    grid if `truncation / (1 / 50)` is not a whole number in floating point, and takes the row above at .14, .28 and .56
    and the row below at .58 and .94. genray takes the right ones.
    """
    position = truncation * (len(rows) - 1)
    nearest = round(position)
    if abs(position - nearest) < 1e-6:
        return rows[nearest]
    low = int(position)
    return torch.lerp(rows[low], rows[low + 1], position - low)


def _affine(tensors: Mapping[str, Tensor], eps: float, truncation: float) -> tuple[Tensor, Tensor]:
    """All norms at a truncation: the matrix and vector that map a condition to their scales, followed by offsets."""
    mean = statistics(tensors["norms.means"], truncation)[:, None]
    rate = (statistics(tensors["norms.variances"], truncation)[:, None] + eps).rsqrt()
    scale, offset = tensors["norms.scale"], tensors["norms.offset"]
    weight, bias = torch.cat([rate * scale, offset - mean * rate * scale]).tensor_split([-1], dim=1)
    return weight.contiguous(), bias.flatten()


def activate(x: Tensor, affines: Affines) -> Tensor:
    """Scale and offset, in float32 whatever the precision, then ReLU; without temporary memory when rendering."""
    scale, offset = next(affines)
    no_out = torch.is_grad_enabled() or torch.compiler.is_exporting()  # `out=` supports neither gradients nor export
    out = None if no_out else torch.empty_like(x)
    return torch.addcmul(offset, x, scale, out=out).relu_().to(x.dtype)


def _add_doubled(x: Tensor, skip: Tensor) -> Tensor:
    """Add `skip` `[n, c, h, w]`, upsampled by two, to `x` `[n, c, 2h, 2w]` in place."""
    height, width = skip.shape[2:]
    pixels = x.permute(0, 2, 3, 1).unflatten(2, (width, 2)).unflatten(1, (height, 2))
    pixels.add_(skip.permute(0, 2, 3, 1)[:, :, None, :, None])
    return x


def _positions(x: Tensor) -> Tensor:
    """`[n, c, h, w]` to one attention head over positions, `[n, 1, h * w, c]`."""
    return x.flatten(2).transpose(1, 2)[:, None]


@contextmanager
def deterministic_kernels(device: torch.device, tf32: bool) -> Iterator[None]:
    """Keep a GPU from kernels that are chosen by timing, sum in a varying order or (unless `tf32`) use TF32."""
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
    """`render` through torch.compile. Parameters are graph inputs: other truncations compile to the same graph."""
    compiled = torch.compile(render, fullgraph=True, dynamic=False)

    def call(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return compiled(z, labels)
        except Exception as error:
            cause = getattr(error, "inner_exception", error)
            if type(cause).__name__ not in NO_COMPILER_ERRORS:
                raise
            reason = str(cause).partition("\n")[0]
            raise ConfigError(
                f"generator.compile must be false unless torch finds a compiler, got true ({reason}); install a C++ "
                "compiler, or Triton for a GPU"
            ) from None

    return call


NO_COMPILER_ERRORS = ("InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton")
"""Errors of torch._inductor.exc that mean a missing compiler."""
