"""Folds a published BigGAN-deep checkpoint into the tensors that rendering needs, for any truncation.

Spectral norm is folded into the weights, and upsampling into the convolution that follows it. Only the used channels of
the last convolution are kept, 1x1 convolutions become matrices, and scales and offsets of the batch norms are stacked
in the order in which they are applied. Their statistics stay tables over the truncation.
`genray.views.generators.fold_cache` caches the result.
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

from genray.config.errors import ConfigError
from genray.views.generators.checkpoints import Layout


def fold(layout: Layout, path: Path) -> dict[str, Tensor]:
    """The tensors of `genray.views.generators.biggan.Network`, float32, and the tables of its norms.

    For norms of c channels in total and a condition (latent and class) of d numbers: `norms.means` and
    `norms.variances` are `[n_stats, c]`; `norms.scale` and `norms.offset` are `[c, d + 1]`, affine in the condition,
    with the constant last.

    Args:
        layout: the network of the checkpoint's config.json.
        path: model.safetensors or pytorch_model.bin.

    Raises:
        ConfigError: the weights cannot be read, or do not match the network exactly.
    """
    # Slow to import, and not needed once the result is cached.
    from pytorch_pretrained_biggan import BigGAN, BigGANConfig
    from pytorch_pretrained_biggan.model import BigGANBatchNorm, SelfAttn

    with torch.device("meta"):  # all values come from the file
        model = BigGAN(BigGANConfig.from_dict(asdict(layout)))
    weights = _read(path)
    _compare(weights, model.state_dict(), path)
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    for module in list(model.modules()):
        if hasattr(module, "weight_orig"):
            nn.utils.remove_spectral_norm(module)

    source = model.generator
    tensors = {
        "classes": model.embeddings.weight.t(),
        "input.weight": source.gen_z.weight,
        "input.bias": source.gen_z.bias,
        "to_rgb.weight": source.conv_to_rgb.weight[:3],
        "to_rgb.bias": source.conv_to_rgb.bias[:3],
    }
    for i, layer in enumerate(source.layers):
        if isinstance(layer, SelfAttn):
            tensors[f"layers.{i}.query.weight"] = layer.snconv1x1_theta.weight.flatten(1)
            key_value = torch.cat([layer.snconv1x1_phi.weight, layer.snconv1x1_g.weight])
            tensors[f"layers.{i}.key_value.weight"] = key_value.flatten(1)
            tensors[f"layers.{i}.out.weight"] = layer.gamma * layer.snconv1x1_o_conv.weight.flatten(1)
        else:
            for j, conv in enumerate((layer.conv_0, layer.conv_1, layer.conv_2, layer.conv_3)):
                weight = _upsampling(conv.weight) if layer.up_sample and j == 1 else conv.weight
                tensors[f"layers.{i}.convs.{j}.weight"] = weight.flatten(1) if j in (0, 3) else weight
                tensors[f"layers.{i}.convs.{j}.bias"] = conv.bias

    # The package creates its modules in the order in which they are applied.
    norms = [module for module in source.modules() if isinstance(module, BigGANBatchNorm)]
    tensors["norms.means"] = torch.cat([norm.running_means for norm in norms], 1)
    tensors["norms.variances"] = torch.cat([norm.running_vars for norm in norms], 1)
    scales, offsets = zip(*(_affine(norm, 2 * layout.z_dim) for norm in norms), strict=True)
    tensors["norms.scale"], tensors["norms.offset"] = torch.cat(scales), torch.cat(offsets)
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _upsampling(weight: Tensor) -> Tensor:
    """Weights `[in, out, 4, 4]` of the transposed convolution of stride 2 that equals upsampling before this 3x3 one.

    Each of the four copies of an input contributes to 3x3 outputs; together they contribute to 4x4, with the sums of
    these weights.
    """
    kernel = weight.transpose(0, 1).flip(2, 3)
    return sum(F.pad(kernel, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1))  # type: ignore[return-value]


def _affine(norm: Any, condition: int) -> tuple[Tensor, Tensor]:
    """A norm's scales and offsets as linear maps `[channels, condition + 1]` of the condition followed by 1."""
    if norm.conditional:
        return F.pad(norm.scale.weight, (0, 1), value=1.0), F.pad(norm.offset.weight, (0, 1))
    return F.pad(norm.weight[:, None], (condition, 0)), F.pad(norm.bias[:, None], (condition, 0))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        return {key: value.float() for key, value in tensors.items()}
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
            "replace it, it may be truncated"
        ) from None


def _compare(weights: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    shared = expected.keys() & weights.keys()
    problems = {
        "missing": [key for key in expected if key not in weights],
        "unexpected": [key for key in weights if key not in expected],
        "wrong shape": [
            f"{key} {list(weights[key].shape)} for {list(expected[key].shape)}"
            for key in expected
            if key in shared and weights[key].shape != expected[key].shape
        ],
    }
    differences = [
        f"{len(keys)} {problem}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for problem, keys in problems.items()
        if keys
    ]
    if differences:
        folded = any(f"{key}_orig" in expected for key in problems["unexpected"])
        raise ConfigError(
            f"{path} must hold the network of its config.json, got {'; '.join(differences)}"
            + ("; its spectral norm is already folded, use the checkpoint as it was published" if folded else "")
        )
