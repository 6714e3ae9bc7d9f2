"""Generators as torch.export programs, which render anywhere without the code that they came from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from genray.config.errors import ConfigError
from genray.config.files import require_unchanged
from genray.config.generator import ExportedGenerator
from genray.views.generators.programs import ARCHIVE_ENTRY, Program, check_batch, describe_program
from genray.views.generators.quantise import Quantised

TRACED_IMAGES = 3
"""Batch size that a program for any batch size is traced with; torch.export would make 0 and 1 constants."""


def export(module: nn.Module, path: Path, program: Program) -> None:
    """Write a generator as a program that states its own sizes.

    Args:
        module: called with latents, float32 `[n, latent_dim]`, and, if it has classes, with classes, int64 `[n]`;
            returns `[n, 3, image_size, image_size]`, floats in [-1, 1] or uint8.
        path: the .pt2 file.
        program: its sizes. The module must render any batch size unless `program.batch` is given.
    """
    module = module.eval().requires_grad_(False)
    for parameter in module.parameters():
        # A view of a larger storage would be saved with all of that storage.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    count = program.batch or TRACED_IMAGES
    inputs = [torch.zeros(count, program.latent_dim), torch.zeros(count, dtype=torch.int64)]
    inputs = inputs[: 2 if program.num_classes else 1]
    batch = None if program.batch else {0: Dim("batch", min=1)}
    exported = torch.export.export(module, tuple(inputs), dynamic_shapes=[batch] * len(inputs))
    torch.export.save(exported, path, extra_files={ARCHIVE_ENTRY: program.to_json()})


def load_exported(config: ExportedGenerator, device: torch.device) -> Quantised:
    """The program in a file, on a device.

    Raises:
        ConfigError: the file contradicts the configuration, cannot be loaded, or is not a generator's program.
    """
    program = describe_program(config)
    require_unchanged("generator.path", config.path, config.sha256)
    try:
        loaded = torch.export.load(Path(config.path).expanduser())
    except Exception as error:  # torch documents no exception types
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
    """A program with the call signature of a generator."""

    def __init__(self, module: nn.Module, program: Program):
        self.module = module
        self.image_size, self.latent_dim = program.image_size, program.latent_dim
        self.num_classes = program.num_classes

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None) -> Tensor:
        """The program's images of latents `[n, d]` and classes `[n]`; seeds are ignored."""
        return self.module(z.float(), *([] if labels is None else [labels]))  # type: ignore[no-any-return]


def _batch(loaded: ExportedProgram, path: str, program: Program) -> int | None:
    """The program's batch size, None for any; raises ConfigError if its inputs are not those of a generator."""
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
