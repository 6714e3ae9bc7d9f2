"""Labelled images for tests: small pictures, one colour to a class, written as each kind of data set."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

COLOURS = {"blue": (20, 30, 200), "green": (20, 200, 30), "red": (200, 20, 30)}
NAMES = tuple(COLOURS)


def picture(name: str, row: int, width: int = 20, height: int = 16) -> Image.Image:
    """A picture of a class's colour, with noise that is a function of the class and the row."""
    noise = np.random.default_rng([NAMES.index(name), row]).integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image) -> bytes:
    """As a PNG."""
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def folder(root: Path, **sizes: int) -> Path:
    """`root/SPLIT/CLASS/NUMBER.png`, for each split so many of each class; no picture is twice there."""
    first = 0
    for split, size in sizes.items():
        for name in NAMES:
            (root / split / name).mkdir(parents=True)
            for row in range(size):
                picture(name, first + row).save(root / split / name / f"{row:03}.png")
        first += size
    return root


def voc(root: Path, shown: dict[str, list[dict[str, list[int]]]]) -> Path:
    """Pascal VOC's layout; for each image of a split its classes, each with the `difficult` of its objects."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True)
    number = 0
    for split, images in shown.items():
        stems = []
        for image in images:
            stem = f"{number:06}"
            things = "".join(
                f"<object><name>{name}</name><difficult>{difficult}</difficult></object>"
                for name, all in image.items()
                for difficult in all
            )
            (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{things}</annotation>")
            picture(next(iter(image), "red"), number).save(root / "JPEGImages" / f"{stem}.jpg")
            stems.append(stem)
            number += 1
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return root


def parquet(
    file: Path,
    labels: list[int],
    *,
    first: int = 0,
    group: int = 4,
    image: str = "image",
    label: str = "label",
    plain: bool = False,
    names: tuple[str, ...] | None = NAMES,
) -> Path:
    """A file as Hugging Face writes them, with groups of `group` rows."""
    content = [encoded(picture(NAMES[label], first + row)) for row, label in enumerate(labels)]
    column = pa.array(content) if plain else pa.array([{"bytes": bytes, "path": None} for bytes in content])
    table = pa.table({image: column, label: pa.array(labels, pa.int64())})
    if names:
        features = {"info": {"features": {label: {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(table, file, row_group_size=group)
    return file
