"""Labelled images by their name: `digit-scenes`, a directory, `torchvision:NAME:DIRECTORY`."""

from __future__ import annotations

import difflib
import functools
from dataclasses import replace
from pathlib import Path

import numpy as np

from genray.probes.images import LabelledImages, some
from genray.probes.settings import DIGITS, FORMS, SHOTS, Probe, parse
from genray.settings import UserError


def load(text: str, images: int = Probe().images, called: str = "--data") -> LabelledImages:
    """The labelled images that a text names; reads their labels, and no image.

    Args:
        text: see `genray.probes.settings.parse`.
        images: how many digit scenes there are to learn from.
        called: what the text was given as, for the error.

    Raises:
        UserError: there are none of that name, or they are not as their kind has to be.
    """
    name = parse(text, called)
    if name.kind == "digit-scenes":
        from genray.probes.digits import digit_scenes

        return digit_scenes(images)
    from genray.probes import folders

    path = Path(name.path).expanduser().absolute()
    remote = "://" in name.path
    if not remote and not path.exists():
        close = difflib.get_close_matches(text, [DIGITS], 1, cutoff=0.5)
        remedy = f"; did you mean {DIGITS!r}?" if close else ", which does not exist"
        raise UserError(f"{called} must be {FORMS}, got {text!r}{remedy}")
    if name.kind == "torchvision":
        from genray.probes.packaged import packaged

        return packaged(name.option, path)
    if name.kind == "parquet" or remote or (name.kind == "path" and _has_parquet(path)):
        from genray.probes.parquet import parquet

        return parquet(name.path if remote else str(path), name.option)
    if name.kind == "voc" or (name.kind == "path" and folders.voc_root(path)):
        return folders.voc(path)
    return folders.folder(path)


@functools.cache
def of_run(probe: Probe) -> LabelledImages:
    """The labelled images that a run is judged on; raises UserError as `load` does."""
    assert probe.data is not None
    return load(probe.data, probe.images, "probe.data")


def while_it_lasts(probe: Probe) -> LabelledImages:
    """The same, to be judged on while the run lasts: the images for choices are in the place of the test split.

    Of images on disk a split has `probe.images` at most, the same in every run.
    """
    found = of_run(probe)
    splits = [split if split.pixels is not None else some(split, probe.images) for split in found.for_choices()]
    return replace(found, name=f"{found.name}-val", train=splits[0], test=splits[1], val=None)


def check(probe: Probe) -> None:
    """Raises UserError where a run could not be judged; digit scenes are always there."""
    if probe.data is None or (probe.data == DIGITS and not probe.beside):
        return
    of_run(probe).check_suits(probe.beside, "probe.beside")
    if "few" in probe.beside:
        images = while_it_lasts(probe)
        counts = np.bincount(images.train.labels, minlength=len(images.classes))
        if counts.min() < max(SHOTS):
            raise UserError(
                f"probe.images must leave {max(SHOTS)} of each class to learn from for few of probe.beside, got "
                f"{probe.images}, which leaves {counts.min()} of {images.classes[counts.argmin()]}; raise it, or leave "
                "out few"
            )


def _has_parquet(path: Path) -> bool:
    """Whether there are Parquet files in the directory or one below it; a search of all would list every image."""
    return any(next(path.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet"))
