"""`genray export`: writes a run's backbone in formats that other libraries load."""

from __future__ import annotations

from pathlib import Path

from genray.learner import export
from genray.learner.load import load_learner
from genray.runs.directory import RunDirectory


def export_run(path: Path, to: Path | None) -> list[str]:
    """Write a run's backbone to a directory, by default its export/; returns what `export_encoder` does."""
    learner = load_learner(path)
    directory = to or RunDirectory(path).export
    return export.export_encoder(learner.encoder.state_dict(), learner.config, directory, learner.policy.size)
