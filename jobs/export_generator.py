"""Save a generator as a torch.export program, which renders without the code that it came from.

python jobs/export_generator.py --out digits.pt2
python jobs/export_generator.py --generator biggan-deep-128 --truncation 0.8 --out biggan.pt2
python jobs/export_generator.py --generator package.module:factory --options '{"depth": 4}' --out mine.pt2

A factory returns what `generator.kind = "custom"` takes: something with `image_size`, `latent_dim` and `num_classes`
that is called with latents, classes and noise seeds. A program is given no seeds, so it must do without. Then:

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

from genray.generators import load
from genray.generators.biggan import BigGANDeep
from genray.generators.exported import export
from genray.generators.programs import Program
from genray.generators.settings import BigGANGenerator


class Conditional(nn.Module):
    """A generator with classes, `z, label -> image`."""

    def __init__(self, made: Any):
        super().__init__()
        self.made = made

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.made(z, label, None)


class Unconditional(nn.Module):
    """A generator without classes, `z -> image`."""

    def __init__(self, made: Any):
        super().__init__()
        self.made = made

    def forward(self, z: Tensor) -> Tensor:
        return self.made(z, None, None)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="digit-scenes", help="name or directory of a BigGAN, or an import path")
    parser.add_argument("--options", type=json.loads, default={}, help="keyword arguments of the factory, as JSON")
    parser.add_argument("--truncation", type=float, default=1.0, help="of a BigGAN, whose statistics follow it")
    parser.add_argument("--batch", type=int, help="images at once; any number where it is not given")
    parser.add_argument("--out", type=Path, required=True, help="the .pt2 file")
    args = parser.parse_args(arguments)
    made: Any
    if ":" in args.generator:
        package, _, factory = args.generator.partition(":")
        made, truncation = getattr(importlib.import_module(package), factory)(**args.options), None
        module: nn.Module = Conditional(made) if made.num_classes else Unconditional(made)
    else:
        made, truncation = (
            load(BigGANGenerator(model=args.generator, truncation=args.truncation), "cpu"),
            args.truncation,
        )
        assert isinstance(made, BigGANDeep)
        module = made.network
    program = Program(made.image_size, made.latent_dim, made.num_classes, args.batch, truncation)
    export(module, args.out, program)
    print(args.out)


if __name__ == "__main__":
    main()
