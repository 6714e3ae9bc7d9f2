"""The manifest of a directory of rendered anchors: drafted when a job begins, completed when it ends."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from genray.config.errors import UserError
from genray.config.run import Config
from genray.runs import faults
from genray.runs.directory import RunDirectory
from genray.stream.run import Run
from genray.views import generators, sources
from genray.views.sources.shards import ShardFormat, Shards
from genray.views.sources.stored import MANIFEST, Manifest, changes, decided_by, read_manifest

RENDER_PACKAGES = ("genray", "torch", "numpy", "pillow", "pyarrow", "ray")
"""Packages whose versions a manifest records."""
COMPARED_FIELDS = {
    "format": "--format",
    "ticket_anchors": "anchors in a ticket",
    "generator_sha256": "generator weights",
}
"""Fields that all jobs of a directory must agree on, besides `decided_by`, and how error messages name them."""


def earlier_manifest(job: RunDirectory, out: Path) -> Manifest | None:
    """The manifest of the files that are there; None in a new directory.

    That of a job that was cut off comes first: it may have added to what another job completed.
    """
    return next((read_manifest(path) for path in (job.path / MANIFEST, out / MANIFEST) if path.exists()), None)


def draft_manifest(run: Run, requested: Config, format: ShardFormat, earlier: Manifest | None, out: Path) -> Manifest:
    """A manifest without tickets for a job, which continues an earlier one if there is one.

    Args:
        run: of the job.
        requested: the configuration that the anchors are for.
        format: of the files.
        earlier: see `earlier_manifest`.
        out: directory of the files, for the error message.

    Raises:
        UserError: the earlier files were rendered with other settings.
    """
    config, spec = run.config, sources.describe(run.config)
    draft = Manifest(
        name=spec.name,
        image_size=spec.image_size,
        latent_dim=spec.latent_dim,
        num_classes=spec.num_classes,
        views=spec.views,
        format=format,
        ticket_anchors=run.plan.ticket_steps * run.plan.local_batch,
        decided_by=decided_by(config),
        generator_sha256=generators.fingerprint(config.generator) if config.source.renders else None,
        config=requested.to_dict(),
    )
    if earlier is None:
        return draft
    changed = changes(earlier, config)
    for name, title in COMPARED_FIELDS.items():
        if (was := getattr(earlier, name)) != (now := getattr(draft, name)):
            changed.append(f"{title} was {was!r}, is {now!r}")
    if changed:
        raise UserError(
            f"--out must be new for other settings, got '{out}', begun with {'; '.join(changed)}. Choose another, "
            "or leave these as they were to resume it"
        )
    return replace(draft, decided_by=earlier.decided_by, faults=earlier.faults, versions=earlier.versions)


def complete_manifest(draft: Manifest, shards: Shards, job: RunDirectory) -> Manifest:
    """The manifest of all files that are there."""
    tickets = shards.tickets()
    return replace(
        draft,
        tickets=tuple(ranges(tickets)),
        anchors=len(tickets) * shards.anchors,
        faults=dict(Counter(draft.faults or {}) + Counter(faults.counts(job.faults))),
    )


def with_own_versions(versions: dict[str, str] | None) -> dict[str, str]:
    """The versions of the software that rendered, each with this process's version added if it differs.

    >>> with_own_versions({"torch": "2.0.0"})["torch"].startswith("2.0.0, ")
    True
    """
    own = {"python": platform.python_version(), **{name: version(name) for name in RENDER_PACKAGES}}
    known = {name: (versions or {}).get(name, now).split(", ") for name, now in own.items()}
    return {name: ", ".join(dict.fromkeys([*was, own[name]])) for name, was in known.items()}


def ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges [first, last + 1].

    >>> ranges([0, 1, 2, 5])
    [(0, 3), (5, 6)]
    """
    gaps = [number for number, (a, b) in enumerate(pairwise(numbers), start=1) if b > a + 1]
    bounds = [0, *gaps, len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(bounds) if a < b]
