"""Train the generator that ships inside genray, and write its report.

    python jobs/train_embedded_generator.py [--out DIR] [--steps N] [--seed S]

Everything is learned from 1 000 handwritten digits (`genray.probes.scenes`, split "train"); 200 others ("val") check
the quality classifier. Three networks, in order:

1. A conditional variational autoencoder of 8x8 digits gives each scan a 13-number style that is close to normal,
   and turns any style and class into a digit (Kingma & Welling 2014; Sohn et al. 2015).
2. BigGAN-deep, exactly the network of pytorch-pretrained-biggan with 16 channels and 32x32 pixels, learns
   `(z, class) -> scene` by regression: 19 numbers of z are the scene's factors through the normal distribution
   function, 13 are the style. Half of each batch are real scans at their encoded styles, half are new random styles. No
   discriminator is needed, since the scene that belongs to a latent is known.
3. A classifier of real scenes measures how many generated images show the intended class.

The batch-norm statistics are those of standard-normal latents at every truncation: the network is one fixed function.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_pretrained_biggan import BigGAN, BigGANConfig
from pytorch_pretrained_biggan.model import BigGANBatchNorm
from safetensors.torch import save_file
from torch import Tensor, nn

from genray.probes.scenes import NUM_CLASSES, NUM_FACTORS, compose, digits

STYLE = 13
Z_DIM = NUM_FACTORS + STYLE
NETWORK = {
    "output_dim": 32,
    "z_dim": Z_DIM,
    "class_embed_dim": Z_DIM,
    "channel_width": 16,
    "num_classes": NUM_CLASSES,
    "layers": [
        [False, 16, 16],
        [True, 16, 8],
        [False, 8, 8],
        [True, 8, 4],
        [False, 4, 4],
        [True, 4, 2],
        [False, 2, 1],
    ],
    "attention_layer_position": 4,
    "eps": 1e-4,
    "n_stats": 2,  # equal rows: the statistics do not depend on the truncation
}


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels, NUM_CLASSES).float()


class DigitModel(nn.Module):
    """Conditional variational autoencoder of scans `[n, 8, 8]` with styles `[n, 13]`."""

    def __init__(self) -> None:
        super().__init__()

        def mlp(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(inputs, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, outputs)
            )

        self.encoder = mlp(64 + NUM_CLASSES, 2 * STYLE)
        self.decoder = mlp(STYLE + NUM_CLASSES, 64)

    def encode(self, scans: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(torch.cat([scans.flatten(1), one_hot(labels)], 1)).chunk(2, 1)
        return mean, log_variance

    def decode(self, style: Tensor, labels: Tensor) -> Tensor:
        return self.decoder(torch.cat([style, one_hot(labels)], 1)).sigmoid().view(-1, 8, 8)


def train_digit_model(scans: Tensor, labels: Tensor, steps: int, noise: float = 0.12) -> DigitModel:
    model = DigitModel().to(scans.device)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        pick = torch.randint(len(scans), (256,), device=scans.device)
        jitter = torch.eye(2, 3, device=scans.device) + 0.06 * torch.randn(256, 2, 3, device=scans.device)
        grid = F.affine_grid(jitter, [256, 1, 8, 8], align_corners=False)
        batch, classes = F.grid_sample(scans[pick][:, None], grid, align_corners=False)[:, 0], labels[pick]
        mean, log_variance = model.encode(batch, classes)
        style = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (model.decode(style, classes) - batch).square().sum((1, 2)) / (2 * noise**2)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        optimizer.zero_grad()
        (error + divergence).mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


class LatentScenes:
    """The function to learn: from latents `[n, 32]` and classes to scenes `[n, 3, 32, 32]` in [-1, 1]."""

    def __init__(self, scans: Tensor, labels: Tensor, model: DigitModel):
        self.scans, self.labels, self.model = scans, labels, model

    def scene(self, scans: Tensor, z: Tensor) -> Tensor:
        return 2 * compose(scans, torch.special.ndtr(z[:, :NUM_FACTORS])) - 1

    def sample(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """`count` latents, classes and scenes: half of real scans at their encoded styles, half of decoded styles."""
        device = self.scans.device
        z = torch.randn(count, Z_DIM, device=device)
        pick = torch.randint(len(self.scans), (count,), device=device)
        labels = self.labels[pick]
        half = count // 2
        mean, log_variance = self.model.encode(self.scans[pick[:half]], labels[:half])
        z[:half, NUM_FACTORS:] = mean + (log_variance / 2).exp() * z[:half, NUM_FACTORS:]
        scans = torch.cat([self.scans[pick[:half]], self.model.decode(z[half:, NUM_FACTORS:], labels[half:])])
        return z, labels, self.scene(scans, z)


class TrainableBatchNorm(nn.Module):
    """The batch norm for training, which the package lacks: batch statistics, or their running mean once `frozen`."""

    def __init__(self, original: BigGANBatchNorm):
        super().__init__()
        self.original, self.frozen = original, False

    def forward(self, x: Tensor, truncation: float, condition: Tensor | None = None) -> Tensor:
        norm = self.original
        mean, variance = norm.running_means[0], norm.running_vars[0]
        x = F.batch_norm(x, mean, variance, training=not self.frozen, momentum=0.01, eps=norm.eps)
        if condition is None:
            return x * norm.weight[:, None, None] + norm.bias[:, None, None]
        return x * (1 + norm.scale(condition))[:, :, None, None] + norm.offset(condition)[:, :, None, None]


def with_trainable_norms(model: BigGAN) -> list[TrainableBatchNorm]:
    norms = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BigGANBatchNorm):
                norms.append(TrainableBatchNorm(child))
                setattr(parent, name, norms[-1])
    return norms


def new_network(device: torch.device) -> BigGAN:
    model = BigGAN(BigGANConfig.from_dict(NETWORK)).to(device)
    nn.init.ones_(model.generator.bn.weight)  # the package leaves these two uninitialised
    nn.init.zeros_(model.generator.bn.bias)
    return model


def train_generator(world: LatentScenes, steps: int, batch: int, rate: float, out: Path) -> None:
    """Train the generator by regression with absolute plus squared error.

    The statistics are frozen for the last quarter. The averaged weights are written to `out` every 1000 steps and at
    the end.
    """
    device = world.scans.device
    model = new_network(device)
    norms = with_trainable_norms(model)
    model.to(memory_format=torch.channels_last)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    optimizer = torch.optim.Adam(model.parameters(), rate, betas=(0.9, 0.99))
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for norm in norms:
            norm.frozen = step >= 0.75 * steps
        z, labels, scene = world.sample(batch)
        image = model(z, one_hot(labels), 1.0)
        error = image - scene
        loss = error.abs().mean() + error.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
        if (step + 1) % 200 == 0:
            seconds = time.monotonic() - started
            print(f"step {step + 1}/{steps}  loss {loss.item():.4f}  {seconds / (step + 1):.3f} s/step", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            save_file(package_weights(averaged.module), out / "model.safetensors")


@torch.no_grad()
def with_own_spectral_norms(model: BigGAN) -> BigGAN:
    """A copy whose spectral norms are those of its averaged weights, not those of the last step's."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, TrainableBatchNorm):
            module.frozen = True
    device = next(model.parameters()).device
    labels = torch.arange(NUM_CLASSES, device=device)
    for _ in range(50):  # in training mode each pass makes one power iteration
        model(torch.randn(NUM_CLASSES, Z_DIM, device=device), one_hot(labels), 1.0)
    return model


def package_weights(model: BigGAN) -> dict[str, Tensor]:
    """The state dict with the package's key names, and with the learned statistics for every truncation."""
    learned = with_own_spectral_norms(model).state_dict()
    state = {key.replace(".original.", "."): value.detach().clone() for key, value in learned.items()}
    for key, value in state.items():
        if key.endswith(("running_means", "running_vars")):
            state[key] = value[:1].repeat(len(value), 1)
    return {key: value.float().contiguous().cpu() for key, value in state.items()}


def train_classifier(scans: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """A convolutional classifier of real scenes with six layers, for inputs in [0, 1]."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in [(3, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2), (64, 128, 1), (128, 128, 2)]:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, NUM_CLASSES)]
    model = nn.Sequential(*layers).to(scans.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        pick = torch.randint(len(scans), (128,), device=scans.device)
        scene = compose(scans[pick], torch.rand(128, NUM_FACTORS, device=scans.device))
        loss = F.cross_entropy(model(scene), labels[pick], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    hits = [
        (classifier(i).argmax(1) == t).float().mean() for i, t in zip(images.split(500), labels.split(500), strict=True)
    ]
    return torch.stack(hits).mean().item()


def diversity(images: Tensor, labels: Tensor) -> float:
    """Mean root-mean-square distance between two images of one class, pixels in [0, 1]."""
    per_class = [torch.pdist(images[labels == c].flatten(1)[:200]).mean() for c in range(NUM_CLASSES)]
    return (torch.stack(per_class).mean() / math.sqrt(images[0].numel())).item()


@torch.no_grad()
def judge(classifier: nn.Module, out: Path, world: LatentScenes, device: torch.device) -> dict[str, float]:
    """The quality of the written file, rendered by genray's own loader, for the report."""
    from genray.views.generators.biggan import load_biggan

    count, half = 5000, 0.5
    val_scans, val_labels = (t.to(device).repeat(count // 200, *[1] * (t.dim() - 1)) for t in digits("val"))
    real = compose(val_scans, torch.rand(count, NUM_FACTORS, device=device))
    results = {
        "classifier_on_real_validation_scenes": accuracy(classifier, real, val_labels),
        "diversity_real": diversity(real, val_labels),
    }
    labels = torch.arange(count, device=device) % NUM_CLASSES
    generator = load_biggan(out, truncation=1.0, device=device)
    z = torch.nn.init.trunc_normal_(torch.empty(count, Z_DIM, device=device), 0, 1, -2, 2)

    def render(z: Tensor) -> Tensor:
        parts = [generator(a, b) for a, b in zip(z.split(500), labels.split(500), strict=True)]
        return torch.cat(parts).float() / 255

    images = render(z)
    neighbours = render(z + torch.nn.init.trunc_normal_(torch.empty_like(z), 0, 1, -2, 2))
    fixed_factors = torch.zeros_like(z)
    fixed_factors[:, NUM_FACTORS:] = z[:, NUM_FACTORS:]
    target = (world.scene(world.model.decode(z[:, NUM_FACTORS:], labels), z) + 1) / 2
    return results | {
        "recognised_as_intended": accuracy(classifier, images, labels),
        "recognised_as_intended_truncation_0.5": accuracy(classifier, render(z * half), labels),
        "recognised_as_intended_gaussian_neighbours_std_1": accuracy(classifier, neighbours, labels),
        "diversity_generated": diversity(images, labels),
        "diversity_generated_style_only": diversity(render(fixed_factors), labels),
        "mean_absolute_error_grey_levels": 255 * (images - target).abs().mean().item(),
    }


def main() -> None:
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=here / "genray/views/generators/assets/digit_scenes")
    parser.add_argument("--steps", type=int, default=11000, help="optimiser steps of the generator")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge-only", action="store_true", help="judge the weights in --out again, without training")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    scans, labels = (tensor.to(device) for tensor in digits("train"))
    world = LatentScenes(scans, labels, train_digit_model(scans, labels, 6000))
    if not args.judge_only:
        (args.out / "config.json").write_text(json.dumps(NETWORK, indent=2) + "\n")
        train_generator(world, args.steps, args.batch, args.rate, args.out)
        write_report(args.out, "training", training_facts(args, device, time.monotonic() - started))
    classifier = train_classifier(scans, labels, 1500)
    quality = judge(classifier, args.out, world, device)
    write_report(args.out, "quality", {key: round(value, 4) for key, value in quality.items()})
    print((args.out / "report.json").read_text())


def training_facts(args: argparse.Namespace, device: torch.device, seconds: float) -> dict[str, Any]:
    return {
        "command": "python jobs/train_embedded_generator.py",
        "data": "load_digits, split 'train' (1000 scans), composed by genray.probes.scenes",
        "seed": args.seed,
        "steps": args.steps,
        "batch": args.batch,
        "learning_rate": args.rate,
        "parameters": sum(p.numel() for p in new_network(device).parameters()),
        "seconds": round(seconds),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_report(out: Path, part: str, facts: dict[str, Any]) -> None:
    """Replace one part of report.json."""
    file = out / "report.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(report | {part: facts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
