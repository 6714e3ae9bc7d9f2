"""Loads labelled images by name: `digit-scenes`, a directory, or `torchvision:NAME:DIRECTORY`."""

from __future__ import annotations

import difflib
import functools
from dataclasses import replace
from pathlib import Path

import numpy as np

from genray.config.errors import UserError
from genray.config.probe import DATA_SYNTAX, DEFAULT_SHOTS, DIGIT_SCENES, Probe, parse_data_name
from genray.probes.labelled_images import LabelledImages, subset


def load(text: str, images: int = Probe().images, source: str = "--data") -> LabelledImages:
    """The labelled images with this name; reads labels but no image.

    Args:
        text: see `genray.config.probe.parse_data_name`.
        images: number of digit scenes to train on.
        source: the option or field that holds the text, for the error message.

    Raises:
        UserError: there are none with this name, or they do not have the format that it requires.
    """
    name = parse_data_name(text, source)
    if name.kind == "digit-scenes":
        from genray.probes.digits import digit_scenes

        return digit_scenes(images)
    from genray.probes import folders

    path = Path(name.path).expanduser().absolute()
    remote = "://" in name.path
    if not remote and not path.exists():
        close = difflib.get_close_matches(text, [DIGIT_SCENES], 1, cutoff=0.5)
        remedy = f"; did you mean {DIGIT_SCENES!r}?" if close else ", which does not exist"
        raise UserError(f"{source} must be {DATA_SYNTAX}, got {text!r}{remedy}")
    if name.kind == "torchvision":
        from genray.probes.torchvision_data import torchvision_dataset

        return torchvision_dataset(name.option, path)
    if name.kind == "parquet" or remote or (name.kind == "path" and _has_parquet(path)):
        from genray.probes.parquet import parquet

        return parquet(name.path if remote else str(path), name.option)
    if name.kind == "voc" or (name.kind == "path" and folders.voc_root(path)):
        return folders.voc(path)
    return folders.folder(path)


@functools.cache
def of_run(probe: Probe) -> LabelledImages:
    """The labelled images of a run's probes; raises UserError like `load`."""
    assert probe.data is not None
    return load(probe.data, probe.images, "probe.data")


def during_training(probe: Probe) -> LabelledImages:
    """The labelled images for probes during training: the validation images take the place of the test split.

    A split of images on disk has at most `probe.images` of them, the same ones in every run.
    """
    images = of_run(probe)
    splits = [split if split.pixels is not None else subset(split, probe.images) for split in images.for_choices()]
    return replace(images, name=f"{images.name}-val", train=splits[0], test=splits[1], val=None)


def check(probe: Probe) -> None:
    """Raise UserError if a run's probes could not be computed; digit scenes are always available."""
    if probe.data is None or (probe.data == DIGIT_SCENES and not probe.beside):
        return
    of_run(probe).check_suits(probe.beside, "probe.beside")
    if "few" in probe.beside:
        images = during_training(probe)
        counts = np.bincount(images.train.labels, minlength=len(images.classes))
        if counts.min() < max(DEFAULT_SHOTS):
            raise UserError(
                f"probe.images must leave {max(DEFAULT_SHOTS)} training images of each class for few in probe.beside, "
                f"got {probe.images}, which leaves {counts.min()} of {images.classes[counts.argmin()]}; raise it, or "
                "leave out few"
            )


def _has_parquet(path: Path) -> bool:
    """Whether there are Parquet files in the directory or its children; a full search would list every image."""
    return any(next(path.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet"))
