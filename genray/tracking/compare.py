"""Compares runs of an MLflow experiment: groups by their settings, with mean and spread over the runs of each."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genray.config import renamed
from genray.config.errors import UserError
from genray.config.explain import did_you_mean
from genray.config.run import MAY_CHANGE_ON_RESUME
from genray.tracking import described, mlflow_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

FINAL = "final.trained."
"""Begins the names of the trained encoder's final metrics."""
BASELINES = {"untrained": "final.untrained.", "raw pixels": "final.raw_pixels."}
"""What the trained encoder is compared with, and how the names of its metrics begin."""
PAGE_SIZE = 1000
"""Runs for each request to MLflow."""
_IGNORED = ("name", "seed", *MAY_CHANGE_ON_RESUME)
"""Settings in which the runs of a group may differ."""
_DIGESTS = ("sha256", "digest")
"""Last words of settings that follow from others."""
_SHARES = ("knn", "linear", "sgd", "svm", "11-point", "class_accuracy", "data_wait", "generator_busy")
"""Last words of metrics that are shown in percent; those of few labels are too."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, as recorded in MLflow."""

    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each."""
    tags: Mapping[str, str]
    started: float = 0.0
    """Seconds since 1970."""
    ended: float = 0.0
    """Seconds since 1970."""


@dataclass(frozen=True)
class Group:
    """Runs with equal values of the compared settings."""

    values: tuple[Any, ...]
    """Of the compared settings, in their order; None for a setting that is unset or that the runs lack."""
    runs: tuple[FinishedRun, ...]

    def numbers(self, metric: str) -> list[float]:
        """The metric's value in each run that has it."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    def mean(self, metric: str) -> float | None:
        """Mean over the runs; None if no run has the metric."""
        return statistics.mean(values) if (values := self.numbers(metric)) else None

    def spread(self, metric: str) -> float | None:
        """Standard deviation over the runs, with n - 1; None for fewer than two runs."""
        return statistics.stdev(values) if len(values := self.numbers(metric)) > 1 else None


def finished_runs(uri: str, experiment: str, sweep: str | None = None) -> tuple[list[FinishedRun], int]:
    """The finished runs of an experiment, earliest first, and the number of unfinished ones.

    Restarts and parents of sweeps do not count as runs.

    Raises:
        UserError: the store does not answer, or lacks the experiment, the sweep or any finished run.
    """
    client = mlflow_store.connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        return _finished_runs(client, experiment, sweep)
    except MlflowException as error:
        reason = described.redacted(" ".join(str(error).split()))[:160]
        raise UserError(f"--uri must be a store that answers, got {described.redacted(uri)!r} ({reason})") from None


def _finished_runs(client: MlflowClient, experiment: str, sweep: str | None) -> tuple[list[FinishedRun], int]:
    known = client.get_experiment_by_name(experiment)
    if known is None:
        names = [one.name for one in client.search_experiments()]
        raise UserError(
            f"the experiment must be one of {', '.join(names)}, got {experiment!r}{did_you_mean(experiment, names)}"
        )
    runs = [
        run for run in _search(client, known.experiment_id) if run.data.tags.get("kind", described.RUN) == described.RUN
    ]
    if sweep is not None:
        sweeps = sorted({run.data.tags["sweep"] for run in runs if "sweep" in run.data.tags})
        runs = [run for run in runs if run.data.tags.get("sweep") == sweep]
        if not runs:
            raise UserError(
                f"--sweep must be one of {', '.join(sweeps) or 'none'}, got {sweep!r}{did_you_mean(sweep, sweeps)}"
            )
    finished = [
        FinishedRun(
            run.info.run_name,
            described.renamed_parameters(run.data.params),
            run.data.metrics,
            run.data.tags,
            run.info.start_time / 1000,
            run.info.end_time / 1000,
        )
        for run in runs
        if run.info.status == "FINISHED"
    ]
    if not finished:
        raise UserError(f"the experiment must have finished runs, got {experiment!r}, which has {len(runs)} unfinished")
    return finished, len(runs) - len(finished)


def _search(client: MlflowClient, experiment_id: str) -> Iterator[Any]:
    """All runs of an experiment, page by page."""
    token = None
    while True:
        page = client.search_runs([experiment_id], order_by=["start_time ASC"], max_results=PAGE_SIZE, page_token=token)
        yield from page
        if not (token := page.token):
            return


def grouped(runs: Iterable[FinishedRun], by: Sequence[str]) -> list[Group]:
    """Runs grouped by their values of the settings `by`, sorted by these values, numbers by size."""
    members: dict[tuple[str, ...], list[FinishedRun]] = {}
    for run in runs:
        members.setdefault(tuple(json.dumps(_value(run.params.get(name))) for name in by), []).append(run)
    unsorted = [Group(tuple(map(json.loads, values)), tuple(of)) for values, of in members.items()]
    return sorted(unsorted, key=lambda group: [_order(value) for value in group.values])


def varying(runs: Sequence[FinishedRun]) -> list[str]:
    """The settings in which runs differ, except names, seeds and settings that may change on resume."""
    names = dict.fromkeys(name for run in runs for name in run.params)
    return [
        name
        for name in names
        if len({run.params.get(name) for run in runs}) > 1
        and not any(name == ignored or name.startswith(f"{ignored}.") for ignored in _IGNORED)
    ]


def distinguishing(runs: Sequence[FinishedRun]) -> list[str]:
    """The settings that distinguish the runs: those in which they differ, without those that follow from another.

    Digests follow from what they are of. Any other setting follows from one that takes more values, but fewer than
    there are groups, if each value of that one implies its value: the kind of a view and its options, for example.
    """
    names = [name for name in varying(runs) if name.rpartition(".")[2] not in _DIGESTS]
    column = {name: [run.params.get(name) for run in runs] for name in names}
    count = {name: len(set(values)) for name, values in column.items()}
    combinations = len(set(zip(*column.values(), strict=True)))
    kept: list[str] = []
    for name in sorted(names, key=lambda name: -count[name]):  # a setting can follow only from one with more values
        follows = (len({*zip(column[other], column[name], strict=True)}) == count[other] for other in kept)
        if not any(one and count[other] < combinations for one, other in zip(follows, kept, strict=True)):
            kept.append(name)
    return [name for name in names if name in kept]


def setting(name: str, runs: Sequence[FinishedRun]) -> str:
    """The dotted path of a setting, which may be given by its last word; raises UserError."""
    known = {path for run in runs for path in run.params}
    name = renamed.current_path(name)
    if name in known:
        return name
    ending = sorted(path for path in known if path.endswith(f".{name}"))
    differing = [path for path in ending if path in varying(runs)]
    if len(chosen := differing or ending) == 1:
        return chosen[0]
    if chosen:
        raise UserError(f"--by must name one setting, got {name!r}, which is {' or '.join(chosen)}")
    words = {path.rpartition(".")[2]: path for path in known} | {path: path for path in known}
    raise UserError(
        f"--by must be a setting of the runs, got {name!r}{did_you_mean(name, words)}; they differ in "
        f"{', '.join(varying(runs)) or 'none'}"
    )


def metric(name: str, runs: Sequence[FinishedRun]) -> str:
    """The full name of a metric, which may be given by its last words. The trained encoder's comes first.

    Raises:
        UserError: no run has the metric, or several metrics end like this.
    """
    known = {key for run in runs for key in run.metrics}
    for key in (name, FINAL + name):
        if key in known:
            return key
    ending = sorted(key for key in known if key.endswith(f".{name}"))
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UserError(f"--metric must name one metric, got {name!r}, which is {' or '.join(ending)}")
    own = sorted(key for key in known if not key.startswith("system/"))
    raise UserError(f"--metric must be one of {', '.join(own)}, got {name!r}{did_you_mean(name, own)}")


def default_metrics(runs: Sequence[FinishedRun]) -> list[str]:
    """What is compared by default: the final probes of the trained encoder, else kNN and loss."""
    known = dict.fromkeys(key for run in runs for key in run.metrics)
    return [key for key in known if key.startswith(FINAL)] or [key for key in ("knn", "loss") if key in known]


def baseline(runs: Iterable[FinishedRun], name: str, key: str) -> Group | None:
    """The runs that have a metric of the trained encoder for this baseline too, as a group of its name."""
    having = tuple(run for run in runs if BASELINES[name] + key.removeprefix(FINAL) in run.metrics)
    return Group((name,), having) if having and key.startswith(FINAL) else None


def table(groups: Sequence[Group], by: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Lines for a terminal: one for each group, then one for each baseline that the runs have."""
    rows = [[*by, "runs", *keys]] if by else [["", "runs", *keys]]
    for group in groups:
        cells = [shown(group, key) for key in keys]
        rows.append([*(map(label, group.values) if by else ["all"]), str(len(group.runs)), *cells])
    runs = [run for group in groups for run in group.runs]
    for name, prefix in BASELINES.items():
        baselines = [baseline(runs, name, key) for key in keys]
        if any(baselines):
            count = max(len(group.runs) for group in baselines if group)
            cells = [
                shown(g, prefix + key.removeprefix(FINAL)) if g else "" for g, key in zip(baselines, keys, strict=True)
            ]
            rows.append([name, *[""] * (max(1, len(by)) - 1), str(count), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = max(1, len(by))
    return [
        "  ".join(
            f"{cell:{'<' if place < left else '>'}{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def notes(groups: Sequence[Group], keys: Sequence[str], unfinished: int) -> list[str]:
    """What a reader of the table must know: which runs are left out, and in what runs of a group differ."""
    lines = [f"{_count(unfinished)} left out: not finished"] if unfinished else []
    runs = [run for group in groups for run in group.runs]
    for key in keys:
        if lacking := sum(key not in run.metrics for run in runs):
            lines.append(f"{_count(lacking)} without {key} and left out of its mean")
    differing = dict.fromkeys(name for group in groups for name in varying(group.runs))
    if differing:
        lines.append(f"runs of a group also differ in {', '.join(differing)}; --by separates them")
    if any(len(group.runs) > 1 for group in groups):
        lines.append("± is the standard deviation over the runs of a group")
    return lines


def shown(group: Group, key: str) -> str:
    """Mean and spread of a metric as text; shares in percent."""
    mean, spread = group.mean(key), group.spread(key)
    if mean is None:
        return "-"
    if is_share(key):
        return f"{100 * mean:.1f}%" + (f" ± {100 * spread:.1f}" if spread is not None else "")
    return f"{mean:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")


def is_share(key: str) -> bool:
    """Whether a metric is a share, to be shown in percent."""
    return key.rpartition(".")[2] in _SHARES or ".few." in key


def label(value: Any) -> str:
    """A setting's value as text."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def is_number(value: Any) -> bool:
    """Whether a setting's value can be placed on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value(text: str | None) -> Any:
    """The value of a parameter, from its text."""
    try:
        return json.loads(text) if text is not None else None
    except ValueError:
        return text


def _count(count: int) -> str:
    return "1 run is" if count == 1 else f"{count} runs are"


def _order(value: Any) -> tuple[int, float, str]:
    """Sorts numbers by size, then text, then unset values: no limit on the anchors comes after any number of them."""
    if is_number(value):
        return 0, float(value), ""
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))
