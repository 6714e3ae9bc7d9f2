"""torchvision's data sets on disk; nothing is ever downloaded."""

from __future__ import annotations

import difflib
import functools
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genray.config.errors import UserError
from genray.probes.labelled_images import LabelledImages, Split

SPLIT_NAMES = {"train": ("train", "trainval"), "test": ("test", "val"), "val": ("val", "valid")}
"""What torchvision's data sets call each split; the first name that a data set has is used."""

NOT_MIRRORABLE = ("MNIST", "KMNIST", "QMNIST", "EMNIST", "USPS", "SVHN", "GTSRB", "RenderedSST2")
"""Data sets of characters and signs, whose mirror images have another meaning."""

Arguments = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class TorchvisionImages:
    """An `ImageReader` of a split of a torchvision data set, which each process opens for itself."""

    name: str
    root: str
    arguments: Arguments

    def image(self, row: int) -> Image.Image:
        try:
            image = opened(self.name, self.root, self.arguments)[row][0]
        except UserError:
            raise
        except Exception as error:  # data sets raise various errors
            where = f"image {row} of {self.name} {dict(self.arguments)} in '{self.root}'"
            raise UserError(f"labelled images must be files that can be decoded, got {where} ({error})") from None
        return image.convert("RGB")


def torchvision_dataset(name: str, root: Path) -> LabelledImages:
    """A torchvision data set of images with one label each, from the directory that it was downloaded to.

    Raises:
        UserError: torchvision has no such data set, it has no training and test split, or its files are not in `root`.
    """
    known = _known()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, cutoff=0.5)
        remedy = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
        raise UserError(f"--data torchvision:NAME must name one of torchvision's data sets, got {name!r}; {remedy}")
    arguments = {split: given for split in SPLIT_NAMES if (given := _arguments(name, root, split)) is not None}
    if "train" not in arguments or "test" not in arguments:
        raise UserError(
            f"torchvision's data set must have a training and a test split, got {name!r}; "
            "sort its images into train/CLASS/ and test/CLASS/"
        )
    if arguments["test"] == arguments.get("val"):
        del arguments["val"]
    splits = {split: _split(name, root, given) for split, given in arguments.items()}
    num_classes = 1 + max(int(split.labels.max()) for split in splits.values())
    classes = getattr(opened(name, str(root), arguments["train"]), "classes", None)
    if not isinstance(classes, list | tuple) or len(classes) < num_classes:
        classes = range(num_classes)
    return LabelledImages(
        name=name,
        classes=tuple(map(str, classes)),
        train=splits["train"],
        test=splits["test"],
        val=splits.get("val"),
        may_mirror=name not in NOT_MIRRORABLE,
    )


def _known() -> list[str]:
    from torchvision import datasets

    members = {name: getattr(datasets, name) for name in datasets.__all__}
    return [name for name, it in members.items() if isinstance(it, type) and issubclass(it, datasets.VisionDataset)]


def _arguments(name: str, root: Path, split: str) -> Arguments | None:
    """The arguments that select this split of the data set; None if it has no such split."""
    from torchvision import datasets

    parameters = inspect.signature(getattr(datasets, name)).parameters
    no_download: Arguments = (("download", False),) if "download" in parameters else ()
    if "train" in parameters:
        return None if split == "val" else (("train", split == "train"), *no_download)
    if "split" not in parameters:
        return None
    for split_name in SPLIT_NAMES[split]:
        arguments = (("split", split_name), *no_download)
        try:
            opened(name, str(root), arguments)
        except ValueError:  # it has no split with this name
            continue
        return arguments
    return None


@functools.cache
def opened(name: str, root: str, arguments: Arguments) -> Any:
    """A split of a data set, opened once in each process; raises UserError if its files are missing."""
    from torchvision import datasets

    try:
        return getattr(datasets, name)(root, **dict(arguments))
    except ValueError:
        raise
    except Exception as error:  # RuntimeError, FileNotFoundError or ModuleNotFoundError, depending on the data set
        raise UserError(
            f"--data must be the directory that torchvision's {name} was downloaded to, got '{root}' "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from None


def _split(name: str, root: Path, arguments: Arguments) -> Split:
    data = opened(name, str(root), arguments)
    try:
        labels = np.asarray(_labels(data), dtype=np.int64)
    except (TypeError, ValueError):
        labels = np.empty(0, dtype=np.int64)
    if labels.shape != (len(data),) or labels.min() < 0:
        raise UserError(f"torchvision's data set must have one class for each image, got {name!r}, which does not")
    return Split(labels, TorchvisionImages(name, str(root), arguments))


def _labels(data: Any) -> Any:
    for attribute in ("targets", "labels", "_labels"):
        if len(labels := getattr(data, attribute, ())) == len(data):
            return labels
    for attribute in ("samples", "_samples"):
        if len(samples := getattr(data, attribute, ())) == len(data):
            return [label for _, label in samples]
    return [data[row][1] for row in range(len(data))]
