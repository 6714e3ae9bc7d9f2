"""Runs of an MLflow experiment side by side: groups that differ in some settings, mean and spread over their seeds."""

from __future__ import annotations

import difflib
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genray import about, tracking_store
from genray.config import MAY_CHANGE
from genray.settings import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

FINAL = "final.trained."
FLOORS = {"untrained": "final.untrained.", "raw pixels": "final.raw_pixels."}
"""Encoders beside the trained one, and what their metrics begin with."""
PAGE = 1000
_OF_A_RUN = ("name", "seed", *MAY_CHANGE)
"""Settings in which runs of a group may differ."""
_DIGESTS = ("sha256", "digest")
"""Last words of settings that are found, not chosen."""
_SHARES = ("knn", "linear", "sgd", "svm", "11-point", "class_accuracy", "data_wait", "generator_busy")
"""Ends of the names of metrics that are shown in percent; and those of few labels."""


@dataclass(frozen=True)
class Found:
    """A finished run, as MLflow has it."""

    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each."""
    tags: Mapping[str, str]
    started: float = 0.0
    """Seconds since 1970, as is the end."""
    ended: float = 0.0


@dataclass(frozen=True)
class Group:
    """Runs with the same values of the settings that are compared."""

    values: tuple[Any, ...]
    """Of those settings, in their order; None for one that is unset, or that the runs do not have."""
    runs: tuple[Found, ...]

    def numbers(self, metric: str) -> list[float]:
        """Of the runs that have the metric."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    def mean(self, metric: str) -> float | None:
        """None where no run has the metric."""
        return statistics.mean(found) if (found := self.numbers(metric)) else None

    def spread(self, metric: str) -> float | None:
        """Standard deviation over the runs, with n - 1; None of a single one."""
        return statistics.stdev(found) if len(found := self.numbers(metric)) > 1 else None


def finished(uri: str, experiment: str, sweep: str | None = None) -> tuple[list[Found], int]:
    """The finished runs of an experiment, the earliest first, and how many others there are.

    Starts of runs that were resumed, and the parents of sweeps, are not runs.

    Raises:
        UserError: the store does not answer, or has no such experiment, sweep in it, or run that has finished.
    """
    client = tracking_store.connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        return _finished(client, experiment, sweep)
    except MlflowException as error:
        told = about.public(" ".join(str(error).split()))[:160]
        raise UserError(f"--uri must be a store that answers, got {about.public(uri)!r} ({told})") from None


def _finished(client: MlflowClient, experiment: str, sweep: str | None) -> tuple[list[Found], int]:
    there = client.get_experiment_by_name(experiment)
    if there is None:
        names = [known.name for known in client.search_experiments()]
        raise UserError(
            f"the experiment must be one of {', '.join(names)}, got {experiment!r}{_near(experiment, names)}"
        )
    runs = [run for run in _pages(client, there.experiment_id) if run.data.tags.get("kind", about.RUN) == about.RUN]
    if sweep is not None:
        sweeps = sorted({run.data.tags["sweep"] for run in runs if "sweep" in run.data.tags})
        runs = [run for run in runs if run.data.tags.get("sweep") == sweep]
        if not runs:
            raise UserError(
                f"--sweep must be one of {', '.join(sweeps) or 'none'}, got {sweep!r}{_near(sweep, sweeps)}"
            )
    found = [
        Found(
            run.info.run_name,
            run.data.params,
            run.data.metrics,
            run.data.tags,
            run.info.start_time / 1000,
            run.info.end_time / 1000,
        )
        for run in runs
        if run.info.status == "FINISHED"
    ]
    if not found:
        raise UserError(f"the experiment must have finished runs, got {experiment!r}, which has {len(runs)} unfinished")
    return found, len(runs) - len(found)


def _pages(client: MlflowClient, experiment_id: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment_id], order_by=["start_time ASC"], max_results=PAGE, page_token=token)
        yield from page
        if not (token := page.token):
            return


def groups(runs: Iterable[Found], by: Sequence[str]) -> list[Group]:
    """Runs with the same values of the settings `by` together, in the order of these values, numbers by size."""
    found: dict[tuple[str, ...], list[Found]] = {}
    for run in runs:
        found.setdefault(tuple(json.dumps(_value(run.params.get(name))) for name in by), []).append(run)
    made = [Group(tuple(map(json.loads, values)), tuple(members)) for values, members in found.items()]
    return sorted(made, key=lambda group: [_order(value) for value in group.values])


def varying(runs: Sequence[Found]) -> list[str]:
    """The settings in which runs differ, but for their names, seeds and what may change when a run is resumed."""
    names = dict.fromkeys(name for run in runs for name in run.params)
    return [
        name
        for name in names
        if len({run.params.get(name) for run in runs}) > 1
        and not any(name == free or name.startswith(f"{free}.") for free in _OF_A_RUN)
    ]


def telling(runs: Sequence[Found]) -> list[str]:
    """Of the settings in which runs differ those that tell them apart, without what follows from another one.

    Digests follow from what they are of. Other settings do where a setting with fewer values than there are groups has
    one value only where they have one, such as the kind of a view and its options.
    """
    names = [name for name in varying(runs) if name.rpartition(".")[2] not in _DIGESTS]
    column = {name: [run.params.get(name) for run in runs] for name in names}
    count = {name: len(set(values)) for name, values in column.items()}
    combinations = len(set(zip(*column.values(), strict=True)))
    kept: list[str] = []
    for name in sorted(names, key=lambda name: -count[name]):  # what has more values can decide, and is looked at first
        decided = (len({*zip(column[other], column[name], strict=True)}) == count[other] for other in kept)
        if not any(one and count[other] < combinations for one, other in zip(decided, kept, strict=True)):
            kept.append(name)
    return [name for name in names if name in kept]


def setting(name: str, runs: Sequence[Found]) -> str:
    """The dotted path of a setting that may be given by its last word; raises UserError where that is no one's."""
    known = {path for run in runs for path in run.params}
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
        f"--by must be a setting of the runs, got {name!r}{_near(name, words)}; they differ in "
        f"{', '.join(varying(runs)) or 'none'}"
    )


def metric(name: str, runs: Sequence[Found]) -> str:
    """A metric that may be given by its last words, that of the trained encoder first; raises UserError."""
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
    raise UserError(f"--metric must be one of {', '.join(own)}, got {name!r}{_near(name, own)}")


def metrics(runs: Sequence[Found]) -> list[str]:
    """What is compared where nothing is asked for: the final probes of the trained encoder, else the loss."""
    known = dict.fromkeys(key for run in runs for key in run.metrics)
    return [key for key in known if key.startswith(FINAL)] or [key for key in ("knn", "loss") if key in known]


def floor(runs: Iterable[Found], name: str, key: str) -> Group | None:
    """The runs that also have a metric of the trained encoder for another one of `FLOORS`, under its name."""
    having = tuple(run for run in runs if FLOORS[name] + key.removeprefix(FINAL) in run.metrics)
    return Group((name,), having) if having and key.startswith(FINAL) else None


def table(found: Sequence[Group], by: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Lines for a terminal: a group each, and below them untrained and raw pixels, where the runs have them."""
    rows = [[*by, "runs", *keys]] if by else [["", "runs", *keys]]
    for group in found:
        cells = [shown(group, key) for key in keys]
        rows.append([*(map(label, group.values) if by else ["all"]), str(len(group.runs)), *cells])
    runs = [run for group in found for run in group.runs]
    for name, prefix in FLOORS.items():
        floors = [floor(runs, name, key) for key in keys]
        if any(floors):
            most = max(len(group.runs) for group in floors if group)
            cells = [
                shown(g, prefix + key.removeprefix(FINAL)) if g else "" for g, key in zip(floors, keys, strict=True)
            ]
            rows.append([name, *[""] * (max(1, len(by)) - 1), str(most), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = max(1, len(by))
    return [
        "  ".join(
            f"{cell:{'<' if place < left else '>'}{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def notes(found: Sequence[Group], keys: Sequence[str], unfinished: int) -> list[str]:
    """What a reader of the table must know: that runs are left out, or that those of a group are not alike."""
    lines = [f"{_runs(unfinished)} left out: not finished"] if unfinished else []
    runs = [run for group in found for run in group.runs]
    for key in keys:
        if lacking := sum(key not in run.metrics for run in runs):
            lines.append(f"{_runs(lacking)} without {key}, which their groups' figures leave out")
    unlike = dict.fromkeys(name for group in found for name in varying(group.runs))
    if unlike:
        lines.append(f"runs of a group also differ in {', '.join(unlike)}; --by sets them apart")
    if any(len(group.runs) > 1 for group in found):
        lines.append("± is the standard deviation over the runs of a group")
    return lines


def shown(group: Group, key: str) -> str:
    """Mean and spread of a metric in words; shares in percent."""
    mean, spread = group.mean(key), group.spread(key)
    if mean is None:
        return "-"
    if is_share(key):
        return f"{100 * mean:.1f}%" + (f" ± {100 * spread:.1f}" if spread is not None else "")
    return f"{mean:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")


def is_share(key: str) -> bool:
    """Whether a metric is a share, which is shown in percent."""
    return key.rpartition(".")[2] in _SHARES or ".few." in key


def label(value: Any) -> str:
    """A setting's value in words."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def is_number(value: Any) -> bool:
    """Whether a setting's value lies on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value(text: str | None) -> Any:
    """A parameter as the value it was made from."""
    try:
        return json.loads(text) if text is not None else None
    except ValueError:
        return text


def _runs(count: int) -> str:
    return "1 run is" if count == 1 else f"{count} runs are"


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then words, then what is unset: an endless population is the largest."""
    if is_number(value):
        return 0, float(value), ""
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def _near(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
