"""Runs on an object store: each node works on its own disk, and what others need is carried to the store and back.

A `storage_path` such as `s3://bucket/runs` has a working directory on every node. Ray Train writes checkpoints to the
store by itself; `genray.mirror` brings there what the driver's node writes, under the run's name. What the processes
of another node write goes below `nodes/`, from where the driver takes it. Files of JSON lines are only ever added to:
of two copies the longer one is the newer, and where several nodes add to one, each line counts once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genray.generators.checkpoints import cache_directory
from genray.settings import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

ADDRESS, IDENTITY = "storage.url", "node.id"
LINES = ("faults.jsonl", "probes.jsonl")
"""What processes of any node add to."""
TREES = ("previews/", "export/")
"""What the first learner writes, wherever it is."""
CHECKPOINTS = "checkpoint_"
BIRTH, LEASE, STOP = "birth.json", "driver.json", "stop"
LEASE_S = 60.0
"""Seconds after which a driver that does not show a sign of life counts as dead."""


def is_url(text: str) -> bool:
    """Whether a storage path is an address and no directory."""
    return "://" in text


def below(url: str, name: str) -> str:
    """The address of something in a storage path, which may end with options: `?endpoint_override=…`."""
    path, mark, options = url.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def parted(url: str) -> tuple[str, str]:
    """The storage path of an address, and the name of what is in it."""
    path, mark, options = url.partition("?")
    above, _, name = path.rstrip("/").rpartition("/")
    return f"{above}{mark}{options}", name


def directory(storage_path: str) -> Path:
    """Where the runs of a storage path are on this machine: the directory itself, or its working directory."""
    if not is_url(storage_path):
        return Path(storage_path).absolute()
    found = cache_directory("runs").absolute() / hashlib.sha256(storage_path.encode()).hexdigest()[:16]
    if not (found / ADDRESS).exists():
        found.mkdir(parents=True, exist_ok=True)
        (found / ADDRESS).write_text(storage_path)
    return found


def of(run: Path) -> Stored | None:
    """The store of a run by its directory on this machine; None where that directory is all there is."""
    address = run.parent / ADDRESS
    return Stored(run, address.read_text()) if address.exists() else None


def lacking(lines: bytes, more: bytes) -> bytes:
    """The lines of the second that the first has not; one that is still being written is left out."""
    known = set(lines.split(b"\n"))
    return b"".join(line + b"\n" for line in more.split(b"\n")[:-1] if line not in known)


def carry(path: Path, run: Path) -> None:
    """Take what a process of any node has written into the run's directory to its store: lines, a file or a tree.

    Raises:
        UserError: the store does not take it. Lines are carried again with the next ones.
    """
    if (stored := of(run)) is None or not path.exists():
        return
    if path.name in LINES:
        with suppress(UserError):
            stored.put(path, f"nodes/{stored.identity}/{path.name}")
        return
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        stored.put(file, str(file.relative_to(run)))


def here(source: str) -> str:
    """The directory of a run by its address, with what the store has of it, checkpoints aside; other text as it is.

    Raises:
        UserError: there is no such run, or the store does not answer.
    """
    if not is_url(source):
        return source
    storage_path, name = parted(source)
    stored = Stored(directory(storage_path) / name, storage_path)
    if not stored.take_up():
        raise UserError(f"the run must be one that the store has, got {source!r}, which has no config.json")
    return str(stored.run)


def names(storage_path: str) -> list[str]:
    """The runs of a storage path that is an address; raises UserError where the store does not answer."""
    files = Stored(directory(storage_path), storage_path).everything()
    return sorted(name.partition("/")[0] for name in files if name.count("/") == 1 and name.endswith("/config.json"))


@dataclass(frozen=True)
class Stored:
    """A run in a store, and its working directory on this machine.

    Args:
        run: the working directory.
        url: the storage path.
    """

    run: Path
    url: str

    @cached_property
    def identity(self) -> str:
        """A name for this machine's working directories, which no other machine has."""
        file = self.run.parent / IDENTITY
        with suppress(FileExistsError), file.open("x") as new:
            new.write(uuid.uuid4().hex)
        while not (text := file.read_text()):  # another process is just writing it
            time.sleep(0.01)
        return text

    def everything(self) -> dict[str, int]:
        """Every file of the storage path with its size, by its path below that."""
        return self._listed(self._root)

    def files(self) -> dict[str, int]:
        """Every file of the run with its size, by its path below the run's."""
        return self._listed(self._path(""))

    def put(self, path: Path, name: str) -> None:
        """Write a file to the store; one that has gone by then is left out.

        Of two processes of this machine that do so at the same time the second one waits, so that what is there in the
        end is what was here last.
        """
        with suppress(FileNotFoundError), path.open("r+b") as source:  # which NFS asks for, to lock it
            fcntl.flock(source, fcntl.LOCK_EX)
            with self._written(name) as target:
                shutil.copyfileobj(source, target, 1 << 22)

    def write(self, name: str, text: str) -> None:
        """Write a small file of the store."""
        with self._written(name) as target:
            target.write(text.encode())

    def read(self, name: str) -> bytes | None:
        """What a file of the store holds; None where there is none."""
        with self._usable():
            try:
                with self._files.open_input_stream(self._path(name)) as source:
                    return bytes(source.read())
            except FileNotFoundError:
                return None

    def exists(self, name: str) -> bool:
        """Whether the store has a file of the run."""
        with self._usable():
            return bool(self._files.get_file_info(self._path(name)).is_file)

    def remove(self, name: str) -> None:
        """Delete a file or a directory of the run from the store, if it is there."""
        with self._usable():
            found = self._files.get_file_info(self._path(name))
            if found.is_file:
                self._files.delete_file(found.path)
            elif any(file.startswith(f"{name}/") for file in self.files()):
                self._files.delete_dir(found.path)

    def pull(self, wanted: Mapping[str, int]) -> None:
        """Take files with these names and sizes from the store.

        What lies in a directory is written once, and lines are only added: of them what is here in the same size is
        not taken again. Other files, such as Ray Train's list of checkpoints, change and may keep their size.
        """
        for name, size in wanted.items():
            path = self.run / name
            same_by_size = "/" in name or name.endswith(".jsonl")
            if same_by_size and path.is_file() and path.stat().st_size == size:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            with self._usable(), self._files.open_input_stream(self._path(name)) as source, draft.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
            draft.replace(path)

    def pull_checkpoints(self) -> None:
        """Take the checkpoints of the store with Ray Train's list of them, and forget those that it has no longer."""
        there = {name: size for name, size in self.files().items() if name.startswith(CHECKPOINTS)}
        self.pull(there)
        kept = {name.partition("/")[0] for name in there}
        for path in self.run.glob(f"{CHECKPOINTS}*"):
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def take_up(self, anew: bool = False) -> bool:
        """Make the records here those of the store, where they are longer if another driver went on with the run.

        Lines that several nodes add to are those of the store and then those of here that it lacks. Records of another
        run of this name go; with `anew` also those of a run that the store does not have.

        Returns:
            Whether the store has the run.
        """
        there = {name: size for name, size in self.files().items() if "/" not in name or name.startswith(TREES)}
        begun, birth = self.read(BIRTH), self.run / BIRTH
        if anew if begun is None else not birth.exists() or birth.read_bytes() != begun:
            self._clear()
        for name in list(there):
            path = self.run / name
            longer = name.endswith(".jsonl") and path.exists() and path.stat().st_size > there[name]
            if name in LINES:
                ours = path.read_bytes() if path.exists() else b""
                theirs = self.read(name) or b""
                theirs = theirs[: theirs.rfind(b"\n") + 1]
                path.write_bytes(theirs + lacking(theirs, ours))
            if longer or name in (LEASE, STOP, *LINES) or name.startswith(CHECKPOINTS):
                del there[name]
        self.pull(there)
        return begun is not None

    def begin(self) -> None:
        """Give a run that is new its mark, and the store what the working directory has."""
        birth = self.run / BIRTH
        if not birth.exists():
            birth.write_text(json.dumps({"id": uuid.uuid4().hex}))
        for path in (birth, self.run / "config.json"):
            self.put(path, path.name)

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Mark the run as driven from this machine while the block runs.

        Raises:
            UserError: it is driven from another one, or the store cannot be written.
        """
        if driver := self.driver():
            raise UserError(f"name must not be that of a run in progress, got {self.run.name!r}, driven on {driver}")
        self.show_life()
        try:
            yield
        finally:
            with suppress(UserError):
                if self._mark().get("node") == self.identity:
                    self.remove(LEASE)

    def show_life(self) -> None:
        """Say that this machine's driver is alive."""
        self.write(LEASE, json.dumps({"node": self.identity, "host": socket.gethostname(), "time": time.time()}))

    def driver(self) -> str | None:
        """The host of another machine that drives the run; None where there is none."""
        mark = self._mark()
        alive = mark and mark["node"] != self.identity and time.time() - mark["time"] < LEASE_S
        return str(mark["host"]) if alive else None

    def _mark(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read(LEASE) or b"{}")
        return found

    def _clear(self) -> None:
        for path in self.run.glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "run.lock":
                path.unlink()

    def _listed(self, root: str) -> dict[str, int]:
        from pyarrow.fs import FileSelector

        with self._usable():
            found = self._files.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
        return {info.path.removeprefix(root).lstrip("/"): info.size for info in found if info.is_file}

    @contextmanager
    def _written(self, name: str) -> Iterator[Any]:
        path = self._path(name)
        with self._usable():
            if self._files.type_name == "local":  # the others have no directories
                self._files.create_dir(path.rpartition("/")[0])
            with self._files.open_output_stream(path) as target:
                yield target

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _unusable(self.url, error) from None

    @property
    def _files(self) -> FileSystem:
        return _filesystem(self.url)[0]

    @property
    def _root(self) -> str:
        return _filesystem(self.url)[1].rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{self.run.name}/{name}".rstrip("/")


@lru_cache
def _filesystem(url: str) -> tuple[FileSystem, str]:
    from pyarrow.fs import FileSystem

    try:
        found, path = FileSystem.from_uri(url)
    except (OSError, ValueError) as error:
        raise _unusable(url, error) from None
    return found, path


def _unusable(url: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"storage_path must be a directory or an address that can be written, got {url!r} ({reason[:200]})"
    )
