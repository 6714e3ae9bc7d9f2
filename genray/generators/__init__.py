"""Frozen image generators, the data source: what one must offer, what a configured one is, and how it is loaded.

Importing this module and describing a generator need no torch, so that a dry run answers at once.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from genray.generators.checkpoints import (
    CONFIG,
    PUBLISHED,
    PUBLISHED_CLASSES,
    PUBLISHED_Z_DIM,
    cache_directory,
    held,
    is_cached,
    read_layout,
    resolve,
    weights_file,
)
from genray.generators.programs import describe_program
from genray.generators.settings import (
    AnyGenerator,
    BigGANGenerator,
    CustomGenerator,
    DiffusersGenerator,
    ExportedGenerator,
    digest,
)
from genray.settings import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "AnyGenerator",
    "BadImages",
    "Generator",
    "GeneratorSpec",
    "describe",
    "fetch",
    "fingerprint",
    "load",
    "not_here",
]

DOWNLOAD_S = 600.0
"""Seconds to wait for another process that may be downloading the same weights."""


class BadImages(Exception):
    """A generator rendered something that is not an image; nothing of it may be learned from."""


class Generator(Protocol):
    """A frozen generator of square colour images on one device."""

    image_size: int
    """Pixels of a side."""
    latent_dim: int
    """Numbers in a latent; 0 where an image follows from its class and seed alone."""
    num_classes: int
    """Classes it is conditioned on; 0 for none."""

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        """Render one image for each latent.

        A generator may also have `differentiable`, called in the same way, which returns floats in [-1, 1] with their
        gradient in z: what `genray steer` and `genray navigate` learn through.

        Args:
            z: latents, float32 `[n, latent_dim]`.
            labels: classes, int64 `[n]`; None where the generator has none.
            seeds: seeds of whatever noise it needs besides the latent, int64 `[n]`; a GAN ignores them.

        Returns:
            uint8 `[n, 3, image_size, image_size]` on the generator's device.

        Raises:
            BadImages: a pixel is not finite; told before anything is rounded to uint8.
        """
        ...

    def unchecked(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same images, and which of them are finite, bool `[n]`, without waiting for the device.

        A generator of one's own need not have it: `load` gives it to it.
        """
        ...


@dataclass(frozen=True)
class GeneratorSpec:
    """What the rest of a run must know of its generator before it is loaded."""

    name: str
    image_size: int
    latent_dim: int
    num_classes: int


def describe(config: AnyGenerator) -> GeneratorSpec:
    """The sizes of a configured generator, from small files at most; downloads nothing.

    Published weights are described although they are not here yet.

    Raises:
        ConfigError: what the configuration names is unknown, lacks a file or says something else than it does.
    """
    match config:
        case CustomGenerator():
            return GeneratorSpec(config.target, config.image_size, config.latent_dim, config.num_classes)
        case ExportedGenerator():
            program = describe_program(config)
            return GeneratorSpec(config.path, program.image_size, program.latent_dim, program.num_classes)
        case DiffusersGenerator():
            return GeneratorSpec(config.model, config.image_size, 0, len(config.texts()))
    if config.model in PUBLISHED and not is_cached(config.model):
        return GeneratorSpec(config.model, PUBLISHED[config.model], PUBLISHED_Z_DIM, PUBLISHED_CLASSES)
    layout = read_layout(resolve(config.model, download=False))
    return GeneratorSpec(config.model, layout.output_dim, layout.z_dim, layout.num_classes)


def fetch(config: AnyGenerator) -> None:
    """See to it that the weights are on this machine: published ones are downloaded once.

    Raises:
        ConfigError: they are not here and cannot be downloaded; says which files to put where.
    """
    if isinstance(config, BigGANGenerator):
        _here(config.model)
    elif isinstance(config, DiffusersGenerator):
        from genray.generators.diffusion import download

        download(config)


def not_here(config: AnyGenerator) -> str | None:
    """What would have to be downloaded before a run, in a line; None where the weights are here."""
    if isinstance(config, BigGANGenerator) and config.model in PUBLISHED and not is_cached(config.model):
        return f"{config.model} is not here; training downloads it to {cache_directory(config.model)} first"
    if isinstance(config, DiffusersGenerator):
        from genray.generators.diffusion import is_here

        return None if is_here(config) else f"{config.model} is not here; training downloads it from the hub first"
    return None


def fingerprint(config: AnyGenerator) -> str | None:
    """SHA-256 of the weights, wherever they lie; None where they are not here, or are not one file or two."""
    if isinstance(config, ExportedGenerator):
        return digest(config.path)
    if not isinstance(config, BigGANGenerator) or (config.model in PUBLISHED and not is_cached(config.model)):
        return None
    directory = resolve(config.model, download=False)
    files = (directory / CONFIG, weights_file(directory))
    return hashlib.sha256("".join(str(digest(str(file))) for file in files).encode()).hexdigest()


def load(config: AnyGenerator, device: torch.device | str) -> Generator:
    """The configured generator, frozen, on `device`. Published weights are downloaded once and cached.

    Raises:
        ConfigError: the weights are missing or are not those of their config.json; or a custom target cannot be
            imported or is not what the configuration says.
    """
    import torch

    match config:
        case CustomGenerator():
            return _load_custom(config, device)
        case ExportedGenerator():
            from genray.generators.exported import load_exported

            return load_exported(config, torch.device(device))
        case DiffusersGenerator():
            from genray.generators.diffusion import load_diffusion

            return load_diffusion(config, torch.device(device))
    from genray.generators.biggan import load_biggan

    return load_biggan(
        _here(config.model),
        config.truncation,
        device,
        precision=config.precision,
        compiled=config.compile,
        cuda_graphs=config.cuda_graphs,
    )


def _here(model: str) -> Path:
    """Its directory; of several processes that start at once on a machine, one downloads."""
    if model in PUBLISHED and not is_cached(model):
        with held(cache_directory(model).with_suffix(".lock"), DOWNLOAD_S):
            return resolve(model, download=True)
    return resolve(model, download=True)


def _load_custom(config: CustomGenerator, device: torch.device | str) -> Generator:
    import torch

    from genray.generators.pixels import Quantised

    factory = _import(config.target)
    try:
        inspect.signature(factory).bind(**config.options)
    except TypeError as error:
        raise ConfigError(f"generator.options must be arguments of {config.target}: {error}") from None
    device = torch.device(device)
    with device:  # tensors and modules that the factory makes are made where they are used
        made = factory(**config.options)
    if isinstance(made, torch.nn.Module):
        made.to(device).eval().requires_grad_(False)
    for name in ("image_size", "latent_dim", "num_classes"):
        ours, theirs = getattr(config, name), getattr(made, name, "nothing of that name")
        if ours != theirs:
            raise ConfigError(f"generator.{name} must be that of {config.target}, which has {theirs}, got {ours}")
    return Quantised(made, device)


def _import(target: str) -> Callable[..., Any]:
    module, _, attribute = target.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"generator.target must be importable, as `package.module:factory`, got {target!r} ({error})"
        ) from None
    if not callable(found):
        raise ConfigError(f"generator.target must name a function or class, got {target!r}, a {type(found).__name__}")
    return cast("Callable[..., Any]", found)
