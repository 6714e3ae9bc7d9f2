"""Pins the files that a configuration names: absolute paths and digests, so that a resumed run uses the same files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from genray.config.files import absolute, sha256_of
from genray.config.generator import AnyGenerator, BigGANGenerator, DiffusersGenerator, ExportedGenerator
from genray.config.run import Config
from genray.config.source import AnySource, Images, Mix, Stored
from genray.config.view import LatentView, Navigator, Steered
from genray.views.sources.listing import listing
from genray.views.walk_files import NAVIGATOR, WALKS


def pinned(config: Config) -> Config:
    """The configuration with every file that it names pinned; digests that it already has stay.

    Raises:
        ConfigError: a folder of images does not exist.
    """
    changed = replace(
        config, source=_source(config.source), generator=_generator(config.generator), view=_view(config.view)
    )
    return config if changed == config else changed


def _source(source: AnySource) -> AnySource:
    match source:
        case Images() | Mix():
            directory = absolute(source.directory)
            return replace(source, directory=directory, digest=source.digest or listing(directory).digest)
        case Stored():
            return replace(source, directory=absolute(source.directory))
    return source


def _generator(generator: AnyGenerator) -> AnyGenerator:
    match generator:
        case BigGANGenerator():
            return replace(generator, model=_directory(generator.model))
        case ExportedGenerator():
            sha256 = generator.sha256 or sha256_of(generator.path)
            return replace(generator, path=absolute(generator.path), sha256=sha256)
        case DiffusersGenerator(prompts_file=str(file)):
            sha256 = generator.prompts_sha256 or sha256_of(file)
            model = _directory(generator.model)
            return replace(generator, model=model, prompts_file=absolute(file), prompts_sha256=sha256)
        case DiffusersGenerator():
            return replace(generator, model=_directory(generator.model))
    return generator


def _view(view: LatentView) -> LatentView:
    match view:
        case Steered():
            path, sha256 = WALKS.pinned(view.walks)
            return replace(view, walks=path, sha256=view.sha256 or sha256)
        case Navigator():
            path, sha256 = NAVIGATOR.pinned(view.file)
            return replace(view, file=path, sha256=view.sha256 or sha256)
    return view


def _directory(model: str) -> str:
    """The absolute path if the model is a directory; the name of published weights stays."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model
