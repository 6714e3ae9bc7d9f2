"""Files of rendered anchors, one per ticket, written atomically and read back bit for bit.

Parquet holds raw pixels: nothing is decoded, any Arrow reader can read them, and a damaged page is detected by its
checksum. WebDataset holds PNGs, also lossless, for programs that expect image files, at the cost of encoding them; its
other entries have a checksum of their own.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from genray.config.errors import GenrayError
from genray.views.types import Block

ShardFormat = Literal["parquet", "webdataset"]
NUMBER_COLUMNS = ("position", "anchor", "epoch", "label")
"""Columns with one number for each anchor."""
ROW_GROUP_BYTES = 2**21
"""Approximate bytes of pixels in a Parquet row group, the least that is read at once."""


class DamagedShard(GenrayError):
    """A file does not hold what was written."""


@dataclass(frozen=True)
class Shards:
    """The files of a directory, each with the anchors at `anchors` consecutive positions of the stream."""

    directory: Path
    format: ShardFormat
    anchors: int
    """Anchors in each file."""

    def path(self, ticket: int) -> Path:
        """The file of a ticket."""
        return self.directory / f"{ticket:08}.{FORMAT_SUFFIXES[self.format]}"

    def tickets(self) -> list[int]:
        """Numbers of the tickets that have files, in order."""
        files = self.directory.glob(f"[0-9]*.{FORMAT_SUFFIXES[self.format]}")
        return sorted(int(file.stem) for file in files if file.stem.isdigit())

    def write(self, ticket: int, block: Block) -> int:
        """Write a ticket's file; returns its size in bytes.

        Raises:
            OSError: it cannot be written.
        """
        path = self.path(ticket)
        with _atomic(path) as partial:
            FORMATS[self.format].write(partial, block)
        return path.stat().st_size

    def remove_partial(self) -> None:
        """Remove what killed writers left behind."""
        for partial in self.directory.glob(f".[0-9]*.{FORMAT_SUFFIXES[self.format]}.*"):
            partial.unlink(missing_ok=True)


class ShardReader:
    """Reads the anchors at any positions of the stream; keeps the last file open."""

    def __init__(self, shards: Shards):
        self.shards = shards
        self.ticket = -1
        self.file: _Parquet | _WebDataset | None = None

    def read(self, position: np.ndarray) -> Block:
        """`views`, `latent`, `position`, `anchor`, `epoch` and `label` at these positions, int64 `[n]`.

        Raises:
            FileNotFoundError: one of them has no file.
            DamagedShard: a file does not hold what was written.
        """
        tickets, rows = np.divmod(position, self.shards.anchors)
        block: Block = {}
        for ticket in np.unique(tickets):
            in_ticket = tickets == ticket
            part = self._rows(int(ticket), rows[in_ticket])
            if not np.array_equal(part["position"], position[in_ticket]):
                raise DamagedShard(f"{self.shards.path(int(ticket))} holds other positions than its name says")
            for name, column in part.items():
                if name not in block:
                    block[name] = np.empty((len(position), *column.shape[1:]), column.dtype)
                block[name][in_ticket] = column
        return block

    def _rows(self, ticket: int, rows: np.ndarray) -> Block:
        path = self.shards.path(ticket)
        try:
            if ticket != self.ticket or self.file is None:
                self.file, self.ticket = FORMATS[self.shards.format](path), ticket
            return self.file(rows)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError, LookupError, SyntaxError, tarfile.TarError) as error:
            raise DamagedShard(f"{path} cannot be read ({' '.join(str(error).split())})") from error


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A temporary file to write to, which replaces `path` once it is on the disk."""
    # Random, because another machine may write the same ticket from a process with the same id.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Parquet:
    """Holds the pixels of an anchor as one binary value: in a list, Parquet would store four bytes for each."""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self.file = pq.ParquetFile(path, page_checksum_verification=True)
        self.shapes = json.loads(self.file.schema_arrow.metadata[b"genray"])
        self.group = self.file.metadata.row_group(0).num_rows

    def __call__(self, rows: np.ndarray) -> Block:
        groups = np.unique(rows // self.group)
        table = self.file.read_row_groups(groups.tolist()).combine_chunks()
        chosen = np.searchsorted(groups, rows // self.group) * self.group + rows % self.group
        block = {name: table[name].to_numpy()[chosen] for name in NUMBER_COLUMNS}
        pixels = table["views"].chunk(0)
        size, first = pixels.type.byte_width, pixels.offset
        flat = np.frombuffer(pixels.buffers()[1], np.uint8)[first * size : (first + len(pixels)) * size]
        block["views"] = flat.reshape(-1, *self.shapes["views"])[chosen]
        latent = table["latent"].chunk(0).flatten().to_numpy() if "latent" in table.column_names else np.zeros(0)
        block["latent"] = latent.astype(np.float32).reshape(len(pixels), *self.shapes["latent"])[chosen]
        return block

    @staticmethod
    def write(path: Path, block: Block) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        count, views, latent = len(block["position"]), block["views"], block["latent"]
        pixels = np.ascontiguousarray(views).reshape(count, -1)
        columns = {name: pa.array(block[name]) for name in NUMBER_COLUMNS}
        if latent.size:
            width = latent.size // count
            columns["latent"] = pa.FixedSizeListArray.from_arrays(pa.array(latent.reshape(-1)), width)
        columns["views"] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(pixels.shape[1]), count, [None, pa.py_buffer(pixels)]
        )
        shapes = {"latent": latent.shape[1:], "views": views.shape[1:]}
        pq.write_table(
            pa.table(columns).replace_schema_metadata({"genray": json.dumps(shapes)}),
            path,
            row_group_size=max(1, ROW_GROUP_BYTES // pixels.shape[1]),
            compression="none",
            use_dictionary=False,
            write_statistics=list(NUMBER_COLUMNS),
            write_page_checksum=True,
        )


class _WebDataset:
    """Holds for each anchor PNGs of its views, its numbers as JSON and its latents as NPY; the key is its position."""

    def __init__(self, path: Path):
        self.file = path.open("rb")
        with tarfile.open(fileobj=self.file) as archive:
            self.entries = {entry.name: (entry.offset_data, entry.size) for entry in archive}
        keys = dict.fromkeys(name.partition(".")[0] for name in self.entries)
        self.keys = list(keys)

    def __call__(self, rows: np.ndarray) -> Block:
        samples = [self._sample(self.keys[row]) for row in rows]
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    def _sample(self, key: str) -> Block:
        record, views = json.loads(self._read(f"{key}.json")), list[np.ndarray]()
        numbers = {name: record[name] for name in NUMBER_COLUMNS}
        while (name := f"{key}.{len(views)}.png") in self.entries:
            content = self._read(name)
            with Image.open(io.BytesIO(content)) as image:
                image.verify()  # checksums alone; the file must be opened again for its pixels
            with Image.open(io.BytesIO(content)) as image:
                views.append(np.asarray(image).transpose(2, 0, 1))
        latents = self._read(name) if (name := f"{key}.latent.npy") in self.entries else b""
        if record["crc32"] != _checksum(numbers, latents):
            raise ValueError(f"the checksum of {key} is wrong")
        latent = np.load(io.BytesIO(latents), allow_pickle=False) if latents else np.zeros((len(views), 0), np.float32)
        columns = {name: np.array(numbers[name]) for name in NUMBER_COLUMNS}
        return {"views": np.stack(views), "latent": latent, **columns}

    def _read(self, name: str) -> bytes:
        start, size = self.entries[name]
        self.file.seek(start)
        return self.file.read(size)

    @staticmethod
    def write(path: Path, block: Block) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:

            def add(name: str, content: bytes) -> None:
                entry = tarfile.TarInfo(name)  # without a time, so that equal anchors are equal bytes
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

            for row, position in enumerate(block["position"]):
                key, latents = f"{position:012}", io.BytesIO()
                if block["latent"].size:
                    np.save(latents, block["latent"][row])
                numbers = {name: int(block[name][row]) for name in NUMBER_COLUMNS}
                record = {**numbers, "crc32": _checksum(numbers, latents.getvalue())}
                add(f"{key}.json", json.dumps(record).encode())
                if block["latent"].size:
                    add(f"{key}.latent.npy", latents.getvalue())
                for number, view in enumerate(block["views"][row]):
                    file = io.BytesIO()
                    Image.fromarray(view.transpose(1, 2, 0)).save(file, format="PNG", compress_level=1)
                    add(f"{key}.{number}.png", file.getvalue())


def _checksum(numbers: dict[str, int], latents: bytes) -> int:
    """CRC-32 of an anchor's numbers and latents in a WebDataset; PNGs have checksums of their own."""
    return zlib.crc32(latents, zlib.crc32(json.dumps([numbers[name] for name in NUMBER_COLUMNS]).encode()))


FORMATS: dict[ShardFormat, type[_Parquet] | type[_WebDataset]] = {"parquet": _Parquet, "webdataset": _WebDataset}
FORMAT_SUFFIXES: dict[ShardFormat, str] = {"parquet": "parquet", "webdataset": "tar"}
