"""Runs in an object store: every node works in a directory on its own disk, which is synchronised with the store.

With a `storage_path` such as `s3://bucket/runs`, every node has a working directory for the run. Ray Train writes
checkpoints to the store by itself. `genray.runs.mirror` uploads the files of the driver's node under the run's name.
Processes on other nodes upload theirs below `nodes/`, from where the driver merges them. Files of JSON lines only ever
grow: the longer of two copies is the newer one, and if several nodes add to a file, each line counts once.
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
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from genray.config.errors import UserError
from genray.config.files import cache_directory, is_url, split_address
from genray.runs import filenames

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

ADDRESS_FILE = "storage.url"
"""Holds the storage path, in the directory above the working directories of its runs."""
NODE_ID_FILE = "node.id"
SHARED_LOGS = (filenames.FAULTS, filenames.PROBES)
"""Logs to which processes on any node add lines."""
LEARNER_DIRECTORIES = (f"{filenames.PREVIEWS}/", f"{filenames.EXPORT}/")
"""What the first learner writes, on whichever node it runs."""
LEASE_TIMEOUT_S = 60.0
"""Seconds without a sign of life after which a driver counts as dead."""


def local_directory(storage_path: str) -> Path:
    """The directory of a storage path's runs on this machine. For an address it holds their working directories."""
    if not is_url(storage_path):
        return Path(storage_path).absolute()
    directory = cache_directory("runs").absolute() / hashlib.sha256(storage_path.encode()).hexdigest()[:16]
    if not (directory / ADDRESS_FILE).exists():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ADDRESS_FILE).write_text(storage_path)
    return directory


def of(run: Path) -> StoredRun | None:
    """The stored run of a working directory; None for a run that is only on this disk."""
    address = run.parent / ADDRESS_FILE
    return StoredRun(run, address.read_text()) if address.exists() else None


def missing_lines(known: bytes, lines: bytes) -> bytes:
    """The complete lines of `lines` that are not among the known ones."""
    seen = set(known.split(b"\n"))
    return b"".join(line + b"\n" for line in lines.split(b"\n")[:-1] if line not in seen)


def upload(path: Path, run: Path) -> None:
    """Upload a log, file or directory that a process on any node has written into a run's working directory.

    Does nothing for a run that is only on this disk.

    Raises:
        UserError: the store cannot be written. A log is not an error: its lines are uploaded with the next ones.
    """
    if (stored := of(run)) is None or not path.exists():
        return
    if path.name in SHARED_LOGS:
        with suppress(UserError):
            stored.upload(path, f"nodes/{stored.node_id}/{path.name}")
        return
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        stored.upload(file, str(file.relative_to(run)))


def fetch_run(source: str) -> str:
    """The directory of a run given by its address, after fetching the run without checkpoints; other text unchanged.

    Raises:
        UserError: there is no such run, or the store does not answer.
    """
    if not is_url(source):
        return source
    storage_path, name = split_address(source)
    stored = StoredRun(local_directory(storage_path) / name, storage_path)
    if not stored.refresh():
        raise UserError(f"the run must be one that the store has, got {source!r}, which has no {filenames.CONFIG}")
    return str(stored.directory)


def run_names(storage_path: str) -> list[str]:
    """The names of the runs in an object store; raises UserError if the store does not answer."""
    paths = map(PurePosixPath, StoredRun(local_directory(storage_path), storage_path).all_files())
    return sorted(path.parts[0] for path in paths if len(path.parts) == 2 and path.name == filenames.CONFIG)


@dataclass(frozen=True)
class StoredRun:
    """A run in an object store.

    Methods raise UserError if the store does not answer or cannot be written.

    Args:
        directory: the run's working directory on this machine, which has the run's name.
        storage_path: address of the directory that holds the runs.
    """

    directory: Path
    storage_path: str

    @cached_property
    def node_id(self) -> str:
        """A name for this machine's working directories that no other machine has."""
        file = self.directory.parent / NODE_ID_FILE
        with suppress(FileExistsError), file.open("x") as new:
            new.write(uuid.uuid4().hex)
        while not (text := file.read_text()):  # another process has just created it
            time.sleep(0.01)
        return text

    def all_files(self) -> dict[str, int]:
        """Sizes of all files in the storage path, by their paths relative to it."""
        return self._list(self._root)

    def files(self) -> dict[str, int]:
        """Sizes of all files of the run, by their paths relative to it."""
        return self._list(self._path(""))

    def upload(self, path: Path, name: str) -> None:
        """Upload a file; does nothing if the file no longer exists.

        Of two processes on this machine that upload the same file the second one waits, so that the last version
        uploaded is the last version written.
        """
        with suppress(FileNotFoundError), path.open("r+b") as source:  # NFS locks only files that are open for writing
            fcntl.flock(source, fcntl.LOCK_EX)
            with self._open_output(name) as target:
                shutil.copyfileobj(source, target, 1 << 22)

    def write(self, name: str, text: str) -> None:
        """Write a small file in the store."""
        with self._open_output(name) as target:
            target.write(text.encode())

    def read(self, name: str) -> bytes | None:
        """The content of a file in the store; None if it does not exist."""
        with self._store_errors():
            try:
                with self._filesystem.open_input_stream(self._path(name)) as source:
                    return bytes(source.read())
            except FileNotFoundError:
                return None

    def exists(self, name: str) -> bool:
        """Whether the store has this file of the run."""
        with self._store_errors():
            return bool(self._filesystem.get_file_info(self._path(name)).is_file)

    def remove(self, name: str) -> None:
        """Delete a file or a directory of the run from the store, if it exists."""
        with self._store_errors():
            info = self._filesystem.get_file_info(self._path(name))
            if info.is_file:
                self._filesystem.delete_file(info.path)
            elif any(file.startswith(f"{name}/") for file in self.files()):
                self._filesystem.delete_dir(info.path)

    def download(self, sizes: Mapping[str, int]) -> None:
        """Download the files with these names and sizes.

        Files in subdirectories are written once, and logs only grow: one that is here with the same size is skipped.
        Other files, such as Ray Train's list of checkpoints, may change without changing their size.
        """
        for name, size in sizes.items():
            path = self.directory / name
            same_by_size = "/" in name or name.endswith(".jsonl")
            if same_by_size and path.is_file() and path.stat().st_size == size:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            with (
                self._store_errors(),
                self._filesystem.open_input_stream(self._path(name)) as source,
                draft.open("wb") as target,
            ):
                shutil.copyfileobj(source, target, 1 << 22)
            draft.replace(path)

    def download_checkpoints(self) -> None:
        """Download the checkpoints and Ray Train's list of them, and delete local ones that the store no longer has."""
        stored = {name: size for name, size in self.files().items() if name.startswith(filenames.CHECKPOINT_PREFIX)}
        self.download(stored)
        kept = {name.partition("/")[0] for name in stored}
        for path in self.directory.glob(f"{filenames.CHECKPOINT_PREFIX}*"):
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def refresh(self, clear_unknown: bool = False) -> bool:
        """Bring the working directory up to date with the store, checkpoints aside.

        Shared logs become the store's lines followed by the local lines that it lacks; of other logs the longer copy
        is kept. The files of another run of the same name are deleted.

        Args:
            clear_unknown: delete the local files also if the store does not have the run.

        Returns:
            Whether the store has the run.
        """
        files = self.files()
        stored_id, local_id = self.read(filenames.BIRTH), self.directory / filenames.BIRTH
        if clear_unknown if stored_id is None else not local_id.exists() or local_id.read_bytes() != stored_id:
            self._clear()
        outdated = {}
        for name, size in files.items():
            if name in SHARED_LOGS:
                self._merge_log(name)
            elif name.startswith(LEARNER_DIRECTORIES) or self._is_outdated(name, size):
                outdated[name] = size
        self.download(outdated)
        return stored_id is not None

    def _merge_log(self, name: str) -> None:
        """Make a shared log the complete lines of the store and then the local lines that the store lacks."""
        path = self.directory / name
        local = path.read_bytes() if path.exists() else b""
        stored = self.read(name) or b""
        stored = stored[: stored.rfind(b"\n") + 1]
        path.write_bytes(stored + missing_lines(stored, local))

    def _is_outdated(self, name: str, size: int) -> bool:
        """Whether a file at the top of the run is to be downloaded: not one that only the store or Ray Train needs."""
        if "/" in name or name in (filenames.LEASE, filenames.STOP) or name.startswith(filenames.CHECKPOINT_PREFIX):
            return False
        path = self.directory / name
        return not (name.endswith(".jsonl") and path.exists() and path.stat().st_size > size)

    def start(self) -> None:
        """Give a new run its id, and upload that and the configuration."""
        birth = self.directory / filenames.BIRTH
        if not birth.exists():
            birth.write_text(json.dumps({"id": uuid.uuid4().hex}))
        for path in (birth, self.directory / filenames.CONFIG):
            self.upload(path, path.name)

    @contextmanager
    def leased(self) -> Iterator[None]:
        """Mark the run as driven by this machine while the block runs.

        Raises:
            UserError: another machine drives it.
        """
        if host := self.other_driver():
            name = self.directory.name
            raise UserError(f"name must not be that of a run in progress, got {name!r}, driven on {host}")
        self.renew_lease()
        try:
            yield
        finally:
            with suppress(UserError):
                if self._lease().get("node") == self.node_id:
                    self.remove(filenames.LEASE)

    def renew_lease(self) -> None:
        """Show that this machine's driver is alive."""
        lease = {"node": self.node_id, "host": socket.gethostname(), "time": time.time()}
        self.write(filenames.LEASE, json.dumps(lease))

    def other_driver(self) -> str | None:
        """The host name of another machine that drives the run; None if there is none."""
        lease = self._lease()
        alive = lease and lease["node"] != self.node_id and time.time() - lease["time"] < LEASE_TIMEOUT_S
        return str(lease["host"]) if alive else None

    def _lease(self) -> dict[str, Any]:
        lease: dict[str, Any] = json.loads(self.read(filenames.LEASE) or b"{}")
        return lease

    def _clear(self) -> None:
        for path in self.directory.glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != filenames.LOCK:
                path.unlink()

    def _list(self, root: str) -> dict[str, int]:
        from pyarrow.fs import FileSelector

        with self._store_errors():
            infos = self._filesystem.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
        return {info.path.removeprefix(root).lstrip("/"): info.size for info in infos if info.is_file}

    @contextmanager
    def _open_output(self, name: str) -> Iterator[Any]:
        path = self._path(name)
        with self._store_errors():
            if self._filesystem.type_name == "local":  # the others have no directories
                self._filesystem.create_dir(path.rpartition("/")[0])
            with self._filesystem.open_output_stream(path) as target:
                yield target

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        """Turn errors of the store into UserError."""
        try:
            yield
        except OSError as error:
            raise _unusable(self.storage_path, error) from None

    @property
    def _filesystem(self) -> FileSystem:
        return _connect(self.storage_path)[0]

    @property
    def _root(self) -> str:
        return _connect(self.storage_path)[1].rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{self.directory.name}/{name}".rstrip("/")


@lru_cache
def _connect(address: str) -> tuple[FileSystem, str]:
    """The file system of an address, and the path in it."""
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(address)
    except (OSError, ValueError) as error:
        raise _unusable(address, error) from None
    return filesystem, path


def _unusable(address: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"storage_path must be a directory or an address that can be written, got {address!r} ({reason[:200]})"
    )
