"""Rules that need the sizes of a generator or source; `genray.config.rules` has those on fields alone."""

from __future__ import annotations

from itertools import pairwise

from genray.config.errors import ConfigError
from genray.config.objective import CLASS_OBJECTIVES, INVARIANCE_OBJECTIVES
from genray.config.run import Config
from genray.config.sections import Stream
from genray.config.view import Chunked, Navigator, Steered
from genray.views.latent_views import shares_nothing, walks_of
from genray.views.types import GeneratorSpec
from genray.views.walk_files import NAVIGATOR, WALKS


def check_objective(config: Config, source: GeneratorSpec, rendered: GeneratorSpec) -> None:
    """Raise ConfigError if the objective does not suit the source, or the latent views of its generator."""
    kind, name = config.objective.kind, source.name
    if kind in CLASS_OBJECTIVES and source.num_classes < 2:
        without = ", ".join((*INVARIANCE_OBJECTIVES, "inverter"))
        raise ConfigError(
            f"objective.kind must be one that needs no classes ({without}) for a source with fewer than two, got "
            f"{kind!r} with {name}"
        )
    if kind == "inverter" and not source.latent_dim:
        without = ", ".join((*INVARIANCE_OBJECTIVES, *CLASS_OBJECTIVES))
        raise ConfigError(
            f"objective.kind must be one that needs no latents ({without}) for a source without any, got 'inverter' "
            f"with {name}"
        )
    nothing_shared = shares_nothing(config.view, rendered.latent_dim)
    if kind in INVARIANCE_OBJECTIVES and nothing_shared and num_classes_shown(config.stream, rendered) < 2:
        raise ConfigError(
            "view.kind must not be 'independent' with fewer than two classes (an anchor's views would have no more in "
            f"common than any two images), got {config.view.kind!r} with {rendered.name}"
        )


def check_view(config: Config, spec: GeneratorSpec) -> None:
    """Raise ConfigError if the latent view does not suit the generator or the stream."""
    match config.view:
        case Chunked() as view:
            _check_chunks(view, spec)
        case Steered() as view:
            _check_walks(view, spec)
        case Navigator() as view:
            NAVIGATOR.read("view.file", view.file, view.sha256, spec)
            for name, most in (("num_views", 2), ("num_neighbors", 1)):
                if (getattr(config.stream, name) or 0) > most:
                    raise ConfigError(
                        f"stream.{name} must be {most} with view.kind = 'navigator', whose anchors have one neighbour "
                        f"each, got {getattr(config.stream, name)}"
                    )


def _check_chunks(view: Chunked, spec: GeneratorSpec) -> None:
    bounds = [0, *(end for pair in view.slices for end in pair), spec.latent_dim]
    ordered = all(a <= b for a, b in pairwise(bounds)) and all(start < stop for start, stop in view.slices)
    if not view.slices or not ordered:
        raise ConfigError(
            f"view.slices must be [[start, stop], ...] in order within the {spec.latent_dim} numbers of a latent "
            f"of {spec.name}, got {[list(pair) for pair in view.slices]}"
        )
    if view.noise.kind == "angular" and sum(stop - start for start, stop in view.slices) < 2:
        raise ConfigError(
            "view.slices must cover at least two numbers for view.noise.kind = 'angular', since one has no direction "
            f"but its sign, got {[list(pair) for pair in view.slices]}"
        )


def _check_walks(view: Steered, spec: GeneratorSpec) -> None:
    content = WALKS.read("view.walks", view.walks, view.sha256, spec)
    if unknown := [name for name in view.names or () if name not in content.tensors]:
        raise ConfigError(
            f"view.names must be of the walks in {view.walks} ({', '.join(content.tensors)}), got {unknown[0]!r}; "
            f"{WALKS.command(view.walks)} --walks {unknown[0]} learns another one"
        )
    if not 0 < len(walks_of(view)) <= spec.latent_dim:
        raise ConfigError(
            f"view.names must be 1 to {spec.latent_dim} walks, as many as a latent of {spec.name} has numbers, "
            f"got {len(walks_of(view))}"
        )


def num_classes_shown(stream: Stream, spec: GeneratorSpec) -> int:
    """Number of the generator's classes that anchors have; 0 if it has none."""
    if stream.class_weights is not None:
        return sum(map(bool, stream.class_weights))
    return spec.num_classes if stream.classes is None else len(stream.classes)


def check_classes(stream: Stream, spec: GeneratorSpec, objective: str | None = None) -> None:
    """Raise ConfigError if the anchors' classes are not the generator's, or too few for the objective."""
    classes, weights = stream.classes, stream.class_weights
    for name, given in (("classes", classes), ("class_weights", weights)):
        if given is not None and not spec.num_classes:
            raise ConfigError(
                f"stream.{name} must not be given for a generator without classes, got {list(given)} with {spec.name}"
            )
    if classes is not None:
        if not classes or len(set(classes)) < len(classes):
            raise ConfigError(f"stream.classes must name one class or more, each once, got {list(classes)}")
        if unknown := [label for label in classes if not 0 <= label < spec.num_classes]:
            raise ConfigError(
                f"stream.classes must be of the classes of {spec.name}, 0 to {spec.num_classes - 1}, got {unknown[0]}"
            )
    if weights is not None:
        number = spec.num_classes if classes is None else len(classes)
        if len(weights) != number:
            raise ConfigError(
                f"stream.class_weights must have a number for each of the {number} classes, got {len(weights)}"
            )
        if not any(weights):
            raise ConfigError("stream.class_weights must not be 0 for every class")
    if objective in CLASS_OBJECTIVES and num_classes_shown(stream, spec) == 1:
        raise ConfigError(f"stream.classes must leave at least two classes for objective.kind = {objective!r}, got one")
