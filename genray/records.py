"""Files of JSON lines, which their writer may have been killed over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def append(path: Path, *records: dict[str, Any]) -> None:
    """Add records; several processes may, and one that a full disk or a kill cut short spoils none but itself."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        length = os.fstat(descriptor).st_size
        cut_short = length and os.pread(descriptor, 1, length - 1) != b"\n"
        os.write(descriptor, (b"\n" if cut_short else b"") + text.encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    """The whole records of a file; none where it does not exist."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
