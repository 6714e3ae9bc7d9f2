"""torchvision's data sets where they lie on disk; nothing is ever downloaded."""

from __future__ import annotations

import difflib
import functools
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genray.probes.images import LabelledImages, Split
from genray.settings import UserError

PARTS = {"train": ("train", "trainval"), "test": ("test", "val"), "val": ("val", "valid")}
"""What data sets call their parts; the first that one has is taken."""

UPRIGHT = ("MNIST", "KMNIST", "QMNIST", "EMNIST", "USPS", "SVHN", "GTSRB", "RenderedSST2")
"""Those whose mirror images show something else: characters and signs."""

Arguments = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Item:
    """Images of a part of one of torchvision's data sets, which each process opens for itself."""

    name: str
    root: str
    arguments: Arguments

    def image(self, row: int) -> Image.Image:
        try:
            image = _opened(self.name, self.root, self.arguments)[row][0]
        except UserError:
            raise
        except Exception as error:  # whatever the data set raises
            where = f"image {row} of {self.name} {dict(self.arguments)} in '{self.root}'"
            raise UserError(f"labelled images must be files that can be decoded, got {where} ({error})") from None
        return image.convert("RGB")


def packaged(name: str, root: Path) -> LabelledImages:
    """One of torchvision's data sets of images with one label each, from where it was downloaded to.

    Raises:
        UserError: torchvision has no such data set, it has no parts to learn from and to judge on, or its files are not
            below `root`.
    """
    known = _known()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, cutoff=0.5)
        remedy = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
        raise UserError(f"--data torchvision:NAME must name one of torchvision's data sets, got {name!r}; {remedy}")
    parts = {part: arguments for part in PARTS if (arguments := _arguments(name, root, part)) is not None}
    if "train" not in parts or "test" not in parts:
        raise UserError(
            f"torchvision's data set must have a part to learn from and one to judge on, got {name!r}; "
            "sort its images into train/CLASS/ and test/CLASS/"
        )
    if parts["test"] == parts.get("val"):
        del parts["val"]
    splits = {part: _split(name, root, arguments) for part, arguments in parts.items()}
    number = 1 + max(int(split.labels.max()) for split in splits.values())
    classes = getattr(_opened(name, str(root), parts["train"]), "classes", None)
    if not isinstance(classes, list | tuple) or len(classes) < number:
        classes = range(number)
    return LabelledImages(
        name=name,
        classes=tuple(map(str, classes)),
        train=splits["train"],
        test=splits["test"],
        val=splits.get("val"),
        mirrored=name not in UPRIGHT,
    )


def _known() -> list[str]:
    from torchvision import datasets

    found = {name: getattr(datasets, name) for name in datasets.__all__}
    return [name for name, it in found.items() if isinstance(it, type) and issubclass(it, datasets.VisionDataset)]


def _arguments(name: str, root: Path, part: str) -> Arguments | None:
    """What the data set takes to be this part; None where it has none."""
    from torchvision import datasets

    takes = inspect.signature(getattr(datasets, name)).parameters
    quiet: Arguments = (("download", False),) if "download" in takes else ()
    if "train" in takes:
        return None if part == "val" else (("train", part == "train"), *quiet)
    if "split" not in takes:
        return None
    for word in PARTS[part]:
        arguments = (("split", word), *quiet)
        try:
            _opened(name, str(root), arguments)
        except ValueError:  # it has no part of that name
            continue
        return arguments
    return None


@functools.cache
def _opened(name: str, root: str, arguments: Arguments) -> Any:
    from torchvision import datasets

    try:
        return getattr(datasets, name)(root, **dict(arguments))
    except ValueError:
        raise
    except Exception as error:  # RuntimeError, FileNotFoundError, ModuleNotFoundError: each has its own
        raise UserError(
            f"--data must be the directory that torchvision's {name} was downloaded to, got '{root}' "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from None


def _split(name: str, root: Path, arguments: Arguments) -> Split:
    opened = _opened(name, str(root), arguments)
    try:
        labels = np.asarray(_labels(opened), dtype=np.int64)
    except (TypeError, ValueError):
        labels = np.empty(0, dtype=np.int64)
    if labels.shape != (len(opened),) or labels.min() < 0:
        raise UserError(f"torchvision's data set must have one class for each image, got {name!r}, which has not")
    return Split(labels, Item(name, str(root), arguments))


def _labels(opened: Any) -> Any:
    for attribute in ("targets", "labels", "_labels"):
        if len(found := getattr(opened, attribute, ())) == len(opened):
            return found
    for attribute in ("samples", "_samples"):
        if len(found := getattr(opened, attribute, ())) == len(opened):
            return [label for _, label in found]
    return [opened[row][1] for row in range(len(opened))]
