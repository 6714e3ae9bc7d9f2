"""Commands that train and measure: `train`, `sweep`, `bench`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from genray.cli import STARTED
from genray.cli.flags import DEFAULT_IN_HELP, at_least_one, positive, writable, write_json
from genray.commands import printing
from genray.commands.printing import show
from genray.config.errors import UserError


@dataclass(frozen=True)
class Train:
    """Train an encoder on views that generators render, evaluate it and export it.

    Any field of the configuration can be set as `--dotted.path VALUE`; `genray fields` lists them.
    """

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    dry_run: bool = False
    """Check the configuration, print the plan, ask Ray whether there is room for it, write config.json, and stop."""
    address: Annotated[str | None, DEFAULT_IN_HELP] = None
    """Ray cluster to join. Default: RAY_ADDRESS, or a new one on this machine."""
    cluster: Path | None = None
    """With --dry-run: check against the cluster that this file for `ray up` or KubeRay describes instead."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.commands.configured import configured
        from genray.commands.train import dry_run, train

        if self.cluster and (self.address or not self.dry_run):
            raise UserError(f"--cluster must come with --dry-run and without --address, got '{self.cluster}'")
        config = configured(self.preset, overrides)
        if self.dry_run:
            dry_run(config, self.address, cluster_file=self.cluster)
        else:
            show(printing.report(train(config, address=self.address, started=STARTED)))


@dataclass(frozen=True)
class Sweep:
    """Train many runs that differ in some fields, and compare them. The same command resumes a sweep.

    Any field that all runs share can be set as `--dotted.path VALUE`.
    """

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    name: str
    """Name of the sweep. The names of its runs start with it."""
    grid: Annotated[tuple[str, ...], DEFAULT_IN_HELP] = ()
    """Fields whose values are combined, as path.to.field=VALUE,VALUE,…; for example seed=0,1,2."""
    random: Annotated[tuple[str, ...], DEFAULT_IN_HELP] = ()
    """Fields that are drawn at random, as path.to.field=SCALE:LEAST:MOST with SCALE uniform, log or int."""
    draws: int = 10
    """Number of random draws. Each is trained with every combination of the grid."""
    draw_seed: int = 0
    """Seed of the draws."""
    parallel: int = 1
    """Runs to train at the same time."""
    dry_run: bool = False
    """Print the names of the runs, and stop."""
    address: Annotated[str | None, DEFAULT_IN_HELP] = None
    """Ray cluster to join. Default: RAY_ADDRESS, or a new one on this machine."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.commands import sweep, sweep_space

        at_least_one(self, "draws", "parallel")
        grid, random = sweep_space.parse_grid(self.grid), sweep_space.parse_random(self.random)
        chosen = sweep_space.combinations(grid, random, self.draws, self.draw_seed)
        configs = sweep_space.children(self.preset, self.name, chosen, overrides)
        if self.dry_run:
            show([config.name for config in configs])
        else:
            address = self.address or os.environ.get("RAY_ADDRESS")
            sweep.raise_if_failed(sweep.sweep(self.name, configs, parallel=self.parallel, address=address))


@dataclass(frozen=True)
class Bench:
    """Measure generators, learners and stream, separately and together, and name the bottleneck."""

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    repeats: int = 5
    """Number of measurements of each."""
    seconds: float = 10.0
    """Approximate length of each measurement."""
    aside: bool = True
    """Also measure learners that render their own views, which needs memory for a generator in each."""
    out: Path | None = None
    """JSON file to write."""
    address: Annotated[str | None, DEFAULT_IN_HELP] = None
    """Ray cluster to join. Default: RAY_ADDRESS, or a new one on this machine."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.commands.bench.bench import bench
        from genray.commands.bench.rates import table
        from genray.commands.configured import configured

        positive(self, "repeats", "seconds")
        writable(self.out)
        config = configured(self.preset, overrides)
        results = bench(config, self.repeats, self.seconds, self.address, inline=self.aside)
        show(table(results))
        write_json(self.out, results)
