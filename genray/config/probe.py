"""The settings of a run's probes, and the names of labelled images."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from genray.config.errors import UserError
from genray.config.schema import NonNegative, Positive, Seconds, settings

DIGIT_SCENES = "digit-scenes"
"""Name of the shipped labelled images."""
DATA_PREFIXES = ("torchvision", "folder", "voc", "parquet")
"""Prefixes that state the format of labelled images."""
DATA_SYNTAX = "digit-scenes, a directory (train/ with val/ or test/, VOC2007, Parquet) or torchvision:NAME:DIRECTORY"
"""How labelled images may be named, for messages."""

DEFAULT_SHOTS = (1, 5, 10)
"""Labelled images per class in the few-label probe."""

ProbeName = Literal["knn", "linear", "few", "sgd", "similarity", "svm"]
SINGLE_LABEL_PROBES: tuple[ProbeName, ...] = ("knn", "linear", "few", "sgd", "similarity")
"""Probes for images with one label each."""
MULTI_LABEL_PROBES: tuple[ProbeName, ...] = ("svm", "similarity")
"""Probes for multi-label images."""


@settings
class Probe:
    """How the representation is evaluated on labelled images."""

    data: str | None = None
    """Labelled images: `digit-scenes`, a directory (`train/` with `val/` or `test/`, VOC2007, or Parquet), or
    `torchvision:NAME:DIRECTORY`. Default: none, which disables all probes.
    """
    every: Positive = 1000
    """Steps between two quick kNN probes, for which the learners wait. kNN does not support multi-label images."""
    neighbors: Positive = 10
    """Neighbours that vote in kNN."""
    images: Annotated[int, Field(ge=100)] = 4000
    """Labelled images that the classifiers learn from. Of images on disk, a run also tests on at most this many."""
    beside: tuple[ProbeName, ...] = ()
    """Probes to run on each checkpoint during the training, in a task of their own. A checkpoint is skipped if the
    probes of the previous one have not finished.
    """
    num_gpus: NonNegative = 0
    """GPUs of the task that runs `beside`; a fraction shares a GPU. May change when a run is resumed."""
    num_cpus: NonNegative = 1
    """CPUs of the task that runs `beside`. May change when a run is resumed."""
    timeout_s: Seconds = 1800
    """Seconds after which the task that runs `beside` is abandoned, including its wait for resources. May change when a
    run is resumed.
    """


class DataName(NamedTuple):
    """The parsed name of labelled images."""

    kind: Literal["digit-scenes", "torchvision", "folder", "voc", "parquet", "path"]
    """`path` if the format follows from the content of the directory."""
    path: str = ""
    option: str = ""
    """torchvision's name of the data set, or the Parquet column with the labels."""


def parse_data_name(text: str, source: str = "--data") -> DataName:
    """Parse the name of labelled images, without looking at any file.

    Args:
        text: `digit-scenes`, `torchvision:NAME:DIRECTORY`, `folder:`, `voc:` or `parquet:` followed by a directory, or
            a directory only; `#COLUMN` after a Parquet directory names the column with the labels.
        source: the option or field that holds the text, for the error message.

    Raises:
        UserError: the text does not follow this syntax.
    """
    if text == DIGIT_SCENES:
        return DataName("digit-scenes")
    prefix, colon, rest = text.partition(":")
    if prefix == "torchvision" and colon:
        name, _, directory = rest.partition(":")
        if not name or not directory:
            raise UserError(f"{source} must be torchvision:NAME:DIRECTORY, got {text!r}")
        return DataName("torchvision", directory, name)
    path, _, option = (rest if prefix in DATA_PREFIXES and colon else text).partition("#")
    if prefix in DATA_PREFIXES and colon:
        return DataName(prefix, path, option)  # type: ignore[arg-type]
    if colon and "/" not in prefix and not rest.startswith("//"):
        close = difflib.get_close_matches(prefix, DATA_PREFIXES, 1, cutoff=0.5)
        remedy = f"; did you mean {close[0]}:?" if close else ""
        raise UserError(f"{source} must be {DATA_SYNTAX}, got {text!r}{remedy}")
    return DataName("path", path, option)


def data_title(text: str) -> str:
    """The short name of labelled images in metrics: `digit-scenes`, torchvision's name, or the directory's."""
    name = parse_data_name(text)
    if name.kind == "digit-scenes":
        return DIGIT_SCENES
    return name.option if name.kind == "torchvision" else name.path.rstrip("/").rpartition("/")[2]


def with_absolute_path(text: str) -> str:
    """The name with an absolute path, which is valid in any working directory."""
    if text == DIGIT_SCENES:
        return text
    name = parse_data_name(text)
    if "://" in name.path:
        return text
    path = str(Path(name.path).expanduser().absolute())
    if name.kind == "torchvision":
        return f"torchvision:{name.option}:{path}"
    return (f"{name.kind}:" if name.kind != "path" else "") + path + (f"#{name.option}" if name.option else "")
