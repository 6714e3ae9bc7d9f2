"""Names of the probes' metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping


def metrics_of(data: str, values: Mapping[str, float]) -> dict[str, float]:
    """The metrics with names that MLflow accepts, `probe.<data>.<probe>`."""
    return {f"{prefix(data)}.{metric}": value for metric, value in values.items()}


def prefix(data: str) -> str:
    """The part of the names that identifies the labelled images."""
    name = re.sub(r"[^\w\-]", "_", data)
    return f"probe.{name}"
