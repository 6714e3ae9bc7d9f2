"""Labelled images in Parquet files as written by Hugging Face: a column of encoded images and one of classes.

The names of files or directories state the split: `train-00000-of-00005.parquet`, `test/0000.parquet`. Rows are read by
number, so that any process can read any of them.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from PIL import Image

from genray.config.errors import UserError
from genray.probes.crops import decode_rgb
from genray.probes.labelled_images import LabelledImages, Split

CACHED_ROW_GROUPS = 8
"""Row groups whose encoded images a process keeps, for images that follow in the same group."""

_SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


@dataclass(frozen=True, eq=False)
class RowGroups:
    """An `ImageReader` of a column of Parquet files; rows are numbered over all files."""

    files: tuple[str, ...]
    """Path or address of each row group's file."""
    groups: tuple[int, ...]
    """Index of each row group in its file."""
    starts: np.ndarray
    """First row of each group, and the total number of rows."""
    column: str

    def image(self, row: int) -> Image.Image:
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        content = _encoded(self.files[index], self.groups[index], self.column)[row - int(self.starts[index])].as_py()
        where = f"row {row - int(self.starts[index])} of group {self.groups[index]} of {self.files[index]}"
        if content is None:
            raise UserError(f"labelled images must be stored in the column {self.column!r} itself, got none in {where}")
        return decode_rgb(content, where)


def parquet(path: str, label: str = "") -> LabelledImages:
    """Parquet files below a directory or address that all processes can read.

    Args:
        path: the directory, or an address that pyarrow supports (`s3://…`).
        label: the column of classes; by default `label`, or the only column of integers.

    Raises:
        UserError: there are no files of a training split, or of a test or validation split; they lack a column of
            images or classes; or test has other classes than train.
    """
    files_by_split = _files_by_split(path)
    splits, image, numbers = {}, "", ""
    if "train" in files_by_split:
        image, numbers = _columns(files_by_split["train"][0], label)
        splits = {name: _split(files, image, numbers) for name, files in files_by_split.items()}
        # Some data sets hide the labels of test.
        splits = {name: split for name, split in splits.items() if split.labels.min() >= 0}
    test = splits.pop("test", None)
    if "train" not in splits or (test is None and "val" not in splits):
        raise UserError(
            "labelled images must be in Parquet files named train-….parquet and test-….parquet or validation-….parquet "
            f"with their classes, got '{path}' with {', '.join(files_by_split) or 'none'}"
        )
    classes = _classes(files_by_split["train"][0], numbers)
    if not classes:
        classes = [str(c) for c in range(1 + int(splits["train"].labels.max()))]
    test_split = splits["val"] if test is None else test
    if (last := int(test_split.labels.max())) >= len(classes):
        raise UserError(f"the classes of test must be those of train in '{path}', got {last} beyond them")
    return LabelledImages(
        name=path.rstrip("/").rpartition("/")[2],
        classes=tuple(classes),
        train=splits["train"],
        test=test_split,
        val=None if test is None else splits.get("val"),
    )


def _files_by_split(path: str) -> dict[str, list[str]]:
    """The files of each split, sorted."""
    from pyarrow import fs

    try:
        system, inner_path = fs.FileSystem.from_uri(path)
        files = _listed(system, inner_path, path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"--data must be a directory that can be read, got '{path}' ({_line(error)})") from None
    by_split: dict[str, list[str]] = {}
    for file in sorted(files):
        if name := _split_of(file.removeprefix(path)):
            by_split.setdefault(name, []).append(file)
    return by_split


def _listed(system: Any, inner_path: str, path: str) -> list[str]:
    from pyarrow import fs

    infos = system.get_file_info(fs.FileSelector(inner_path, recursive=True))
    scheme = path.removesuffix(inner_path.lstrip("/")) if "://" in path else ""
    return [scheme + info.path.lstrip("/") if scheme else info.path for info in infos if info.extension == "parquet"]


def _split_of(file: str) -> str | None:
    """The split that a path names; the last name counts."""
    words = re.findall(r"(?:^|(?<=[/_.-]))(train|test|validation|valid|val)(?=[/_.-])", file)
    return _SPLITS[words[-1]] if words else None


def _split(files: list[str], image: str, classes: str) -> Split:
    owners: list[str] = []
    groups: list[int] = []
    sizes: list[int] = []
    labels: list[np.ndarray] = []
    for file in files:
        try:
            opened = _open(file)
            if missing := {image, classes} - set(opened.schema_arrow.names):
                raise KeyError(*missing)
            column = opened.read(columns=[classes]).column(0)
            labels.append(column.fill_null(-1).to_numpy().astype(np.int64))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise UserError(
                f"Parquet files must all have the columns {image!r} and {classes!r}, got '{file}' ({_line(error)})"
            ) from None
        for group in range(opened.num_row_groups):
            owners.append(file)
            groups.append(group)
            sizes.append(opened.metadata.row_group(group).num_rows)
    starts = np.cumsum([0, *sizes])
    if not starts[-1]:
        raise UserError(f"Parquet files must hold images, got none in '{files[0]}'")
    return Split(np.concatenate(labels), RowGroups(tuple(owners), tuple(groups), starts, image))


def _columns(file: str, label: str) -> tuple[str, str]:
    """The names of the columns of images and of classes."""
    try:
        schema = _open(file).schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"labelled images must be in Parquet files that can be read, got '{file}' ({_line(error)})"
        ) from None
    images = [field.name for field in schema if _holds_bytes(field.type)]
    numbers = [field.name for field in schema if pa.types.is_integer(field.type)]
    image = next((name for name in ("image", "img") if name in images), images[0] if len(images) == 1 else None)
    wanted = label or ("label" if "label" in numbers else numbers[0] if len(numbers) == 1 else "")
    if image is None or wanted not in numbers:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(
            "Parquet files must have a column `image` of encoded images and one of integer classes, "
            f"got '{file}' with {columns}; name the column of classes as DIRECTORY#COLUMN"
        )
    return image, wanted


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _classes(file: str, label: str) -> list[str] | None:
    """Names of the classes from Hugging Face's metadata in the schema; None without them."""
    metadata = (_open(file).schema_arrow.metadata or {}).get(b"huggingface")
    try:
        return list(map(str, json.loads(metadata or b"{}")["info"]["features"][label]["names"]))
    except (ValueError, KeyError, TypeError):
        return None


def _open(file: str) -> Any:
    from pyarrow import fs

    system, inner_path = fs.FileSystem.from_uri(file)
    return pa.parquet.ParquetFile(inner_path, filesystem=system)


@functools.lru_cache(maxsize=CACHED_ROW_GROUPS)
def _encoded(file: str, group: int, column: str) -> Any:
    """The encoded images of one row group."""
    images = _open(file).read_row_group(group, columns=[column]).column(0)
    return pa.compute.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
