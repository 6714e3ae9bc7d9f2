"""genray's BigGAN-deep against the original package: `python benchmarks/generator.py [--size 128 256 512]`.

The networks have the published sizes and random weights, with statistics of their own activations, so that the images
use the whole range. Every way renders the same latents to uint8 in host memory. The ways take turns, every second time
in reverse order. Needs torch, pytorch-pretrained-biggan and genray, but neither ray nor mlflow.

Each size becomes a record of the report, which replaces that of the same device, threads, network and micro-batch:

- `images_per_s` of each repetition; `over_stock`, its ratio to the package's in the same repetition; and
  `over_stock_alike`, its ratio to the package's in the same precision, if that is not float32;
- `macs`, multiply-adds per image as torch.utils.flop_counter counts them: convolutions, matrix products, attention;
- `bytes` per image that the kernels read and write, if each reads its arguments and writes its results once; null with
  torch.compile, whose kernels cannot be observed (the multiply-adds are the same);
- `weight_bytes`, and `memory_bytes`, the peak including the weights;
- the error in grey levels, of "float32" relative to the package and of the others relative to "float32": `error` with
  trained weights, those of the embedded digit scenes, and `error_random` with the random weights, which amplify it;
- `copy_bytes_per_s`, read and written by a copy of a large tensor, and `matmul_macs_per_s` of a large matrix product in
  each precision: what this device can do, to compare `bytes` and `macs` with.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import torch.nn.functional as F
from costs import Bytes, peak_bytes
from networks import latents, network, one_hot, random_model, write
from pytorch_pretrained_biggan import BigGAN, BigGANConfig
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genray.views.generators.biggan import TF32, BigGANDeep, deterministic_kernels, load_biggan
from genray.views.generators.checkpoints import EMBEDDED_DIRECTORY, NETWORK_FILE, weights_file
from genray.views.generators.quantise import quantise

HERE = Path(__file__).resolve().parent
Record = dict[str, Any]
STOCK, STOCK_BFLOAT16, EXACT = "stock", "stock, bfloat16", "float32"
WAYS: dict[str, dict[str, Any]] = {
    EXACT: {},
    "tf32": {"precision": "tf32"},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "compile": {"compiled": True},
    "compile, bfloat16": {"compiled": True, "precision": "bfloat16"},
    "cuda graphs": {"cuda_graphs": True},
    "cuda graphs, bfloat16": {"cuda_graphs": True, "precision": "bfloat16"},
    "cuda graphs, compile, bfloat16": {"cuda_graphs": True, "compiled": True, "precision": "bfloat16"},
}
"""Options of genray's loader by their names in the report."""
GPU_ONLY = {name for name, options in WAYS.items() if "cuda_graphs" in options} | {"float16", "tf32"}
RECORD_KEY = ("device", "threads", "size", "width", "micro_batch")
TRAINED_IMAGES = 200
"""Images to compare with trained weights."""
MIB = 2**20


class Way:
    """One way to render, with its costs; it is warmed up on creation."""

    def __init__(
        self, render: Callable[[], Tensor], modules: nn.Module, eager: Callable[[], object], n: int, compiled: bool
    ):
        self.render, self.eager, self.n, self.compiled = render, eager, n, compiled
        self.weight_bytes = sum(t.nbytes for t in (*modules.parameters(), *modules.buffers()))
        self.memory_bytes = peak_bytes(render, self.weight_bytes)

    def images_per_s(self, seconds: float) -> float:
        began, times = time.perf_counter(), 0
        while True:
            self.render()
            times += 1
            if (elapsed := time.perf_counter() - began) >= seconds:
                return times * self.n / elapsed

    def counted(self) -> dict[str, int | None]:
        """Multiply-adds and bytes per image."""
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            self.eager()
        macs = flops.get_total_flops() // 2 // self.n
        if self.compiled:
            return {"macs": macs, "bytes": None}
        with torch.no_grad(), Bytes() as moved:
            self.eager()
        return {"macs": macs, "bytes": moved.total // self.n}


def error(images: Tensor, reference: Tensor) -> dict[str, float]:
    """Differences between two renderings in grey levels, over all pixels."""
    counts = torch.bincount((images.int() - reference.int()).abs().flatten(), minlength=256).double()
    shares = counts.cumsum(0) / counts.sum()
    return {
        "mean": round(float((counts * torch.arange(256)).sum() / counts.sum()), 5),
        "percentile_99.9": int((shares < 0.999).sum()),
        "max": int(counts.nonzero().max()),
    }


def trained_errors(names: list[str], device: torch.device) -> dict[str, dict[str, float]]:
    """The `error` of each way with the weights of the embedded digit scenes."""
    directory = EMBEDDED_DIRECTORY
    model = BigGAN(BigGANConfig.from_json_file(str(directory / NETWORK_FILE)))
    model.load_state_dict(load_file(weights_file(directory)))
    model.eval().to(device)
    z = torch.randn(TRAINED_IMAGES, model.config.z_dim, generator=torch.Generator().manual_seed(0))
    z = z.clamp(-2, 2).to(device)
    classes = torch.arange(TRAINED_IMAGES, device=device) % model.config.num_classes
    with torch.no_grad():
        condition = F.one_hot(classes, model.config.num_classes).float()
        images = {STOCK: quantise(model(z, condition, 1.0)).cpu()}
    for name in names:
        images[name] = rendered(load_biggan(directory, 1.0, device, **WAYS[name]), z, classes)
    return {name: error(images[name], images[STOCK if name == EXACT else EXACT]) for name in names}


def copy_rate(device: torch.device) -> float:
    """Bytes per second that a copy of a large tensor reads and writes."""
    source = torch.ones((2048 if device.type == "cuda" else 256) * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / least_seconds(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device, precision: str) -> float:
    """Multiply-adds per second of a large matrix product."""
    dtype = getattr(torch, "float32" if precision == TF32 else precision)
    # Many CPUs have no fast product in lower precision.
    size = 8192 if device.type == "cuda" else 1024 if dtype == torch.float32 else 256
    a = torch.randn(size, size, device=device).to(dtype)
    with deterministic_kernels(device, precision == TF32):
        return size**3 / least_seconds(lambda: a @ a, device)


def least_seconds(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(6):  # the first is a warm-up
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(size: int, args: argparse.Namespace, device: torch.device) -> Record:
    """The record of all ways at one size."""
    torch.compiler.reset()  # the compiler gives up after a few networks
    config = network(size, args.width, z_dim=128, num_classes=1000)
    model = random_model(config)
    z, classes = latents(config, args.micro_batch)
    z, classes = z.to(device), classes.to(device)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["GENRAY_CACHE"] = directory
        source = write(Path(directory) / "weights", config, model.state_dict())
        model = model.to(device)
        condition = one_hot(classes, config)

        ways = {STOCK: package(model, z, condition)}
        if device.type == "cuda":
            half = copy.deepcopy(model).bfloat16()
            ways[STOCK_BFLOAT16] = package(half, z.bfloat16(), condition.bfloat16())
        for name in args.ways:
            print(f"{size} px: loading {name}", flush=True)
            generator = load_biggan(source, 1.0, device, **WAYS[name])
            ways[name] = Way(
                lambda generator=generator: rendered(generator, z, classes),
                generator.network,
                lambda generator=generator: generator.network.render(z, classes),
                len(z),
                bool(WAYS[name].get("compiled")),
            )
    images = {name: way.render() for name, way in ways.items()}
    record: Record = {
        "size": size,
        "width": args.width,
        "micro_batch": len(z),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "seconds": args.seconds,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "pytorch-pretrained-biggan")},
        },
        "copy_bytes_per_s": [],
        "matmul_macs_per_s": {precision_of(name, device): list[float]() for name in ways},
        "ways": {
            name: {
                "precision": precision_of(name, device),
                "images_per_s": [],
                "weight_bytes": way.weight_bytes,
                "memory_bytes": way.memory_bytes,
                **way.counted(),
            }
            for name, way in ways.items()
        },
    }
    for name, trained in trained_errors(args.ways, device).items():
        random = error(images[name], images[STOCK if name == EXACT else EXACT])
        record["ways"][name] |= {"error": trained, "error_random": random}
    for repeat in range(args.repeats):
        record["copy_bytes_per_s"].append(copy_rate(device))
        for precision, rates in record["matmul_macs_per_s"].items():
            rates.append(matmul_rate(device, precision))
        for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            record["ways"][name]["images_per_s"].append(ways[name].images_per_s(args.seconds))
    for way in record["ways"].values():
        way["over_stock"] = ratios(way, record["ways"][STOCK])
        if STOCK_BFLOAT16 in ways and way["precision"] == "bfloat16":
            way["over_stock_alike"] = ratios(way, record["ways"][STOCK_BFLOAT16])
    return record


def package(model: BigGAN, z: Tensor, condition: Tensor) -> Way:
    """The forward pass of the original package."""

    def eager() -> Tensor:
        with torch.no_grad():
            return quantise(model(z, condition, 1.0))

    return Way(lambda: eager().cpu(), model, eager, len(z), compiled=False)


def ratios(ours: Record, theirs: Record) -> list[float]:
    return [one / other for one, other in zip(ours["images_per_s"], theirs["images_per_s"], strict=True)]


def rendered(generator: BigGANDeep, z: Tensor, classes: Tensor) -> Tensor:
    return generator(z, classes).cpu()


def precision_of(way: str, device: torch.device) -> str:
    """The precision of a way's convolutions; for the package it is torch's default."""
    if way in WAYS:
        return str(WAYS[way].get("precision", "float32"))
    if way == STOCK_BFLOAT16:
        return "bfloat16"
    return TF32 if device.type == "cuda" and torch.backends.cudnn.conv.fp32_precision == TF32 else "float32"


def table(record: Record) -> list[str]:
    """A record as a table of medians, with the range of the ratios."""
    cores = f", {record['threads']} threads" if record["device"] == "CPU" else ""
    lines = [
        f"BigGAN-deep-{record['size']}, {record['micro_batch']} images at once, {record['device']}{cores}",
        f"{'':32}{'images/s':>10}{'x stock':>22}{'mean':>8}{'99.9%':>6}{'max':>5}{'MiB':>8}{'GMAC':>7}{'MB':>7}"
        f"{'copy':>6}{'peak':>6}",
    ]
    bandwidth = statistics.median(record["copy_bytes_per_s"])
    for name, way in record["ways"].items():
        rate, ratio = statistics.median(way["images_per_s"]), way["over_stock"]
        spread = f"{statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
        error = way.get("error")
        grey = f"{error['mean']:8.4f}{error['percentile_99.9']:6d}{error['max']:5d}" if error else " " * 19
        memory = f"{way['memory_bytes'] / MIB:8.0f}" if way["memory_bytes"] else " " * 8
        moved = f"{way['bytes'] / 1e6:7.0f}{rate * way['bytes'] / bandwidth:6.0%}" if way["bytes"] else " " * 13
        peak = statistics.median(record["matmul_macs_per_s"][way["precision"]])
        share = f"{rate * way['macs'] / peak:6.0%}"
        lines.append(f"{name:32}{rate:10.2f}{spread:>22}{grey}{memory}{way['macs'] / 1e9:7.2f}{moved}{share}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", choices=(32, 128, 256, 512), default=[128], help="pixels")
    parser.add_argument("--micro-batch", type=int, help="images at once; 8 on a CPU, 64 on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="shortest measurement of each way")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="besides the package; by default all of the device")
    parser.add_argument("--width", type=int, default=128, help="channels; the published networks have 128")
    parser.add_argument("--out", type=Path, default=HERE / "generator.json")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.init()
    gpu = device.type == "cuda"
    args.micro_batch = args.micro_batch or (64 if gpu else 8)
    chosen = args.ways or [name for name in WAYS if gpu or name not in GPU_ONLY]
    args.ways = [EXACT, *(name for name in chosen if name != EXACT)]
    runs = json.loads(args.out.read_text())["runs"] if args.out.exists() else []
    for size in args.size:
        record = measure(size, args, device)
        runs = [run for run in runs if any(run[key] != record[key] for key in RECORD_KEY)] + [record]
        runs.sort(key=lambda run: [run[key] for key in RECORD_KEY])
        args.out.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        print("\n".join(table(record)), flush=True)


if __name__ == "__main__":
    main()
