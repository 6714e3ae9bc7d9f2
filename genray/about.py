"""What MLflow is told of a run before it begins: parameters, tags, and the data that go in."""

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

from genray import generators, sources
from genray.config import Config
from genray.job import submission_id
from genray.plan import Plan
from genray.probes.data import of_run
from genray.probes.images import Files, Split
from genray.probes.settings import DIGITS, Probe, title

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

RUN, START, SWEEP, LESSON = "run", "start", "sweep", "lesson"
"""Values of the tag `kind`: a run, one start of a run that was resumed, the parent of runs that belong together, and
the learning of a generator's views.
"""

_MAX_VALUE = 6000  # characters of a parameter or tag that every MLflow store takes
_MAX_PARAMS = 100  # in a call
_MAX_DIGEST = 36


@dataclass(frozen=True)
class Data:
    """Images that a run learned from or was judged on, as MLflow lists them."""

    name: str
    context: str
    """`training` or `evaluation`."""
    source: dict[str, Any]
    """What decides them, so far as that can be told without reading images; its digest is theirs."""
    shape: tuple[int, ...]
    """Of the images, uint8; -1 for how many."""
    place: str | None = None
    """Where they lie, which decides nothing."""

    @property
    def digest(self) -> str:
        """The same for the same images, wherever they lie."""
        return _digest(json.dumps(self.source, sort_keys=True).encode())

    def for_mlflow(self) -> DatasetInput:
        """The entity that MLflow records."""
        import numpy as np
        from mlflow.data.schema import TensorDatasetSchema
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.types import Schema, TensorSpec

        images = TensorDatasetSchema(Schema([TensorSpec(np.dtype("uint8"), self.shape, name="images")]))
        schema = json.dumps(images.to_dict())
        source = self.source if self.place is None else {"place": public(self.place), **self.source}
        dataset = Dataset(self.name, self.digest, "genray", json.dumps(source), schema=schema)
        return DatasetInput(dataset, [InputTag("mlflow.data.context", self.context)])


def parameters(settings: Config | Mapping[str, Any]) -> dict[str, str]:
    """Every setting under its dotted path, as MLflow takes it; text as it is, other values as JSON.

    The name is that of the MLflow run, and no parameter: it would stand first wherever runs are compared.
    """
    return {
        re.sub(r"[^\w\-. /]", "_", path): shortened(value if isinstance(value, str) else json.dumps(value))
        for path, value in _flatten(settings.to_dict() if isinstance(settings, Config) else settings)
        if path != "name"
    }


def tags(config: Config, kind: str = RUN) -> dict[str, str]:
    """What runs are told apart by: source, software, what is learned from what, and the world sizes asked for."""
    inline = config.generators.mode == "inline"
    about = {"kind": kind, **{f"{package}.version": _version(package) for package in ("genray", "ray", "torch")}}
    if kind == SWEEP:
        return {**about, **_origin()}
    if kind == LESSON:
        return {**about, "generator": generators.describe(config.generator).name, **_origin()}
    return {
        **about,
        "source": config.source.kind,
        "generator": sources.describe(config).name,
        "view": config.view.kind,
        "objective": config.objective.kind,
        "world.learners": _range(config.learners.bounds),
        "world.generators": "inline" if inline else _range(config.generators.bounds),
        **({"ray.submission_id": job} if (job := submission_id()) else {}),
        **({"sweep": config.tracking.sweep} if config.tracking.sweep else {}),
        **_origin(),
    }


def data(config: Config) -> list[Data]:
    """The views that the run learns from, and the labelled images that it is judged on, if it is."""
    plan, settings, side = Plan.of(config), config.to_dict(), Plan.of(config).image_size
    rendered = {name: value for name, value in settings["generator"].items() if name not in _OF_NO_CONSEQUENCE}
    by = {"generator": rendered, "weights": generators.fingerprint(config.generator)} if config.source.renders else {}
    place = settings["source"].pop("directory", None)
    views = {
        "source": settings["source"],
        **by,
        "view": settings["view"],
        "num_views": plan.rendered_views,
        **{name: settings["stream"][name] for name in _OF_ANCHORS},
        "seed": config.seed,
        "anchors": [0, plan.fresh_steps(plan.steps) * plan.batch_size],
        "tickets": [0, plan.tickets],
    }
    found = [Data(plan.generator, "training", views, (-1, plan.rendered_views, 3, side, side), place)]
    return [*found, _judged(config.probe)] if config.probe.data else found


def _judged(probe: Probe) -> Data:
    """The labelled images; those on disk are told apart by the files' names and the labels of all splits."""
    assert probe.data is not None
    told: dict[str, Any] = {"data": title(probe.data), "images": probe.images}
    if probe.data == DIGITS:
        return Data(DIGITS, "evaluation", told, (-1, 3, -1, -1))
    found = of_run(probe)
    splits = {"train": found.train, "val": found.val, "test": found.test}
    told |= {
        "classes": len(found.classes),
        "splits": {name: _digest(_listed(split)) for name, split in splits.items() if split},
    }
    return Data(title(probe.data), "evaluation", told, (-1, 3, -1, -1), probe.data)


def _listed(split: Split) -> bytes:
    names = split.source.names.tobytes() if isinstance(split.source, Files) else b""
    return split.labels.tobytes() + names


def describe(client: MlflowClient, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Record parameters and tags, in as many calls as it takes."""
    from mlflow.entities import Param, RunTag

    named = [Param(key, value) for key, value in params.items()]
    for first in range(0, len(named), _MAX_PARAMS):
        client.log_batch(run_id, params=named[first : first + _MAX_PARAMS])
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def shortened(value: str) -> str:
    """A value without credentials, and no longer than MLflow takes."""
    value = public(value)
    return value if len(value) <= _MAX_VALUE else value[: _MAX_VALUE - 1] + "…"


def public(text: str) -> str:
    """Without the user and password that an address may hold."""
    return re.sub(r"://[^/\s]*@", "://", text)


_OF_NO_CONSEQUENCE = ("cuda_graphs", "compile", "micro_batch")
_OF_ANCHORS = ("num_anchors", "num_neighbors", "classes", "class_weights")


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


def _origin() -> dict[str, str]:
    """Who started it, from what state of the code, under the names that MLflow's own runs have."""
    found = {"mlflow.source.name": "genray", "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):  # in a container, an id without a name
        found["mlflow.user"] = getpass.getuser()
    # genray's own checkout, or the project that it is installed in; a job that was shipped without its .git has none.
    for directory in (Path(__file__).parent, Path.cwd()):
        if commit := _git(directory, "rev-parse", "HEAD"):
            changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
            found["mlflow.source.git.commit"] = commit
            found["mlflow.source.git.dirty"] = "true" if changed else "false"
            break
    return found


def _git(directory: Path, *arguments: str) -> str:
    try:
        found = subprocess.run(["git", "-C", directory, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
