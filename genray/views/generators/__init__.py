"""Frozen image generators: `describe`, `fetch` and `load` the configured one.

Importing this module and describing a generator need no torch, so that a dry run is quick.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from genray.config.errors import ConfigError
from genray.config.files import cache_directory, sha256_of
from genray.config.generator import (
    AnyGenerator,
    BigGANGenerator,
    CustomGenerator,
    DiffusersGenerator,
    ExportedGenerator,
)
from genray.views.generators.checkpoints import (
    NETWORK_FILE,
    PUBLISHED,
    PUBLISHED_CLASSES,
    PUBLISHED_Z_DIM,
    file_lock,
    is_cached,
    read_layout,
    resolve,
    weights_file,
)
from genray.views.generators.programs import describe_program
from genray.views.types import Generator, GeneratorSpec

if TYPE_CHECKING:
    import torch

DOWNLOAD_WAIT_S = 600.0
"""Seconds to wait for another process that is downloading the same weights."""


def describe(config: AnyGenerator) -> GeneratorSpec:
    """The sizes of the configured generator; reads small files at most and downloads nothing.

    Published weights can be described before they are downloaded.

    Raises:
        ConfigError: the model is unknown, lacks a file, or contradicts the configuration.
    """
    match config:
        case CustomGenerator():
            return GeneratorSpec(config.target, config.image_size, config.latent_dim, config.num_classes)
        case ExportedGenerator():
            program = describe_program(config)
            return GeneratorSpec(config.path, program.image_size, program.latent_dim, program.num_classes)
        case DiffusersGenerator():
            return GeneratorSpec(config.model, config.image_size, 0, len(config.all_prompts()))
    if config.model in PUBLISHED and not is_cached(config.model):
        return GeneratorSpec(config.model, PUBLISHED[config.model], PUBLISHED_Z_DIM, PUBLISHED_CLASSES)
    layout = read_layout(resolve(config.model, download=False))
    return GeneratorSpec(config.model, layout.output_dim, layout.z_dim, layout.num_classes)


def fetch(config: AnyGenerator) -> None:
    """Download published weights that are not on this machine yet.

    Raises:
        ConfigError: the weights are missing and cannot be downloaded; says which files to put where.
    """
    if isinstance(config, BigGANGenerator):
        _directory_of(config.model)
    elif isinstance(config, DiffusersGenerator):
        from genray.views.generators.diffusion import download

        download(config)


def pending_download(config: AnyGenerator) -> str | None:
    """A line about what must be downloaded before a run; None if the weights are on this machine."""
    if isinstance(config, BigGANGenerator) and config.model in PUBLISHED and not is_cached(config.model):
        return f"{config.model} is not here; training downloads it to {cache_directory(config.model)} first"
    if isinstance(config, DiffusersGenerator):
        from genray.views.generators.diffusion import is_local

        return None if is_local(config) else f"{config.model} is not here; training downloads it from the hub first"
    return None


def fingerprint(config: AnyGenerator) -> str | None:
    """SHA-256 of the weights, whatever their path; None if they are not here, or are not one or two files."""
    if isinstance(config, ExportedGenerator):
        return sha256_of(config.path)
    if not isinstance(config, BigGANGenerator) or (config.model in PUBLISHED and not is_cached(config.model)):
        return None
    directory = resolve(config.model, download=False)
    files = (directory / NETWORK_FILE, weights_file(directory))
    return hashlib.sha256("".join(str(sha256_of(str(file))) for file in files).encode()).hexdigest()


def load(config: AnyGenerator, device: torch.device | str) -> Generator:
    """The configured generator, frozen, on `device`. Published weights are downloaded once and cached.

    Raises:
        ConfigError: the weights are missing or do not fit their config.json; or a custom target cannot be imported or
            contradicts the configuration.
    """
    import torch

    match config:
        case CustomGenerator():
            return _load_custom(config, device)
        case ExportedGenerator():
            from genray.views.generators.exported import load_exported

            return load_exported(config, torch.device(device))
        case DiffusersGenerator():
            from genray.views.generators.diffusion import load_diffusion

            return load_diffusion(config, torch.device(device))
    from genray.views.generators.biggan import load_biggan

    return load_biggan(
        _directory_of(config.model),
        config.truncation,
        device,
        precision=config.precision,
        compiled=config.compile,
        cuda_graphs=config.cuda_graphs,
    )


def _directory_of(model: str) -> Path:
    """The directory of a BigGAN; if several processes of a machine start at once, one of them downloads it."""
    if model in PUBLISHED and not is_cached(model):
        with file_lock(cache_directory(model).with_suffix(".lock"), DOWNLOAD_WAIT_S):
            return resolve(model, download=True)
    return resolve(model, download=True)


def _load_custom(config: CustomGenerator, device: torch.device | str) -> Generator:
    import torch

    from genray.views.generators.quantise import Quantised

    factory = _import(config.target)
    try:
        inspect.signature(factory).bind(**config.options)
    except TypeError as error:
        raise ConfigError(f"generator.options must be arguments of {config.target}: {error}") from None
    device = torch.device(device)
    with device:  # what the factory creates is created on this device
        made = factory(**config.options)
    if isinstance(made, torch.nn.Module):
        made.to(device).eval().requires_grad_(False)
    for name in ("image_size", "latent_dim", "num_classes"):
        configured, actual = getattr(config, name), getattr(made, name, "nothing of that name")
        if configured != actual:
            raise ConfigError(f"generator.{name} must be that of {config.target}, which has {actual}, got {configured}")
    return Quantised(made, device)


def _import(target: str) -> Callable[..., Any]:
    module, _, attribute = target.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"generator.target must be importable, as `package.module:factory`, got {target!r} ({error})"
        ) from None
    if not callable(factory):
        raise ConfigError(f"generator.target must name a function or class, got {target!r}, a {type(factory).__name__}")
    return cast("Callable[..., Any]", factory)
