"""Commands on trained encoders: `evaluate`, `compare`, `export`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from genray.cli.flags import DEFAULT_IN_HELP, no_overrides, positive, writable, write_json
from genray.commands import printing
from genray.commands.printing import show
from genray.config.errors import UserError
from genray.config.load import to_stderr
from genray.config.probe import ProbeName
from genray.runs import store


@dataclass(frozen=True)
class Evaluate:
    """Evaluate backbones on labelled images. A single run without options repeats its final evaluation."""

    backbones: Positional[Annotated[tuple[str, ...], DEFAULT_IN_HELP]]
    """Run directories, exports, timm:MODEL, torchvision:MODEL, any of these after `untrained:`, or pixels."""
    data: str | None = None
    """digit-scenes, a directory (train/ with val/ or test/, VOC2007, Parquet) or torchvision:NAME:DIRECTORY."""
    probe: Annotated[tuple[ProbeName, ...], DEFAULT_IN_HELP] = ()
    """Probes to run. Default: knn and linear, or svm for multi-label images."""
    weights: Annotated[Path | None, DEFAULT_IN_HELP] = None
    """File of weights for timm:MODEL or torchvision:MODEL. Default: the published weights."""
    size: Annotated[int | None, DEFAULT_IN_HELP] = None
    """Side of the input images in pixels. Default: each backbone's own."""
    neighbors: int = 10
    """Number of neighbours that vote (knn)."""
    shots: tuple[int, ...] = (1, 5, 10)
    """Numbers of labelled images per class (few)."""
    draws: int = 5
    """Number of random choices of these images, for mean and spread (few)."""
    epochs: int = 60
    """Training epochs of the linear layer (sgd)."""
    lr: float = 0.1
    """Initial learning rate of the linear layer (sgd)."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning rate schedule (sgd)."""
    mirror: bool = True
    """Flip half of the random crops. Data sets known by name to be asymmetric are never flipped; pass --no-mirror for
    digits or text in a folder (sgd, similarity).
    """
    seed: int = 0
    """Seed of the draws and random crops."""
    actors: int = 1
    """Number of Ray Data actors, each with a copy of the backbone."""
    num_gpus: Annotated[float | None, DEFAULT_IN_HELP] = None
    """GPUs per actor. Default: 1 if the cluster has GPUs, otherwise 0."""
    out: Path | None = None
    """JSON file to write."""
    address: Annotated[str | None, DEFAULT_IN_HELP] = None
    """Ray cluster to join. Default: RAY_ADDRESS, or a new one on this machine."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.commands.evaluate import evaluate, evaluate_run
        from genray.probes.judge import ProbeSettings, table
        from genray.probes.sgd import LinearSGD
        from genray.runs.directory import RunDirectory, is_run

        no_overrides(overrides)
        if not self.backbones:
            raise UserError("genray evaluate must be given a run's directory or another backbone")
        positive(self, "neighbors", "draws", "epochs", "lr", "actors", "size")
        if self.num_gpus is not None and self.num_gpus < 0:
            raise UserError(f"--num-gpus must be at least 0, got {self.num_gpus:g}")
        if not self.shots or min(self.shots) < 1:
            raise UserError(f"--shots must be numbers of at least 1, got {list(self.shots)}")
        writable(self.out)
        path, plain = Path(store.fetch_run(self.backbones[0])), Evaluate(self.backbones[:1], out=self.out)
        if self == plain and is_run(RunDirectory(path)):
            report = evaluate_run(path, to_stderr)
            show(printing.probes(report))
            results: dict[str, Any] = {"backbones": report}
        else:
            settings = ProbeSettings(
                self.neighbors, self.shots, self.draws, LinearSGD(self.epochs, self.lr, self.schedule), self.seed
            )
            results = evaluate(
                self.backbones,
                self.data,
                self.probe,
                settings,
                weights=self.weights,
                size=self.size,
                mirror=self.mirror,
                actors=self.actors,
                num_gpus=self.num_gpus,
                address=self.address,
                say=to_stderr,
            )
            show(table(results))
        write_json(self.out, results)


@dataclass(frozen=True)
class Compare:
    """Compare the runs of an MLflow experiment, with mean and spread over runs that differ only in the seed."""

    experiment: Positional[str]
    """Name of the MLflow experiment."""
    by: Annotated[tuple[str, ...], DEFAULT_IN_HELP] = ()
    """Settings to group the runs by, as dotted path or its last word. Default: all settings that differ."""
    metric: Annotated[tuple[str, ...], DEFAULT_IN_HELP] = ()
    """Metrics to show, in full or by their last word. Default: the final probes of the trained encoder."""
    sweep: str | None = None
    """Restrict the comparison to the runs of this sweep."""
    out: Path = Path("compare.png")
    """PNG file to write."""
    uri: Annotated[str | None, DEFAULT_IN_HELP] = None
    """Tracking server or store. Default: MLFLOW_TRACKING_URI, or the store of --runs."""
    runs: Path = Path("runs")
    """Directory that holds the runs."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.tracking import compare, plots
        from genray.tracking.mlflow_store import DATABASE, address_in

        no_overrides(overrides)
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None and not (self.runs / DATABASE).exists():
            raise UserError(f"--runs must be a directory with {DATABASE}, got '{self.runs}'; or give --uri")
        runs, unfinished = compare.finished_runs(uri or address_in(self.runs), self.experiment, self.sweep)
        by = [compare.setting(name, runs) for name in self.by] or compare.distinguishing(runs)
        keys = [compare.metric(name, runs) for name in self.metric] or compare.default_metrics(runs)
        groups = compare.grouped(runs, by)
        show([*compare.table(groups, by, keys), *compare.notes(groups, keys, unfinished)])
        try:
            plots.draw_groups(groups, by, keys, self.out)
        except OSError as error:
            raise UserError(f"--out must be a file that can be written, got '{self.out}' ({error})") from None
        print(self.out)


@dataclass(frozen=True)
class Export:
    """Write a run's backbone as a directory that timm loads, and a ResNet also in torchvision's format."""

    run: Positional[str]
    """Run directory, or the address of a run in an object store."""
    to: Annotated[Path | None, DEFAULT_IN_HELP] = None
    """Directory to write. Default: the run's export/."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.commands.export import export_run

        no_overrides(overrides)
        show(export_run(Path(store.fetch_run(self.run)), self.to))
