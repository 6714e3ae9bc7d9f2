"""What an earlier version has left: its names of fields and of their values."""

from __future__ import annotations

from collections.abc import Mapping


def former_parameters(params: Mapping[str, str]) -> dict[str, str]:
    """Parameters of an MLflow run as they were recorded when the section `pool` was called `generators`."""
    found = {
        f"generators.{name.removeprefix('pool.')}" if name.startswith("pool.") else name: text
        for name, text in params.items()
        if name != "render_on"
    }
    return found | {"generators.mode": {"learners": "inline", "pool": "pool"}[params["render_on"]]}
