"""The log of faults that a run survived: faults.jsonl."""

from __future__ import annotations

import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

from genray.runs import jsonl, store

LEARNERS_FAILED = "learners failed"
CONTROLLER_FAILED = "controller failed"
PROBES_FAILED = "probes failed"
REPLAYED_DIFFERENTLY = "replayed differently"
"""A step that was made again saw other data than the first time."""
NODE_PREEMPTED = "node taken away after its notice"


def note(log: Path, fault: str, **facts: Any) -> None:
    """Append a line to a run's faults.jsonl."""
    jsonl.append(log, {"time": time.time(), "fault": fault, "host": socket.gethostname(), **facts})
    store.upload(log, log.parent)


def counts(log: Path) -> dict[str, int]:
    """How often each kind of fault occurs in a run's faults.jsonl."""
    return dict(Counter(record["fault"] for record in jsonl.read(log)))
