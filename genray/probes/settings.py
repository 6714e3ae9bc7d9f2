"""The settings of the probes of a run, and how labelled images are named."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from genray.settings import ConfigError, UserError, settings

DIGITS = "digit-scenes"
KINDS = ("torchvision", "folder", "voc", "parquet")
FORMS = "digit-scenes, a directory (train/ with val/ or test/, VOC2007, Parquet) or torchvision:NAME:DIRECTORY"

SHOTS = (1, 5, 10)
"""Labelled images of each class where labels are few."""

ProbeName = Literal["knn", "linear", "few", "sgd", "similarity", "svm"]
OF_ONE: tuple[ProbeName, ...] = ("knn", "linear", "few", "sgd", "similarity")
"""Probes for images of one class each."""
OF_SEVERAL: tuple[ProbeName, ...] = ("svm", "similarity")
"""Probes for images that may show several classes."""

Positive = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]


@settings
class Probe:
    """How the representation is judged on labelled images it was not trained on."""

    data: str | None = None
    """Labelled images to judge on: `digit-scenes`, a directory (`train/` with `val/` or `test/`, VOC2007, or Parquet),
    or `torchvision:NAME:DIRECTORY`; none where it is not given.
    """
    every: Positive = 1000
    """Steps between two quick kNN probes, for which the learners wait; none of images that show several classes."""
    neighbors: Positive = 10
    """Neighbours that vote."""
    images: Annotated[int, Field(ge=100)] = 4000
    """Labelled images the classifiers learn from; and at most as many of a directory are judged while the run lasts."""
    beside: tuple[ProbeName, ...] = ()
    """Probes of checkpoints, made beside the training by a task of its own; one that is due while the one before is
    still being made is left out.
    """
    num_gpus: Amount = 0
    """GPUs of the task beside the training; fractions share one. May change when a run is resumed."""
    num_cpus: Amount = 1
    """CPUs of the task beside the training. May change when a run is resumed."""
    timeout_s: Annotated[float, Field(gt=0)] = 1800
    """Seconds after which the task beside the training is given up, waiting for its place included. May change when a
    run is resumed.
    """


class Name(NamedTuple):
    """Labelled images as a user names them."""

    kind: Literal["digit-scenes", "torchvision", "folder", "voc", "parquet", "path"]
    """`path` where the directory itself says what it holds."""
    path: str = ""
    option: str = ""
    """torchvision's name of the data set, or the column of a Parquet file's labels."""


def parse(text: str, called: str = "--data") -> Name:
    """What labelled images a text names; looks at no file.

    Args:
        text: `digit-scenes`, `torchvision:NAME:DIRECTORY`, `folder:`, `voc:` or `parquet:` and a directory, or a
            directory alone; `#COLUMN` after a Parquet directory names its labels.
        called: what the text was given as, for the error.

    Raises:
        UserError: it names none.
    """
    if text == DIGITS:
        return Name("digit-scenes")
    prefix, colon, rest = text.partition(":")
    if prefix == "torchvision" and colon:
        name, _, directory = rest.partition(":")
        if not name or not directory:
            raise UserError(f"{called} must be torchvision:NAME:DIRECTORY, got {text!r}")
        return Name("torchvision", directory, name)
    path, _, option = (rest if prefix in KINDS and colon else text).partition("#")
    if prefix in KINDS and colon:
        return Name(prefix, path, option)  # type: ignore[arg-type]
    if colon and "/" not in prefix and not rest.startswith("//"):
        close = difflib.get_close_matches(prefix, KINDS, 1, cutoff=0.5)
        raise UserError(f"{called} must be {FORMS}, got {text!r}" + (f"; did you mean {close[0]}:?" if close else ""))
    return Name("path", path, option)


def title(text: str) -> str:
    """The short name of labelled images, for metrics: `digit-scenes`, torchvision's name, or the directory's."""
    name = parse(text)
    if name.kind == "digit-scenes":
        return DIGITS
    return name.option if name.kind == "torchvision" else name.path.rstrip("/").rpartition("/")[2]


def absolute(text: str) -> str:
    """The same labelled images, whatever directory a process is started in."""
    if text == DIGITS:
        return text
    name = parse(text)
    if "://" in name.path:
        return text
    path = str(Path(name.path).expanduser().absolute())
    if name.kind == "torchvision":
        return f"torchvision:{name.option}:{path}"
    return (f"{name.kind}:" if name.kind != "path" else "") + path + (f"#{name.option}" if name.option else "")


def check(probe: Probe) -> None:
    """The rules that tie the fields of the section together; raises ConfigError."""
    if probe.neighbors > probe.images:
        raise ConfigError(f"probe.neighbors must be at most probe.images ({probe.images}), got {probe.neighbors}")
    if probe.data is None:
        if probe.beside:
            raise ConfigError(
                f"probe.data must name labelled images for the probes of probe.beside, got none; it may be {FORMS}"
            )
        return
    try:
        parse(probe.data, "probe.data")
    except UserError as error:
        raise ConfigError(str(error)) from None
