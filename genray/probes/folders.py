"""Labelled images in directories: `train/CLASS/…` with `test/` or `val/`, and Pascal VOC's layout."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from genray.config.errors import UserError
from genray.probes.labelled_images import ImageFiles, LabelledImages, Split, check_same_classes

LABELLED_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
VALIDATION_NAMES = ("val", "valid", "validation")
VOC_DIRECTORIES = ("Annotations", "ImageSets/Main", "JPEGImages")


def folder(root: Path) -> LabelledImages:
    """Images with one directory per class, the layout of torchvision's ImageFolder.

    Without `test/`, `val/` is the test split.

    Raises:
        UserError: a split or its images are missing, or the classes of two splits differ.
    """
    val = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
    candidates = {"train": root / "train", "val": val, "test": root / "test"}
    directories = {name: path for name, path in candidates.items() if path is not None and path.is_dir()}
    if "train" not in directories or len(directories) < 2:
        raise UserError(
            f"labelled images must be in train/CLASS/ and in test/CLASS/ or val/CLASS/, got '{root}', which has "
            + (", ".join(f"{path.name}/" for path in directories.values()) or "none of them")
        )
    classes = _directories(directories["train"])
    for path in directories.values():
        check_same_classes(root, classes, path.name, _directories(path))
    splits = {name: _files(path, classes) for name, path in directories.items()}
    test = splits.pop("test", None)
    return LabelledImages(
        name=root.name,
        classes=tuple(classes),
        train=splits["train"],
        test=splits["val"] if test is None else test,
        val=None if test is None else splits.get("val"),
    )


def voc(root: Path) -> LabelledImages:
    """Pascal VOC's images, multi-label: `trainval` is the training split, `test` the test split.

    If all objects of a class in an image are marked as difficult, the image is undecided (0) for that class.

    Raises:
        UserError: the layout is not VOC's, an annotation cannot be read, or test has other classes than trainval.
    """
    root = voc_root(root) or root
    sets = {name: _listed(root, name) for name in ("trainval", "test")}
    objects = {name: [_objects(root, stem) for stem in stems] for name, stems in sets.items()}
    labels_of = {name: sorted({label for image in images for label in image}) for name, images in objects.items()}
    classes = labels_of["trainval"]
    if extra := set(labels_of["test"]) - set(classes):
        check_same_classes(root, classes, "test", sorted(set(classes) | extra))

    def split(name: str) -> Split:
        labels = np.full((len(sets[name]), len(classes)), -1, dtype=np.int8)
        for row, image in enumerate(objects[name]):
            for label, easy in image.items():
                labels[row, classes.index(label)] = 1 if easy else 0
        names = [os.fsencode(f"JPEGImages/{stem}.jpg") for stem in sets[name]]
        return Split(labels, ImageFiles(str(root), np.array(names)))

    return LabelledImages(root.name, tuple(classes), split("trainval"), split("test"))


def voc_root(root: Path) -> Path | None:
    """`root` or the directory below it that has VOC's layout; None if there is none."""
    candidates = (root, root / "VOC2007", root / "VOCdevkit" / "VOC2007")
    return next((path for path in candidates if all((path / part).is_dir() for part in VOC_DIRECTORIES)), None)


def _directories(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(path: Path, classes: list[str]) -> Split:
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = [
            os.path.relpath(Path(directory, file), path)
            for directory, _, files in os.walk(path / name, followlinks=True)
            for file in files
            if file.lower().endswith(LABELLED_IMAGE_SUFFIXES) and not file.startswith(".")
        ]
        if not images:
            raise UserError(
                f"each class must have images ({', '.join(LABELLED_IMAGE_SUFFIXES)}), got none in '{path / name}'"
            )
        names += sorted(map(os.fsencode, images))
        labels += [label] * len(images)
    if not names:
        raise UserError(f"'{path}' must hold a directory of images for each class, got none")
    return Split(np.array(labels, dtype=np.int64), ImageFiles(str(path), np.array(names)))


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
    """The classes in an image, each with whether any of its objects is not marked as difficult."""
    file = root / "Annotations" / f"{stem}.xml"
    try:
        tree = ElementTree.parse(file)
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"VOC's annotations must be readable XML, got '{file}' ({error})") from None
    classes: dict[str, bool] = {}
    for element in tree.iter("object"):
        name = element.findtext("name", "").strip()
        classes[name] = classes.get(name, False) or element.findtext("difficult", "0").strip() != "1"
    return classes
