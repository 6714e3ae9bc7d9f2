"""The command line: `genray COMMAND …`. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from genray import configure, printing, storage
from genray.navigate import Navigating, navigate
from genray.printing import show
from genray.probes.settings import ProbeName
from genray.settings import UserError
from genray.steer import Steering, steer

STARTED = time.time()


@dataclass(frozen=True)
class Train:
    """Train an encoder on views that generators render, judge it and export it.

    Any field of the configuration can be set as `--dotted.path VALUE`; `genray fields` lists them.
    """

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    dry_run: bool = False
    """Resolve and check, print what follows, ask Ray whether it can be placed, write config.json, and stop."""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS, else one started on this machine, where it is not given."""
    cluster: Path | None = None
    """With --dry-run: the file of a cluster that need not be there yet, for `ray up` or KubeRay, to ask instead."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.fit import dry_run, fit

        if self.cluster and (self.address or not self.dry_run):
            raise UserError(f"--cluster must come with --dry-run and without --address, got '{self.cluster}'")
        config = configure.load(self.preset, overrides)
        if self.dry_run:
            dry_run(config, self.address, described=self.cluster)
        else:
            show(printing.report(fit(config, address=self.address, started=STARTED)))


@dataclass(frozen=True)
class Sweep:
    """Train many runs that differ in some fields, and compare them; the same sweep again goes on where it was.

    Any field that all of them share can be set as `--dotted.path VALUE`.
    """

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    name: str
    """Name of the sweep; the names of its runs begin with it."""
    grid: tuple[str, ...] = ()
    """path.to.field=VALUE,VALUE,… of each field whose values are combined, seed=0,1,2 for example."""
    random: tuple[str, ...] = ()
    """path.to.field=SCALE:LEAST:MOST of each field that is drawn, with SCALE uniform, log or int."""
    draws: int = 10
    """How often they are drawn; each draw is trained with all combinations of the grid."""
    draw_seed: int = 0
    """Decides the draws."""
    parallel: int = 1
    """Runs that go on at a time."""
    dry_run: bool = False
    """Print the runs, and stop."""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS, else one started on this machine, where it is not given."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray import space, sweep

        _at_least_one(self, "draws", "parallel")
        grid, random = space.parse_grid(self.grid), space.parse_random(self.random)
        chosen = space.combinations(grid, random, self.draws, self.draw_seed)
        configs = space.children(self.preset, self.name, chosen, overrides)
        if self.dry_run:
            show([config.name for config in configs])
        else:
            address = self.address or os.environ.get("RAY_ADDRESS")
            sweep.check(sweep.sweep(self.name, configs, parallel=self.parallel, address=address))


@dataclass(frozen=True)
class Bench:
    """Measure generators, learners and stream alone and together, and say which is the bottleneck."""

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    repeats: int = 5
    """How often each is measured."""
    seconds: float = 10.0
    """About how long each measurement takes."""
    aside: bool = True
    """Also measure learners that render themselves, which takes memory for a generator beside each."""
    out: Path | None = None
    """JSON file to write."""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS, else one started on this machine, where it is not given."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.bench import bench, table

        _positive(self, "repeats", "seconds")
        _writable(self.out)
        config = configure.load(self.preset, overrides)
        found = bench(config, self.repeats, self.seconds, self.address, aside=self.aside)
        show(table(found))
        _write(self.out, found)


@dataclass(frozen=True)
class Evaluate:
    """Judge backbones on labelled images; a run alone as at its end, beside its untrained encoder and raw pixels."""

    backbones: Positional[tuple[str, ...]]
    """Run directories, exports, timm:MODEL, torchvision:MODEL, untrained: before any of them, or pixels."""
    data: str | None = None
    """digit-scenes, a directory (train/ with val/ or test/, VOC2007, Parquet) or torchvision:NAME:DIRECTORY."""
    probe: tuple[ProbeName, ...] = ()
    """What is asked of them; knn and linear, or svm where images show several classes, if it is not given."""
    weights: Path | None = None
    """File of weights for timm:MODEL or torchvision:MODEL; the published ones where it is not given."""
    size: int | None = None
    """Pixels of a side that images are judged at; each backbone's own where it is not given."""
    neighbors: int = 10
    """Neighbours that vote (knn)."""
    shots: tuple[int, ...] = (1, 5, 10)
    """Labelled images of each class (few)."""
    draws: int = 5
    """Choices of them over which mean and spread are taken (few)."""
    epochs: int = 60
    """Epochs of the linear layer (sgd)."""
    lr: float = 0.1
    """Its learning rate at the start (sgd)."""
    schedule: Literal["step", "cosine"] = "step"
    """How the rate falls (sgd)."""
    mirror: bool = True
    """Mirror random crops, of images that are known to bear it; not digits in a folder (sgd, similarity)."""
    seed: int = 0
    """Decides draws and random crops."""
    actors: int = 1
    """Processes of Ray Data that each hold the backbone."""
    num_gpus: float | None = None
    """GPUs of each of them; 1 where the cluster has any, if it is not given."""
    out: Path | None = None
    """JSON file to write."""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS, else one started on this machine, where it is not given."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.probes.judge import Settings, table
        from genray.probes.sgd import SGD
        from genray.rundir import RunDirectory, is_run
        from genray.runs import evaluate, evaluate_run

        _no_overrides(overrides)
        if not self.backbones:
            raise UserError("genray evaluate must be given a run's directory or another backbone")
        _positive(self, "neighbors", "draws", "epochs", "lr", "actors", "size")
        if self.num_gpus is not None and self.num_gpus < 0:
            raise UserError(f"--num-gpus must be at least 0, got {self.num_gpus:g}")
        if not self.shots or min(self.shots) < 1:
            raise UserError(f"--shots must be numbers of at least 1, got {list(self.shots)}")
        _writable(self.out)
        path, plain = Path(storage.here(self.backbones[0])), Evaluate(self.backbones[:1], out=self.out)
        if self == plain and is_run(RunDirectory(path)):
            report = evaluate_run(path, _tell)
            show(printing.probes(report))
            found: dict[str, Any] = {"backbones": report}
        else:
            settings = Settings(
                self.neighbors, self.shots, self.draws, SGD(self.epochs, self.lr, self.schedule), self.seed
            )
            found = evaluate(
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
                say=_tell,
            )
            show(table(found))
        _write(self.out, found)


@dataclass(frozen=True)
class Compare:
    """Show the runs of an MLflow experiment side by side: mean and spread over runs that differ in the seed alone."""

    experiment: Positional[str]
    """MLflow experiment."""
    by: tuple[str, ...] = ()
    """Settings that set groups of runs apart, by their dotted path or its last word; all that differ if not given."""
    metric: tuple[str, ...] = ()
    """Metrics, in full or by their last word; the final probes of the trained encoder if not given."""
    sweep: str | None = None
    """The runs of this sweep alone."""
    out: Path = Path("compare.png")
    """PNG file to write."""
    uri: str | None = None
    """Tracking server or store; MLFLOW_TRACKING_URI, else that of --runs, where it is not given."""
    runs: Path = Path("runs")
    """Directory that holds the runs."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray import compare, curves
        from genray.tracking_store import DATABASE, beside

        _no_overrides(overrides)
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None and not (self.runs / DATABASE).exists():
            raise UserError(f"--runs must be a directory with {DATABASE}, got '{self.runs}'; or give --uri")
        runs, unfinished = compare.finished(uri or beside(self.runs), self.experiment, self.sweep)
        by = [compare.setting(name, runs) for name in self.by] or compare.telling(runs)
        keys = [compare.metric(name, runs) for name in self.metric] or compare.metrics(runs)
        groups = compare.groups(runs, by)
        show([*compare.table(groups, by, keys), *compare.notes(groups, keys, unfinished)])
        try:
            curves.contrast(groups, by, keys, self.out)
        except OSError as error:
            raise UserError(f"--out must be a file that can be written, got '{self.out}' ({error})") from None
        print(self.out)


@dataclass(frozen=True)
class Export:
    """Write a run's backbone as a directory that timm loads, and as torchvision's ResNet where it is one."""

    run: Positional[str]
    """Run directory, or its address."""
    to: Path | None = None
    """Where to; the run's export/ where it is not given."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.runs import export_run

        _no_overrides(overrides)
        show(export_run(Path(storage.here(self.run)), self.to))


@dataclass(frozen=True)
class Generate:
    """Render a run's anchors once into files, which `source.kind = "stored"` trains on.

    Give the same command again to go on with what was cut off, or with more to add to it.
    """

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    out: Path
    """Directory of the files; on a cluster, one that all nodes see."""
    tickets: str | None = None
    """Which, as FIRST:LAST, without the last; a ticket is stream.ticket_batches batches, and a file."""
    anchors: int | None = None
    """So many from the first on, in whole tickets; as many as the run shows where neither is given."""
    format: Literal["parquet", "webdataset"] = "parquet"
    """`parquet` holds pixels as they are; `webdataset` holds PNGs, for programs that expect image files."""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS, else one started on this machine, where it is not given."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.generate import generate

        first, _, last = (self.tickets or "0:1").partition(":")
        if not (first.isdigit() and last.isdigit()):
            raise UserError(f"--tickets must be FIRST:LAST, got {self.tickets!r}")
        tickets = (int(first), int(last)) if self.tickets else None
        config = configure.load(self.preset, overrides)
        found = generate(config, self.out, tickets, self.anchors, self.format, self.address)
        print(f"{found.anchors:,} anchors of {found.views} images in {self.out}")
        print(f"train on them with --source.kind stored --source.directory {self.out}")


@dataclass(frozen=True)
class Preview:
    """Draw a grid of anchors, their latent views and their augmented views."""

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    out: Path = Path("preview.png")
    """PNG file to write."""
    anchors: int = 8
    """Rows."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.fit import RunFailed
        from genray.generators import BadImages
        from genray.runs import draw

        _at_least_one(self, "anchors")
        try:
            draw(configure.load(self.preset, overrides), self.out, self.anchors)
        except OSError as error:
            raise UserError(f"--out must be a file that can be written, got '{self.out}' ({error})") from None
        except BadImages as error:
            raise RunFailed(str(error)) from error
        print(self.out)


@dataclass(frozen=True)
class Steer:
    """Learn linear walks for views of kind "steered": zoom, shift, rotation, brightness, colour.

    The same command again goes on where it was stopped. Of the configuration the generator, the seed, the classes and
    the tracking count.
    """

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    learning: OmitArgPrefixes[Steering] = field(default_factory=Steering)
    out: Path = Path("walks.safetensors")
    """File to write, with a picture of the walks beside it."""

    def __call__(self, overrides: Sequence[str]) -> None:
        show(printing.lesson(self.out, steer(configure.load(self.preset, overrides), self.out, self.learning)))


@dataclass(frozen=True)
class Navigate:
    """Learn a network for views of kind "navigator", which moves a latent to where its view is hard to recognise.

    The same command again goes on where it was stopped. Of the configuration the generator, the seed, the classes and
    the tracking count.
    """

    preset: Positional[str]
    """Preset, TOML file or run directory."""
    learning: OmitArgPrefixes[Navigating] = field(default_factory=Navigating)
    out: Path = Path("navigator.safetensors")
    """File to write, with a picture of some views beside it."""

    def __call__(self, overrides: Sequence[str]) -> None:
        show(printing.lesson(self.out, navigate(configure.load(self.preset, overrides), self.out, self.learning)))


@dataclass(frozen=True)
class List:
    """Show the runs of a directory and their state."""

    directory: Positional[str] = "runs"
    """Directory that holds the runs, or the address of a store's."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from genray.rundir import runs

        _no_overrides(overrides)
        if not storage.is_url(self.directory) and not Path(self.directory).is_dir():
            raise UserError(f"the directory must exist, got {self.directory!r}")
        show(printing.runs([run.state() for run in runs(self.directory)]))


@dataclass(frozen=True)
class Presets:
    """List the shipped presets."""

    def __call__(self, overrides: Sequence[str]) -> None:
        _no_overrides(overrides)
        first = {name: path.read_text().splitlines()[0].lstrip("# ") for name, path in configure.presets().items()}
        show([f"{name:24} {line}" for name, line in first.items()])


@dataclass(frozen=True)
class Fields:
    """List every field of the configuration with its default and its meaning."""

    def __call__(self, overrides: Sequence[str]) -> None:
        _no_overrides(overrides)
        show([configure.reference()])


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Preview, tyro.conf.subcommand("preview")]
    | Annotated[Steer, tyro.conf.subcommand("steer")]
    | Annotated[Navigate, tyro.conf.subcommand("navigate")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Presets, tyro.conf.subcommand("presets")]
    | Annotated[Fields, tyro.conf.subcommand("fields")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exits with 2 for what the user can mend, 1 for a failure, without a traceback for either.

    A run that was stopped and can be resumed exits with 75 (EX_TEMPFAIL) after SIGTERM, with 130 after Ctrl-C.
    """
    command, overrides = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="genray",
        description="Train visual representations without a dataset: generators render the views.",
        args=arguments,
        return_unknown_args=True,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    with told():
        command(overrides)


@contextmanager
def told() -> Iterator[None]:
    """End the process with a line and the exit code of `main` where the block fails in one of its ways."""
    from genray.fit import RunFailed, Stopped

    try:
        yield
    except UserError as error:
        _fail(str(error), 2)
    except RunFailed as error:
        _fail(str(error), 1)
    except Stopped as stopped:
        _fail(str(stopped), 130 if stopped.interrupted else os.EX_TEMPFAIL)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _fail(message: str, code: int) -> None:
    print(f"genray: {message}", file=sys.stderr)
    sys.exit(code)


def _at_least_one(command: Any, *names: str) -> None:
    for name in names:
        if (value := getattr(command, name)) < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")


def _positive(command: Any, *names: str) -> None:
    for name in names:
        if (value := getattr(command, name)) is not None and value <= 0:
            raise UserError(f"--{name} must be more than 0, got {value:g}")


def _writable(out: Path | None) -> None:
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UserError(f"--out must be a file in a directory that exists, got '{out}'")


def _write(out: Path | None, found: dict[str, Any]) -> None:
    from genray.rundir import write_atomically

    if out:
        write_atomically(out, json.dumps(found, indent=1) + "\n")


def _no_overrides(overrides: Sequence[str]) -> None:
    if overrides:
        raise UserError(f"this command takes no {overrides[0]!r}")


if __name__ == "__main__":
    main()
