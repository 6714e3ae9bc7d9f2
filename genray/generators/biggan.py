"""BigGAN-deep for rendering: the published network with everything that is constant computed once.

Brock, Donahue, Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (ICLR 2019), in the
checkpoint format of pytorch-pretrained-biggan. Against that package's forward pass, with equal pixels:

- spectral norm is folded into the weights;
- the last convolution computes the 3 channels that are kept;
- every batch norm is one multiply-add: for one truncation its statistics are constants, and what is left is affine in
  the condition (latent and class), so a single matrix product gives the scales and offsets of all layers;
- a class is looked up, not multiplied out of a one-hot vector.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from pytorch_pretrained_biggan import BigGAN, BigGANConfig
from pytorch_pretrained_biggan.model import BigGANBatchNorm, GenBlock, SelfAttn
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from genray.generators.checkpoints import Layout, read_layout, weights_file
from genray.generators.pixels import quantise
from genray.settings import ConfigError

Affines = Iterator[tuple[Tensor, Tensor]]


def load_biggan(directory: Path, truncation: float, device: torch.device | str) -> BigGANDeep:
    """The generator of a directory with config.json and model.safetensors or pytorch_model.bin.

    Args:
        directory: as found by `genray.generators.checkpoints.resolve`.
        truncation: in (0, 1]; chooses the batch-norm statistics. The latents must have been scaled by it already.
        device: where it renders.

    Raises:
        ConfigError: the weights cannot be read, or are not exactly those of the network in config.json.
    """
    layout, path = read_layout(directory), weights_file(directory)
    model = BigGAN(BigGANConfig.from_dict(asdict(layout)))
    weights = _read(path)
    _compare(weights, model.state_dict(), path)
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    for module in list(model.modules()):
        if hasattr(module, "weight_orig"):
            nn.utils.remove_spectral_norm(module)
    return BigGANDeep(Network(model, truncation), layout, torch.device(device))


class BigGANDeep:
    """The generator of genray's protocol (`genray.generators.Generator`) around a network."""

    def __init__(self, network: Network, layout: Layout, device: torch.device):
        self.network = network.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self.device = device
        self.image_size, self.latent_dim, self.num_classes = layout.output_dim, layout.z_dim, layout.num_classes

    @torch.inference_mode()
    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """uint8 images `[n, 3, H, W]` of latents `[n, d]` and classes `[n]`; no seeds are needed.

        Raises:
            BadImages: a pixel is not finite.
        """
        if labels is None:
            raise ValueError("BigGAN renders classes: labels must be given")
        images = self.network(z.to(self.device, torch.float32), labels.to(self.device))
        return quantise(images).contiguous()


class Network(nn.Module):
    """BigGAN-deep at one truncation, built from the package's model without spectral norm."""

    def __init__(self, model: BigGAN, truncation: float):
        super().__init__()
        source = model.generator
        self.classes = nn.Parameter(model.embeddings.weight.t().contiguous())  # [classes, d]
        self.input = source.gen_z
        self.layers = nn.ModuleList(
            Attention(layer) if isinstance(layer, SelfAttn) else Block(layer) for layer in source.layers
        )
        self.to_rgb = _with(source.conv_to_rgb, source.conv_to_rgb.weight[:3], source.conv_to_rgb.bias[:3])

        # In the order in which the layers take them; the package's modules were made in that order too.
        norms = [module for module in source.modules() if isinstance(module, BigGANBatchNorm)]
        self.widths = [norm.num_features for norm in norms]
        scales, offsets = zip(*(_affine(norm, truncation, 2 * model.config.z_dim) for norm in norms), strict=True)
        weight, bias = torch.cat(scales + offsets).tensor_split([-1], dim=1)
        self.norms_weight, self.norms_bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.flatten())

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """float32 images in [-1, 1], `[n, 3, H, W]`, of latents `[n, d]` and classes `[n]`; differentiable in z."""
        condition = torch.cat([z, F.embedding(labels, self.classes)], 1)
        affine = F.linear(condition, self.norms_weight, self.norms_bias)
        scales, offsets = affine[:, :, None, None].chunk(2, 1)
        affines = zip(torch.split(scales, self.widths, 1), torch.split(offsets, self.widths, 1), strict=True)
        # The input layer's numbers are ordered height, width, channel, as in the original TensorFlow network.
        x = self.input(condition).view(len(z), 4, 4, -1).permute(0, 3, 1, 2)
        for layer in self.layers:
            x = layer(x, affines)
        return torch.tanh(self.to_rgb(_activate(x, affines)))


class Block(nn.Module):
    """Residual bottleneck block: 1x1, 3x3, 3x3 and 1x1 convolutions, each after a conditional norm and ReLU.

    The skip path drops the channels that the block drops, and both paths double the resolution where the block does.
    """

    def __init__(self, source: GenBlock):
        super().__init__()
        self.convs = nn.ModuleList([source.conv_0, source.conv_1, source.conv_2, source.conv_3])
        self.up, self.channels = source.up_sample, source.conv_3.out_channels

    def forward(self, x: Tensor, affines: Affines) -> Tensor:
        skip = x[:, : self.channels]
        for i, conv in enumerate(self.convs):
            x = _activate(x, affines)
            if self.up and i == 1:
                x = F.interpolate(x, scale_factor=2)
            x = conv(x)
        return x + (F.interpolate(skip, scale_factor=2) if self.up else skip)


class Attention(nn.Module):
    """Self-attention over positions, with keys and values of half the resolution (Zhang et al., arXiv 1805.08318)."""

    def __init__(self, source: SelfAttn):
        super().__init__()
        key, value, out = source.snconv1x1_phi, source.snconv1x1_g, source.snconv1x1_o_conv
        self.query, self.keys = source.snconv1x1_theta, key.out_channels
        self.key_value = _with(key, torch.cat([key.weight, value.weight]))
        self.out = _with(out, source.gamma * out.weight)

    def forward(self, x: Tensor, affines: Affines) -> Tensor:
        pooled = F.max_pool2d(self.key_value(x), 2)
        key, value = _positions(pooled[:, : self.keys]), _positions(pooled[:, self.keys :])
        attended = F.scaled_dot_product_attention(_positions(self.query(x)), key, value, scale=1.0)
        return torch.add(x, self.out(attended.transpose(2, 3).reshape(len(x), -1, *x.shape[2:])))


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


def _affine(norm: BigGANBatchNorm, truncation: float, condition: int) -> tuple[Tensor, Tensor]:
    """A norm as `x * (S @ [c, 1]) + O @ [c, 1]` of the condition c: S and O, `[channels, condition + 1]`."""
    mean = statistics(norm.running_means, truncation)[:, None]
    rate = (statistics(norm.running_vars, truncation)[:, None] + norm.eps).rsqrt()
    if norm.conditional:
        scale = torch.cat([norm.scale.weight, torch.ones_like(mean)], 1)
        offset = torch.cat([norm.offset.weight, torch.zeros_like(mean)], 1)
    else:
        scale = F.pad(norm.weight[:, None], (condition, 0))
        offset = F.pad(norm.bias[:, None], (condition, 0))
    return rate * scale, offset - mean * rate * scale


def _activate(x: Tensor, affines: Affines) -> Tensor:
    scale, offset = next(affines)
    return torch.addcmul(offset, x, scale).relu_()


def _positions(x: Tensor) -> Tensor:
    """`[n, c, h, w]` to one attention head over positions, `[n, 1, h * w, c]`."""
    return x.flatten(2).transpose(1, 2)[:, None]


def _with(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """The same convolution with other weights, and as many outputs as they have."""
    conv.weight, conv.out_channels = nn.Parameter(weight.clone()), len(weight)
    conv.bias = None if bias is None else nn.Parameter(bias.clone())
    return conv


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        return {key: value.float() for key, value in found.items()}
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        AttributeError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{path} must be a readable checkpoint, got {path.stat().st_size} bytes ({reason}); "
            "replace it, it may have been cut short"
        ) from None


def _compare(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    shared = wanted.keys() & found.keys()
    problems = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in wanted],
        "wrong shape": [
            f"{key} {list(found[key].shape)} for {list(wanted[key].shape)}"
            for key in wanted
            if key in shared and found[key].shape != wanted[key].shape
        ],
    }
    told = [
        f"{len(keys)} {problem}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for problem, keys in problems.items()
        if keys
    ]
    if told:
        folded = any(f"{key}_orig" in wanted for key in problems["unexpected"])
        raise ConfigError(
            f"{path} must hold the network of its config.json, got {'; '.join(told)}"
            + ("; its spectral norm is folded already, give the checkpoint as it was published" if folded else "")
        )
