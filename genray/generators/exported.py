"""Generators as programs of torch.export: written once, rendered anywhere without the code that they came from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from genray.generators.pixels import Quantised
from genray.generators.programs import ENTRY, Program, check_batch, describe_program
from genray.generators.settings import ExportedGenerator, unchanged
from genray.settings import ConfigError

EXAMPLES = 3
"""Images in the example that a program for any number is traced with; 0 and 1 would be taken for constants."""


def export(module: nn.Module, path: Path, program: Program) -> None:
    """Write a generator as a program that says its sizes itself.

    Args:
        module: called with latents, float32 `[n, latent_dim]`, and with classes, int64 `[n]`, where it has any; returns
            floats in [-1, 1] or uint8, `[n, 3, image_size, image_size]`.
        path: the .pt2 file.
        program: what is to be said of it. It must be able to render any number of images, unless `batch` is given.
    """
    module = module.eval().requires_grad_(False)
    for parameter in module.parameters():
        # What is a part of a larger storage, or laid out in another order, would be saved with all of that.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    count = program.batch or EXAMPLES
    inputs = [torch.zeros(count, program.latent_dim), torch.zeros(count, dtype=torch.int64)]
    inputs = inputs[: 2 if program.num_classes else 1]
    batch = None if program.batch else {0: Dim("batch", min=1)}
    exported = torch.export.export(module, tuple(inputs), dynamic_shapes=[batch] * len(inputs))
    torch.export.save(exported, path, extra_files={ENTRY: program.to_json()})


def load_exported(config: ExportedGenerator, device: torch.device) -> Quantised:
    """The program of a file on a device.

    Raises:
        ConfigError: the file is not what the configuration says, cannot be loaded, or is no generator's program.
    """
    program = describe_program(config)
    unchanged("generator.path", config.path, config.sha256)
    try:
        loaded = torch.export.load(Path(config.path).expanduser())
    except Exception as error:  # of many kinds, none of which torch documents
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"generator.path must be a program that torch {torch.__version__} loads, got {config.path!r} ({reason})"
        ) from None
    check_batch(config, _batch(loaded, config.path, program))
    if device.type != "cpu":  # some operations name the device that they were traced on
        from torch.export.passes import move_to_device_pass

        loaded = move_to_device_pass(loaded, device)
    return Quantised(Exported(loaded.module(), program), device)


class Exported:
    """What a generator's program is called with, and its sizes."""

    def __init__(self, module: nn.Module, program: Program):
        self.module = module
        self.image_size, self.latent_dim = program.image_size, program.latent_dim
        self.num_classes = program.num_classes

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None) -> Tensor:
        """What the program makes of latents `[n, d]` and classes `[n]`; it needs no seeds."""
        return self.module(z.float(), *([] if labels is None else [labels]))  # type: ignore[no-any-return]


def _batch(loaded: ExportedProgram, path: str, program: Program) -> int | None:
    """Images that it takes at once, None for any number; raises ConfigError where its inputs are no generator's."""
    names = set(loaded.graph_signature.user_inputs)
    shapes = [
        tuple(node.meta["val"].shape) for node in loaded.graph.nodes if node.op == "placeholder" and node.name in names
    ]
    wanted = [(program.latent_dim,)] + ([()] if program.num_classes else [])
    if [shape[1:] for shape in shapes] != wanted or not all(shapes):
        raise ConfigError(
            f"generator.path must be a program of latents [n, {program.latent_dim}]"
            f"{' and classes [n]' if program.num_classes else ' alone'}, got {path!r} of "
            f"{' and '.join(str([str(size) for size in shape]) for shape in shapes) or 'nothing'}"
        )
    return next((shape[0] for shape in shapes if isinstance(shape[0], int)), None)
