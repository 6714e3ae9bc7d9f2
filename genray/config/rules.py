"""The rules on the fields of a configuration. Those that need a generator's sizes are in `genray.stream.checks`."""

from __future__ import annotations

import math
from pathlib import Path

from genray.config.errors import ConfigError, UserError
from genray.config.generator import (
    VIEWS_WITHOUT_LATENTS,
    BigGANGenerator,
    CustomGenerator,
    DiffusersGenerator,
    ExportedGenerator,
)
from genray.config.probe import DATA_SYNTAX, Probe, parse_data_name
from genray.config.run import Config
from genray.config.source import Images, Mix, Stored


def check(config: Config) -> None:
    """Raise ConfigError for the first rule that the configuration breaks."""
    _check_name(config)
    _check_bounds(config)
    _check_batch(config)
    _check_steps(config)
    _check_reuse(config)
    _check_neighbors(config)
    _check_probe(config.probe)
    if config.source.renders:
        _check_generator(config)
    _check_source(config)


def _check_name(config: Config) -> None:
    if not config.name or Path(config.name).name != config.name or config.name in (".", ".."):
        raise ConfigError(f"name must be a single directory name, got {config.name!r}")


def _check_bounds(config: Config) -> None:
    for name, (least, most) in (("pool.num", config.pool.bounds), ("learners.num_workers", config.learners.bounds)):
        if least > most:
            raise ConfigError(f"{name} must be [min, max] with min <= max, got {[least, most]}")


def _check_batch(config: Config) -> None:
    stream, (low, high) = config.stream, config.learners.bounds
    workers = math.lcm(*range(low, high + 1))
    if stream.batch_size % workers:
        counts = f"every number of learners from {low} to {high}" if high > low else "learners.num_workers"
        raise ConfigError(
            f"stream.batch_size must be a multiple of {counts} ({workers}), got {stream.batch_size}; "
            f"the nearest is {round(stream.batch_size / workers) * workers or workers}"
        )
    if stream.batch_size // high < 2:
        raise ConfigError(f"stream.batch_size must be at least 2 anchors per learner, got {stream.batch_size}")
    if config.model.sync_batch_norm and high > 1 and not config.learners.num_gpus:
        raise ConfigError("model.sync_batch_norm must be false for learners without GPUs, got true")
    if stream.num_anchors is not None and stream.num_anchors < stream.batch_size:
        raise ConfigError(
            f"stream.num_anchors must be at least stream.batch_size ({stream.batch_size}), or one step would show an "
            f"anchor twice, got {stream.num_anchors}"
        )


def _check_steps(config: Config) -> None:
    augment, training = config.augment, config.training
    if augment.scale and augment.scale[0] > augment.scale[1]:
        raise ConfigError(f"augment.scale must be [least, most] in order, got {list(augment.scale)}")
    if training.warmup_steps > training.steps:
        raise ConfigError(
            f"training.warmup_steps must be at most training.steps ({training.steps}), got {training.warmup_steps}"
        )


def _check_reuse(config: Config) -> None:
    stream = config.stream
    if stream.reuse == "auto" and config.render_on == "learners":
        raise ConfigError("stream.reuse must be a number if learners render (render_on = 'learners'), got 'auto'")
    if stream.reuse != 1 and stream.num_anchors and stream.num_anchors < stream.batch_size * stream.reuse_window:
        raise ConfigError(
            f"stream.num_anchors must be at least stream.batch_size x stream.reuse_window "
            f"({stream.batch_size * stream.reuse_window}) if views are reused, or steps would often show an "
            f"anchor twice, got {stream.num_anchors}; lower stream.reuse_window"
        )


def _check_neighbors(config: Config) -> None:
    stream = config.stream
    if stream.num_neighbors is None:
        return
    if config.source.renders and not config.view.renders:
        raise ConfigError(
            "stream.num_neighbors must not be given if anchors have no neighbours (view.kind = 'none'), got "
            f"{stream.num_neighbors}"
        )
    if stream.num_neighbors < stream.num_views - 1:
        raise ConfigError(
            f"stream.num_neighbors must be at least stream.num_views - 1 ({stream.num_views - 1}), or an anchor would "
            f"show one of them twice, got {stream.num_neighbors}"
        )


def _check_probe(probe: Probe) -> None:
    if probe.neighbors > probe.images:
        raise ConfigError(f"probe.neighbors must be at most probe.images ({probe.images}), got {probe.neighbors}")
    if probe.data is None:
        if probe.beside:
            raise ConfigError(
                f"probe.data must name labelled images for the probes of probe.beside, got none; it may be "
                f"{DATA_SYNTAX}"
            )
        return
    try:
        parse_data_name(probe.data, "probe.data")
    except UserError as error:
        raise ConfigError(str(error)) from None


def _check_generator(config: Config) -> None:
    match config.generator:
        case BigGANGenerator(cuda_graphs=True):
            section = "pool" if config.render_on == "pool" else "learners"
            if not getattr(config, section).num_gpus:
                raise ConfigError(
                    f"generator.cuda_graphs must be false if images are rendered without GPUs ({section}.num_gpus = "
                    f"0), got true; raise {section}.num_gpus"
                )
        case CustomGenerator(target=target):
            if target.count(":") != 1:
                raise ConfigError(f"generator.target must be `package.module:factory`, got {target!r}")
        case ExportedGenerator(path=""):
            raise ConfigError("generator.path must be a .pt2 file, got ''; python jobs/export_generator.py writes one")
        case DiffusersGenerator() as generator:
            _check_diffusers(config, generator)


def _check_diffusers(config: Config, generator: DiffusersGenerator) -> None:
    if not generator.model:
        raise ConfigError("generator.model must be a directory with model_index.json, or a name at the hub, got ''")
    if bool(generator.prompts) == bool(generator.prompts_file):
        given = "both" if generator.prompts else "neither"
        raise ConfigError(f"generator.prompts or generator.prompts_file must be given, one of them, got {given}")
    if not all(map(str.strip, generator.prompts)):
        raise ConfigError("generator.prompts must not be blank, got a blank one")
    if config.view.kind not in VIEWS_WITHOUT_LATENTS:
        raise ConfigError(
            f"view.kind must be 'independent' (each view another noise seed) or 'none' for a generator without "
            f"latents, got {config.view.kind!r} with generator.kind = 'diffusers'"
        )


def _check_source(config: Config) -> None:
    match config.source:
        case Images() as source:
            _check_directory(source.directory, "a directory of images")
            _check_no_gpu(config, "decoding images takes none")
            _check_images(config)
        case Mix() as source:
            _check_directory(source.directory, "a directory of images")
            batch = config.stream.batch_size
            if not 0 < source.real(batch) < batch:
                raise ConfigError(
                    f"source.share must leave at least one real and one rendered image in a batch of {batch}, got "
                    f"{source.share:g}"
                )
        case Stored() as source:
            _check_directory(source.directory, "a directory that genray generate has written")
            _check_no_gpu(config, "reading files takes none")
            for name in ("reuse", "ticket_batches"):
                if getattr(config.stream, name) == "auto" and config.render_on == "pool":
                    raise ConfigError(
                        f"stream.{name} must be a number for a source of files, which is finite, got 'auto'"
                    )


def _check_images(config: Config) -> None:
    if config.view.kind != "none":
        raise ConfigError(
            f"view.kind must be 'none' for a source of real images, which have no latents, got {config.view.kind!r}"
        )
    for name in ("num_anchors", "num_neighbors", "classes", "class_weights"):
        if (value := getattr(config.stream, name)) is not None:
            raise ConfigError(
                f"stream.{name} must not be given for a source of real images (they are the "
                f"anchors, all of them in each epoch and without neighbours), got {value}"
            )


def _check_directory(directory: str, what: str) -> None:
    if not directory:
        raise ConfigError(f"source.directory must be {what}, got ''")


def _check_no_gpu(config: Config, reason: str) -> None:
    if config.render_on == "pool" and config.pool.num_gpus:
        raise ConfigError(
            f"pool.num_gpus must be 0 for source.kind = {config.source.kind!r} ({reason}), got {config.pool.num_gpus:g}"
        )
