"""Save a generator as a torch.export program, which renders without the generator's own code.

python jobs/export_generator.py --out digits.pt2
python jobs/export_generator.py --generator biggan-deep-128 --truncation 0.8 --out biggan.pt2
python jobs/export_generator.py --generator package.module:factory --options '{"depth": 4}' --out mine.pt2

A factory returns what `generator.kind = "custom"` takes: an object with `image_size`, `latent_dim` and `num_classes`
that is called with latents, classes and noise seeds. A program gets no seeds, so the generator must do without. Then:

genray preview demo --generator.kind exported --generator.path digits.pt2
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genray.config.generator import BigGANGenerator
from genray.views.generators import load
from genray.views.generators.biggan import BigGANDeep
from genray.views.generators.exported import export
from genray.views.generators.programs import Program


class Conditional(nn.Module):
    """A generator with classes, `z, label -> image`."""

    def __init__(self, generator: Any):
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.generator(z, label, None)


class Unconditional(nn.Module):
    """A generator without classes, `z -> image`."""

    def __init__(self, generator: Any):
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z, None, None)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="digit-scenes", help="name or directory of a BigGAN, or an import path")
    parser.add_argument("--options", type=json.loads, default={}, help="keyword arguments of the factory, as JSON")
    parser.add_argument("--truncation", type=float, default=1.0, help="of a BigGAN, whose statistics depend on it")
    parser.add_argument("--batch", type=int, help="fixed number of images per call; any number by default")
    parser.add_argument("--out", type=Path, required=True, help="the .pt2 file to write")
    args = parser.parse_args(arguments)
    generator: Any
    if ":" in args.generator:
        package, _, factory = args.generator.partition(":")
        generator, truncation = getattr(importlib.import_module(package), factory)(**args.options), None
        module: nn.Module = Conditional(generator) if generator.num_classes else Unconditional(generator)
    else:
        generator = load(BigGANGenerator(model=args.generator, truncation=args.truncation), "cpu")
        assert isinstance(generator, BigGANDeep)
        module, truncation = generator.network, args.truncation
    program = Program(generator.image_size, generator.latent_dim, generator.num_classes, args.batch, truncation)
    export(module, args.out, program)
    print(args.out)


if __name__ == "__main__":
    main()
