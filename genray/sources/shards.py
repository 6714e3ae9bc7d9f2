"""Files of rendered anchors, one for each ticket, written whole or not at all; what is read back is what was written.

Parquet holds pixels as they are: nothing has to be decoded, any Arrow reader takes them, and a page that was damaged is
told by its checksum. WebDataset holds PNGs, without loss too, for programs that expect image files, at the cost of
coding them; its other files are told by a checksum of their own.
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

from genray.sources import Block

Format = Literal["parquet", "webdataset"]
NUMBERS = ("position", "anchor", "epoch", "label")
"""Columns of one number for each anchor."""
GROUP_BYTES = 2**21
"""Pixels in a row group of a Parquet file, about: the least that is read of it."""


class Damaged(Exception):
    """A file is not what was written."""


@dataclass(frozen=True)
class Shards:
    """The files of a directory, each of the anchors at `anchors` places of the stream in a row."""

    directory: Path
    format: Format
    anchors: int

    def path(self, ticket: int) -> Path:
        """The file of a ticket."""
        return self.directory / f"{ticket:08}.{SUFFIXES[self.format]}"

    def there(self) -> list[int]:
        """Numbers of the tickets whose files are there, in order."""
        files = self.directory.glob(f"[0-9]*.{SUFFIXES[self.format]}")
        return sorted(int(file.stem) for file in files if file.stem.isdigit())

    def write(self, ticket: int, block: Block) -> int:
        """Write a ticket's file; returns its bytes.

        Raises:
            OSError: it cannot be written.
        """
        path = self.path(ticket)
        with _whole(path) as partial:
            FORMATS[self.format].write(partial, block)
        return path.stat().st_size

    def tidy(self) -> None:
        """Remove what a writer that was killed has left."""
        for partial in self.directory.glob(f".[0-9]*.{SUFFIXES[self.format]}.*"):
            partial.unlink(missing_ok=True)


class Reader:
    """Reads the anchors at any places of the stream, keeping the file open that it read last."""

    def __init__(self, shards: Shards):
        self.shards = shards
        self.ticket = -1
        self.file: _Parquet | _WebDataset | None = None

    def read(self, position: np.ndarray) -> Block:
        """`views`, `latent`, `position`, `anchor`, `epoch` and `label` of these places, int64 `[n]`.

        Raises:
            FileNotFoundError: there is no file of one of them.
            Damaged: a file is not what was written.
        """
        tickets, rows = np.divmod(position, self.shards.anchors)
        found: Block = {}
        for ticket in np.unique(tickets):
            where = tickets == ticket
            part = self._rows(int(ticket), rows[where])
            if not np.array_equal(part["position"], position[where]):
                raise Damaged(f"{self.shards.path(int(ticket))} holds other places of the stream than its name says")
            for name, column in part.items():
                if name not in found:
                    found[name] = np.empty((len(position), *column.shape[1:]), column.dtype)
                found[name][where] = column
        return found

    def _rows(self, ticket: int, rows: np.ndarray) -> Block:
        path = self.shards.path(ticket)
        try:
            if ticket != self.ticket or self.file is None:
                self.file, self.ticket = FORMATS[self.shards.format](path), ticket
            return self.file(rows)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError, LookupError, SyntaxError, tarfile.TarError) as error:
            raise Damaged(f"{path} cannot be read ({' '.join(str(error).split())})") from error


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to be written under another name, which takes its own once all of it is on the disk."""
    # Another machine may be at the same ticket, and its processes have the same numbers.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Parquet:
    """Pixels of an anchor as one string of bytes: as a list Parquet would store four bytes for each of them."""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self.file = pq.ParquetFile(path, page_checksum_verification=True)
        self.shapes = json.loads(self.file.schema_arrow.metadata[b"genray"])
        self.group = self.file.metadata.row_group(0).num_rows

    def __call__(self, rows: np.ndarray) -> Block:
        groups = np.unique(rows // self.group)
        table = self.file.read_row_groups(groups.tolist()).combine_chunks()
        chosen = np.searchsorted(groups, rows // self.group) * self.group + rows % self.group
        found = {name: table[name].to_numpy()[chosen] for name in NUMBERS}
        pixels = table["views"].chunk(0)
        size, first = pixels.type.byte_width, pixels.offset
        whole = np.frombuffer(pixels.buffers()[1], np.uint8)[first * size : (first + len(pixels)) * size]
        found["views"] = whole.reshape(-1, *self.shapes["views"])[chosen]
        latent = table["latent"].chunk(0).flatten().to_numpy() if "latent" in table.column_names else np.zeros(0)
        found["latent"] = latent.astype(np.float32).reshape(len(pixels), *self.shapes["latent"])[chosen]
        return found

    @staticmethod
    def write(path: Path, block: Block) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        count, views, latent = len(block["position"]), block["views"], block["latent"]
        pixels = np.ascontiguousarray(views).reshape(count, -1)
        columns = {name: pa.array(block[name]) for name in NUMBERS}
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
            row_group_size=max(1, GROUP_BYTES // pixels.shape[1]),
            compression="none",
            use_dictionary=False,
            write_statistics=list(NUMBERS),
            write_page_checksum=True,
        )


class _WebDataset:
    """For each anchor PNGs of its views, the numbers as JSON, and the latents as NPY; the key is its position."""

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
        noted, views = json.loads(self._read(f"{key}.json")), list[np.ndarray]()
        numbers = {name: noted[name] for name in NUMBERS}
        while (name := f"{key}.{len(views)}.png") in self.entries:
            content = self._read(name)
            with Image.open(io.BytesIO(content)) as image:
                image.verify()  # its checksums; it has to be opened again for its pixels
            with Image.open(io.BytesIO(content)) as image:
                views.append(np.asarray(image).transpose(2, 0, 1))
        latents = self._read(name) if (name := f"{key}.latent.npy") in self.entries else b""
        if noted["crc32"] != _checksum(numbers, latents):
            raise ValueError(f"the checksum of {key} is another one")
        latent = np.load(io.BytesIO(latents), allow_pickle=False) if latents else np.zeros((len(views), 0), np.float32)
        return {"views": np.stack(views), "latent": latent, **{name: np.array(numbers[name]) for name in NUMBERS}}

    def _read(self, name: str) -> bytes:
        start, size = self.entries[name]
        self.file.seek(start)
        return self.file.read(size)

    @staticmethod
    def write(path: Path, block: Block) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:

            def add(name: str, content: bytes) -> None:
                entry = tarfile.TarInfo(name)  # without a time, so that the same anchors are the same bytes
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

            for row, position in enumerate(block["position"]):
                key, latents = f"{position:012}", io.BytesIO()
                if block["latent"].size:
                    np.save(latents, block["latent"][row])
                numbers = {name: int(block[name][row]) for name in NUMBERS}
                noted = {**numbers, "crc32": _checksum(numbers, latents.getvalue())}
                add(f"{key}.json", json.dumps(noted).encode())
                if block["latent"].size:
                    add(f"{key}.latent.npy", latents.getvalue())
                for number, view in enumerate(block["views"][row]):
                    file = io.BytesIO()
                    Image.fromarray(view.transpose(1, 2, 0)).save(file, format="PNG", compress_level=1)
                    add(f"{key}.{number}.png", file.getvalue())


def _checksum(numbers: dict[str, int], latents: bytes) -> int:
    """Of what else than PNGs, which have their own, an anchor has in a WebDataset."""
    return zlib.crc32(latents, zlib.crc32(json.dumps([numbers[name] for name in NUMBERS]).encode()))


FORMATS: dict[Format, type[_Parquet] | type[_WebDataset]] = {"parquet": _Parquet, "webdataset": _WebDataset}
SUFFIXES: dict[Format, str] = {"parquet": "parquet", "webdataset": "tar"}
