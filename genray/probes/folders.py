"""Labelled images in directories: `train/CLASS/…` with `test/` or `val/` beside it, and Pascal VOC's layout."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from genray.probes.images import Files, LabelledImages, Split, same_classes
from genray.settings import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
VALIDATION = ("val", "valid", "validation")
VOC_PARTS = ("Annotations", "ImageSets/Main", "JPEGImages")


def folder(root: Path) -> LabelledImages:
    """Images sorted into a directory for each class, as torchvision's ImageFolder has them.

    `test/` is what is reported on; where there is none, `val/` is.

    Raises:
        UserError: a split or its images are missing, or the classes of two splits differ.
    """
    val = next((root / name for name in VALIDATION if (root / name).is_dir()), None)
    parts = {"train": root / "train", "val": val, "test": root / "test"}
    there = {name: path for name, path in parts.items() if path is not None and path.is_dir()}
    if "train" not in there or len(there) < 2:
        raise UserError(
            f"labelled images must lie in train/CLASS/ and in test/CLASS/ or val/CLASS/, got '{root}', which has "
            + (", ".join(f"{path.name}/" for path in there.values()) or "none of them")
        )
    classes = _directories(there["train"])
    for path in there.values():
        same_classes(root, classes, path.name, _directories(path))
    splits = {name: _files(path, classes) for name, path in there.items()}
    test = splits.pop("test", None)
    return LabelledImages(
        name=root.name,
        classes=tuple(classes),
        train=splits["train"],
        test=splits["val"] if test is None else test,
        val=None if test is None else splits.get("val"),
    )


def voc(root: Path) -> LabelledImages:
    """Pascal VOC's images with the classes that each shows; trainval to learn from, test to report on.

    A class that an image shows in objects marked as difficult alone counts for it neither way.

    Raises:
        UserError: the layout is not VOC's, an annotation cannot be read, or test has other classes than trainval.
    """
    root = voc_root(root) or root
    sets = {name: _listed(root, name) for name in ("trainval", "test")}
    shown = {name: [_objects(root, stem) for stem in stems] for name, stems in sets.items()}
    found = {name: sorted({label for objects in all for label in objects}) for name, all in shown.items()}
    classes = found["trainval"]
    if beyond := set(found["test"]) - set(classes):
        same_classes(root, classes, "test", sorted(set(classes) | beyond))

    def split(name: str) -> Split:
        labels = np.full((len(sets[name]), len(classes)), -1, dtype=np.int8)
        for row, objects in enumerate(shown[name]):
            for label, easy in objects.items():
                labels[row, classes.index(label)] = 1 if easy else 0
        names = [os.fsencode(f"JPEGImages/{stem}.jpg") for stem in sets[name]]
        return Split(labels, Files(str(root), np.array(names)))

    return LabelledImages(root.name, tuple(classes), split("trainval"), split("test"))


def voc_root(root: Path) -> Path | None:
    """The directory below `root`, or itself, that has VOC's layout; None where there is none."""
    candidates = (root, root / "VOC2007", root / "VOCdevkit" / "VOC2007")
    return next((path for path in candidates if all((path / part).is_dir() for part in VOC_PARTS)), None)


def _directories(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(path: Path, classes: list[str]) -> Split:
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [
            os.path.relpath(Path(directory, file), path)
            for directory, _, files in os.walk(path / name, followlinks=True)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
        if not found:
            raise UserError(f"each class must have images ({', '.join(SUFFIXES)}), got none in '{path / name}'")
        names += sorted(map(os.fsencode, found))
        labels += [label] * len(found)
    if not names:
        raise UserError(f"'{path}' must hold a directory of images for each class, got none")
    return Split(np.array(labels, dtype=np.int64), Files(str(path), np.array(names)))


def _listed(root: Path, name: str) -> list[str]:
    file = root / "ImageSets" / "Main" / f"{name}.txt"
    try:
        stems = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(
            f"VOC's layout must list its images in '{file}', which cannot be read ({error.strerror})"
        ) from None
    if not stems:
        raise UserError(f"VOC's layout must list its images in '{file}', got an empty file")
    return stems


def _objects(root: Path, stem: str) -> dict[str, bool]:
    """The classes that an image shows, each with whether any of its objects is not difficult."""
    file = root / "Annotations" / f"{stem}.xml"
    try:
        tree = ElementTree.parse(file)
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"VOC's annotations must be readable XML, got '{file}' ({error})") from None
    found: dict[str, bool] = {}
    for thing in tree.iter("object"):
        name = thing.findtext("name", "").strip()
        found[name] = found.get(name, False) or thing.findtext("difficult", "0").strip() != "1"
    return found
