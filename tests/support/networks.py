"""Small BigGAN-deep checkpoints made with the package itself: its key names, its layouts, its forward pass to match."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pytorch_pretrained_biggan import BigGAN, BigGANConfig
from pytorch_pretrained_biggan.model import BigGANBatchNorm
from safetensors.torch import save_file

# Blocks of the published networks: (doubles the resolution, input width, output width).
_128 = [(0, 16, 16), (1, 16, 16), (0, 16, 16), (1, 16, 8), (0, 8, 8), (1, 8, 4), (0, 4, 4), (1, 4, 2), (0, 2, 2)]
_256 = [*_128[:5], (1, 8, 8), (0, 8, 8), (1, 8, 4), (0, 4, 4), (1, 4, 2), (0, 2, 2)]
LAYERS = {
    32: [(0, 16, 16), (1, 16, 8), (0, 8, 8), (1, 8, 4), (0, 4, 4), (1, 4, 2), (0, 2, 1)],
    128: [*_128, (1, 2, 1)],
    256: [*_256, (1, 2, 1)],
    512: [*_256, (1, 2, 1), (0, 1, 1), (1, 1, 1)],
}


def network(size: int, width: int = 8, z_dim: int = 16, num_classes: int = 7) -> dict[str, Any]:
    """The config.json of a network with the published layout of `size` pixels, narrower."""
    layers = [[bool(up), a, b] for up, a, b in LAYERS[size]]
    return {
        "output_dim": size,
        "z_dim": z_dim,
        "class_embed_dim": z_dim,
        "channel_width": width,
        "num_classes": num_classes,
        "layers": layers,
        "attention_layer_position": 4 if size == 32 else 8,
        "eps": 1e-4,
        "n_stats": 51,
    }


def random_model(config: dict[str, Any], seed: int = 0, settle: bool = True) -> BigGAN:
    """The package's network in eval mode with random weights and statistics that differ for every truncation.

    Spectral norm's singular vectors settle in a few training-mode passes; so do the statistics, each norm's being
    those of its own input, which keeps the pixels between black and white.
    """
    torch.manual_seed(seed)
    model = BigGAN(BigGANConfig.from_dict(config))
    norms = [module for module in model.modules() if isinstance(module, BigGANBatchNorm)]
    torch.nn.init.uniform_(model.generator.bn.weight, 0.5, 1.5)
    torch.nn.init.normal_(model.generator.bn.bias, 0, 0.3)
    for module in model.modules():
        if hasattr(module, "gamma"):
            torch.nn.init.constant_(module.gamma, 0.7)

    def adopt(norm: BigGANBatchNorm, inputs: tuple[Any, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
        norm.running_means.copy_(mean + 0.1 * variance.sqrt() * torch.randn_like(norm.running_means))
        norm.running_vars.copy_((variance + 1e-3) * (0.7 + 0.6 * torch.rand_like(norm.running_vars)))

    hooks = [norm.register_forward_pre_hook(adopt) for norm in norms]
    z, classes = latents(config, 4 if settle else 1)
    with torch.no_grad():
        for _ in range(3 if settle else 1):
            model(z, one_hot(classes, config), 1.0)
    for hook in hooks:
        hook.remove()
    return model.eval().requires_grad_(False)


def latents(config: dict[str, Any], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(count, config["z_dim"], generator=generator).clamp(-2, 2)
    return z, torch.randint(config["num_classes"], (count,), generator=generator)


def one_hot(classes: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    return torch.nn.functional.one_hot(classes, config["num_classes"]).float()


def write(directory: Path, config: dict[str, Any], state: dict[str, torch.Tensor], legacy: bool = False) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if legacy:  # how the published files of 2019 were written
        torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, directory / "model.safetensors")
    return directory
