"""How a run is described in MLflow before it begins: its parameters, tags and input data."""

from __future__ import annotations

import getpass
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genray.cluster.ray_job import submission_id
from genray.config import renamed
from genray.config.probe import DIGIT_SCENES, Probe, data_title
from genray.config.run import Config
from genray.probes.data import of_run
from genray.probes.labelled_images import ImageFiles, Split
from genray.stream.plan import Plan
from genray.views import generators, sources

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

RUN, START, SWEEP, LESSON = "run", "start", "sweep", "lesson"
"""Values of the tag `kind`: a run, a restart of a run, the parent of a sweep's runs, and the learning of walks or of a
navigator.
"""
SWEEP_PREFIX = "sweep."
"""Begins the names of a sweep's parameters in which its runs differ."""

_MAX_VALUE = 6000  # characters of a parameter or tag that every MLflow store accepts
_MAX_PARAMS = 100  # per call
_MAX_DIGEST = 36  # characters


@dataclass(frozen=True)
class DatasetInfo:
    """Images that a run learned from or was judged on, as MLflow lists them."""

    name: str
    context: str
    """`training` or `evaluation`."""
    source: dict[str, Any]
    """What determines the images, as far as is known without reading them; the digest is taken of this."""
    shape: tuple[int, ...]
    """Of the images, uint8; -1 where it varies."""
    place: str | None = None
    """Directory or address of the images; not part of the digest."""

    @property
    def digest(self) -> str:
        """Equal for equal images, wherever they are stored."""
        return _digest(json.dumps(self.source, sort_keys=True).encode())

    def for_mlflow(self) -> DatasetInput:
        """As the entity that MLflow records."""
        import numpy as np
        from mlflow.data.schema import TensorDatasetSchema
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.types import Schema, TensorSpec

        images = TensorDatasetSchema(Schema([TensorSpec(np.dtype("uint8"), self.shape, name="images")]))
        schema = json.dumps(images.to_dict())
        source = self.source if self.place is None else {"place": redacted(self.place), **self.source}
        dataset = Dataset(self.name, self.digest, "genray", json.dumps(source), schema=schema)
        return DatasetInput(dataset, [InputTag("mlflow.data.context", self.context)])


def parameters(settings: Config | Mapping[str, Any]) -> dict[str, str]:
    """Every setting by its dotted path, as MLflow parameters: text unchanged, other values as JSON.

    The name is left out. It names the MLflow run; as a parameter it would come first wherever runs are compared.
    """
    return {
        re.sub(r"[^\w\-. /]", "_", path): shortened(value if isinstance(value, str) else json.dumps(value))
        for path, value in _flatten(settings.to_dict() if isinstance(settings, Config) else settings)
        if path != "name"
    }


def renamed_parameters(recorded: Mapping[str, str]) -> dict[str, str]:
    """The parameters of an MLflow run, which an earlier version may have recorded, under their present names.

    >>> renamed_parameters({"generators.mode": "inline", "seed": "0"})
    {'render_on': 'learners', 'seed': '0'}
    """
    params = {}
    for name, text in recorded.items():
        of_sweep = SWEEP_PREFIX if name.startswith(SWEEP_PREFIX) else ""
        path = renamed.current_path(name.removeprefix(of_sweep))
        current = of_sweep + path
        if current == name:
            params[name] = text
        elif current not in recorded:  # a sweep's parameter lists the values of its runs
            params[current] = ", ".join(renamed.current_value(path, value) for value in text.split(", "))
    return params


def tags(config: Config, kind: str = RUN) -> dict[str, str]:
    """Tags to search runs by: versions, what is learned from what, the numbers of processes, and who started it."""
    inline = config.render_on == "learners"
    common = {"kind": kind, **{f"{package}.version": _version(package) for package in ("genray", "ray", "torch")}}
    if kind == SWEEP:
        return {**common, **origin()}
    if kind == LESSON:
        return {**common, "generator": generators.describe(config.generator).name, **origin()}
    return {
        **common,
        "source": config.source.kind,
        "generator": sources.describe(config).name,
        "view": config.view.kind,
        "objective": config.objective.kind,
        "world.learners": _range(config.learners.bounds),
        "world.generators": "inline" if inline else _range(config.pool.bounds),
        **({"ray.submission_id": job} if (job := submission_id()) else {}),
        **({"sweep": config.tracking.sweep} if config.tracking.sweep else {}),
        **origin(),
    }


def datasets(config: Config, plan: Plan) -> list[DatasetInfo]:
    """The views that a run learns from, and the labelled images that it is judged on, if any."""
    settings, side = config.to_dict(), plan.image_size
    rendered = {name: value for name, value in settings["generator"].items() if name not in _SPEED_SETTINGS}
    by = {"generator": rendered, "weights": generators.fingerprint(config.generator)} if config.source.renders else {}
    place = settings["source"].pop("directory", None)
    views = {
        "source": settings["source"],
        **by,
        "view": settings["view"],
        "num_views": plan.rendered_views,
        **{name: settings["stream"][name] for name in _ANCHOR_SETTINGS},
        "seed": config.seed,
        "anchors": [0, plan.fresh_steps(plan.steps) * plan.batch_size],
        "tickets": [0, plan.tickets],
    }
    training = DatasetInfo(plan.generator, "training", views, (-1, plan.rendered_views, 3, side, side), place)
    return [training, _probe_dataset(config.probe)] if config.probe.data else [training]


def _probe_dataset(probe: Probe) -> DatasetInfo:
    """The labelled images; those on disk are identified by the file names and labels of all splits."""
    assert probe.data is not None
    source: dict[str, Any] = {"data": data_title(probe.data), "images": probe.images}
    if probe.data == DIGIT_SCENES:
        return DatasetInfo(DIGIT_SCENES, "evaluation", source, (-1, 3, -1, -1))
    images = of_run(probe)
    splits = {"train": images.train, "val": images.val, "test": images.test}
    source |= {
        "classes": len(images.classes),
        "splits": {name: _digest(_names_and_labels(split)) for name, split in splits.items() if split},
    }
    return DatasetInfo(data_title(probe.data), "evaluation", source, (-1, 3, -1, -1), probe.data)


def _names_and_labels(split: Split) -> bytes:
    names = split.reader.names.tobytes() if isinstance(split.reader, ImageFiles) else b""
    return split.labels.tobytes() + names


def log_params_and_tags(client: MlflowClient, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Log parameters and tags, in as many calls as MLflow's limit requires."""
    from mlflow.entities import Param, RunTag

    entities = [Param(key, value) for key, value in params.items()]
    for first in range(0, len(entities), _MAX_PARAMS):
        client.log_batch(run_id, params=entities[first : first + _MAX_PARAMS])
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def shortened(value: str) -> str:
    """A value without credentials, and no longer than MLflow accepts."""
    value = redacted(value)
    return value if len(value) <= _MAX_VALUE else value[: _MAX_VALUE - 1] + "…"


def redacted(text: str) -> str:
    """The text without the user and password of any address in it."""
    return re.sub(r"://[^/\s]*@", "://", text)


_SPEED_SETTINGS = ("cuda_graphs", "compile", "micro_batch")  # of a generator; they do not identify its images
_ANCHOR_SETTINGS = ("num_anchors", "num_neighbors", "classes", "class_weights")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_MAX_DIGEST]


def _flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{path}{key}.")
        else:
            yield path + key, value


def _range(bounds: tuple[int, int]) -> str:
    low, high = bounds
    return f"{low}" if low == high else f"{low} to {high}"


def _version(package: str) -> str:
    try:
        return version(package)  # asks the installation, without importing torch or ray
    except PackageNotFoundError:
        return "not installed"


def origin() -> dict[str, str]:
    """Who started the run, from what state of the code, under MLflow's own tag names."""
    tags = {"mlflow.source.name": "genray", "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):  # in a container the user id may have no name
        tags["mlflow.user"] = getpass.getuser()
    # genray's checkout, or the project that it is installed in; a Ray job's copy may have no .git.
    for directory in (Path(__file__).parent, Path.cwd()):
        if commit := _git(directory, "rev-parse", "HEAD"):
            changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
            tags["mlflow.source.git.commit"] = commit
            tags["mlflow.source.git.dirty"] = "true" if changed else "false"
            break
    return tags


def _git(directory: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", directory, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
