"""A published BigGAN-deep checkpoint as the tensors that rendering needs, at any truncation.

Spectral norm is folded into the weights, and the doubling of the resolution into those of the convolution after it.
Only what is used of the last convolution is kept, 1x1 convolutions become the matrices that they are, and what the
batch norms multiply by and add is stacked, in the order in which they are applied. The statistics stay tables over the
truncation. `genray.generators.folded` keeps the result.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from genray.generators.checkpoints import Layout
from genray.settings import ConfigError


def fold(layout: Layout, path: Path) -> dict[str, Tensor]:
    """The tensors of `genray.generators.biggan.Network`, float32, and the tables of its norms.

    Of the norms, c channels in all, of a condition of d numbers (latent and class): `norms.means` and
    `norms.variances` `[n_stats, c]`; `norms.scale` and `norms.offset` `[c, d + 1]`, affine in the condition, the
    constant last.

    Args:
        layout: the network of the checkpoint's config.json.
        path: model.safetensors or pytorch_model.bin.

    Raises:
        ConfigError: the weights cannot be read, or are not exactly those of the network.
    """
    # Slow to import, and of no use once the result is kept.
    from pytorch_pretrained_biggan import BigGAN, BigGANConfig
    from pytorch_pretrained_biggan.model import BigGANBatchNorm, SelfAttn

    with torch.device("meta"):  # every number of it comes from the file
        model = BigGAN(BigGANConfig.from_dict(asdict(layout)))
    weights = _read(path)
    _compare(weights, model.state_dict(), path)
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    for module in list(model.modules()):
        if hasattr(module, "weight_orig"):
            nn.utils.remove_spectral_norm(module)

    source = model.generator
    found = {
        "classes": model.embeddings.weight.t(),
        "input.weight": source.gen_z.weight,
        "input.bias": source.gen_z.bias,
        "to_rgb.weight": source.conv_to_rgb.weight[:3],
        "to_rgb.bias": source.conv_to_rgb.bias[:3],
    }
    for i, layer in enumerate(source.layers):
        if isinstance(layer, SelfAttn):
            found[f"layers.{i}.query.weight"] = layer.snconv1x1_theta.weight.flatten(1)
            key_value = torch.cat([layer.snconv1x1_phi.weight, layer.snconv1x1_g.weight])
            found[f"layers.{i}.key_value.weight"] = key_value.flatten(1)
            found[f"layers.{i}.out.weight"] = layer.gamma * layer.snconv1x1_o_conv.weight.flatten(1)
        else:
            for j, conv in enumerate((layer.conv_0, layer.conv_1, layer.conv_2, layer.conv_3)):
                weight = _doubling(conv.weight) if layer.up_sample and j == 1 else conv.weight
                found[f"layers.{i}.convs.{j}.weight"] = weight.flatten(1) if j in (0, 3) else weight
                found[f"layers.{i}.convs.{j}.bias"] = conv.bias

    # The package's modules were made in the order in which they are applied.
    norms = [module for module in source.modules() if isinstance(module, BigGANBatchNorm)]
    found["norms.means"] = torch.cat([norm.running_means for norm in norms], 1)
    found["norms.variances"] = torch.cat([norm.running_vars for norm in norms], 1)
    scales, offsets = zip(*(_affine(norm, 2 * layout.z_dim) for norm in norms), strict=True)
    found["norms.scale"], found["norms.offset"] = torch.cat(scales), torch.cat(offsets)
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in found.items()}


def _doubling(weight: Tensor) -> Tensor:
    """A 3x3 convolution after doubling the resolution, as a transposed one of stride 2: its weights `[in, out, 4, 4]`.

    Each of the four copies of an input reaches 3x3 outputs; together they reach 4x4, with the sums of these weights.
    """
    reaching = weight.transpose(0, 1).flip(2, 3)
    return sum(F.pad(reaching, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1))  # type: ignore[return-value]


def _affine(norm: Any, condition: int) -> tuple[Tensor, Tensor]:
    """What a norm multiplies by and adds, `[channels, condition + 1]` each, to be applied to the condition and 1."""
    if norm.conditional:
        return F.pad(norm.scale.weight, (0, 1), value=1.0), F.pad(norm.offset.weight, (0, 1))
    return F.pad(norm.weight[:, None], (condition, 0)), F.pad(norm.bias[:, None], (condition, 0))


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
