"""What a sweep goes over: every combination of some values of some fields, and random draws of others."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genray import configure
from genray.compare import label
from genray.config import Config
from genray.random import uniforms
from genray.settings import ConfigError

LONGEST = 100
"""Characters of a run's name."""
DIGITS = 4
"""Significant digits of a number that is drawn."""
_NUMBER = r"[-+]?[\d.]+(?:[eE][-+]?\d+)?"

Overrides = Mapping[str, Any]
"""Values of fields by their dotted paths."""


@dataclass(frozen=True)
class Drawn:
    """A field whose values are drawn at random.

    >>> Drawn("optimizer.lr", "log", 1e-4, 1e-1)
    """

    path: str
    scale: str
    """`uniform`, `log` (evenly over the orders of magnitude) or `int` (whole numbers, both ends among them)."""
    low: float
    high: float

    def value(self, share: float) -> Any:
        """The value at a share of the range, 0 to 1."""
        if self.scale == "int":
            return min(int(self.high), int(self.low) + int(share * (int(self.high) - int(self.low) + 1)))
        if self.scale == "log":
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return float(f"{value:.{DIGITS}g}")


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`view.std=0.5,1` as {path: values}; values are read as in an override, lists as `[0.1, 1], [0.5, 1]`.

    Raises:
        ConfigError: a text is of another form, or a field is named twice.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        path, _, values = text.partition("=")
        if not path or not values:
            raise ConfigError(f"--grid must be path.to.field=VALUE,VALUE, got {text!r}")
        if path in found:
            raise ConfigError(f"--grid must name each field once, got {path} twice")
        listed = configure.value(f"[{values}]")
        found[path] = (
            listed if isinstance(listed, list) else [configure.value(part.strip()) for part in values.split(",")]
        )
    return found


def parse_random(texts: Sequence[str]) -> list[Drawn]:
    """`optimizer.lr=log:1e-4:1e-1` as what is drawn; raises ConfigError for a text of another form."""
    found = []
    for text in texts:
        matched = re.fullmatch(rf"([\w.]+)=(uniform|log|int):({_NUMBER}):({_NUMBER})", text)
        drawn = Drawn(matched[1], matched[2], float(matched[3]), float(matched[4])) if matched else None
        if drawn is None or drawn.low >= drawn.high or (drawn.scale == "log" and drawn.low <= 0):
            raise ConfigError(
                "--random must be path.to.field=SCALE:LEAST:MOST with SCALE uniform, log (above 0) or int, "
                f"got {text!r}"
            )
        found.append(drawn)
    return found


def combinations(
    grid: Mapping[str, Sequence[Any]], random: Sequence[Drawn] = (), draws: int = 1, seed: int = 0
) -> list[dict[str, Any]]:
    """The overrides of each run: every draw with every combination of the grid, of which the last field goes fastest.

    A draw is a function of the seed and its number, so more draws leave the ones before as they are.
    """
    numbers = range(draws if random else 1)
    shares = {of.path: uniforms(seed, f"sweep.{of.path}", np.arange(len(numbers)), 1)[:, 0] for of in random}
    return [
        {**{of.path: of.value(float(shares[of.path][number])) for of in random}, **dict(zip(grid, values, strict=True))}
        for number in numbers
        for values in itertools.product(*grid.values())
    ]


def children(source: str, name: str, chosen: Sequence[Overrides], overrides: Sequence[str] = ()) -> list[Config]:
    """The configuration of each run of a sweep, named after what sets it apart.

    They register no model, unless an override of `tracking.model` asks for it: a sweep has many encoders.

    Args:
        source: a preset, a TOML file or a run's directory.
        name: of the sweep.
        chosen: what each run sets.
        overrides: what all of them set, as on the command line.

    Raises:
        ConfigError: a combination cannot be run.
    """
    silent = {} if any(text.startswith("--tracking.model") for text in overrides) else {"tracking.model": None}
    made = []
    for values in chosen:
        own = {"name": f"{name}-{title(values)}", "tracking.sweep": name}
        made.append(configure.load(source, overrides, {**silent, **values, **own}))
    names = [config.name for config in made]
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise ConfigError(f"the runs of a sweep must differ, got {twice[0]} more than once")
    return made


def title(values: Overrides) -> str:
    """The name of a run by its overrides: the fields' last words and values; of a long one the start and a digest."""
    lasts = [path.removesuffix(".kind").rpartition(".")[2] for path in values]
    parts = [
        f"{last if lasts.count(last) == 1 else path}={label(value)}"
        for last, (path, value) in zip(lasts, values.items(), strict=True)
    ]
    found = re.sub(r"[^\w.=+-]+", "_", "-".join(parts)).strip("_") or "all"
    if len(found) <= LONGEST:
        return found
    return f"{found[:LONGEST]}-{hashlib.sha256(found.encode()).hexdigest()[:8]}"
