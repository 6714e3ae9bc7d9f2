"""The configurations of a sweep: all combinations of given values of some fields, and random draws of others."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genray.commands.configured import configured
from genray.config import load
from genray.config.errors import ConfigError
from genray.config.run import Config
from genray.tracking.compare import label
from genray.views.random import uniforms

MAX_SUFFIX_LENGTH = 100
"""Characters of what a run's name has besides the sweep's; a longer text ends in a digest."""
SIGNIFICANT_DIGITS = 4
"""Of a number that is drawn."""
_NUMBER = r"[-+]?[\d.]+(?:[eE][-+]?\d+)?"

Overrides = Mapping[str, Any]
"""Values of fields by their dotted paths."""


@dataclass(frozen=True)
class RandomField:
    """A field whose values are drawn at random.

    >>> RandomField("optimizer.lr", "log", 1e-4, 1e-1).value(0.5)
    0.003162
    """

    path: str
    scale: str
    """`uniform`, `log` (uniform in the logarithm) or `int` (whole numbers, including both ends)."""
    low: float
    high: float

    def value(self, share: float) -> Any:
        """The value at a share of the range, from 0 to 1."""
        if self.scale == "int":
            return min(int(self.high), int(self.low) + int(share * (int(self.high) - int(self.low) + 1)))
        if self.scale == "log":
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The grid of a sweep from its flags, by dotted paths; values are read as in overrides.

    >>> parse_grid(["view.std=0.5,1", "augment.scale=[0.1, 1], [0.5, 1]"])
    {'view.std': [0.5, 1], 'augment.scale': [[0.1, 1], [0.5, 1]]}

    Raises:
        ConfigError: a text has another form, or a field is named twice.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        path, _, values = text.partition("=")
        if not path or not values:
            raise ConfigError(f"--grid must be path.to.field=VALUE,VALUE, got {text!r}")
        if path in grid:
            raise ConfigError(f"--grid must name each field once, got {path} twice")
        listed = load.parse_value(f"[{values}]")
        if not isinstance(listed, list):
            listed = [load.parse_value(part.strip()) for part in values.split(",")]
        grid[path] = listed
    return grid


def parse_random(texts: Sequence[str]) -> list[RandomField]:
    """The random fields of a sweep from its flags, such as `optimizer.lr=log:1e-4:1e-1`; raises ConfigError."""
    fields = []
    for text in texts:
        match = re.fullmatch(rf"([\w.]+)=(uniform|log|int):({_NUMBER}):({_NUMBER})", text)
        field = RandomField(match[1], match[2], float(match[3]), float(match[4])) if match else None
        if field is None or field.low >= field.high or (field.scale == "log" and field.low <= 0):
            raise ConfigError(
                "--random must be path.to.field=SCALE:LEAST:MOST with SCALE uniform, log (above 0) or int, "
                f"got {text!r}"
            )
        fields.append(field)
    return fields


def combinations(
    grid: Mapping[str, Sequence[Any]], random: Sequence[RandomField] = (), draws: int = 1, seed: int = 0
) -> list[Overrides]:
    """The overrides of each run: every draw with every combination of the grid, whose last field varies fastest.

    A draw depends only on the seed and its number, so more draws keep the ones before.
    """
    numbers = range(draws if random else 1)
    shares = {field.path: uniforms(seed, f"sweep.{field.path}", np.arange(len(numbers)), 1)[:, 0] for field in random}
    drawn = [{field.path: field.value(float(shares[field.path][number])) for field in random} for number in numbers]
    return [
        {**values, **dict(zip(grid, combination, strict=True))}
        for values in drawn
        for combination in itertools.product(*grid.values())
    ]


def children(source: str, name: str, chosen: Sequence[Overrides], overrides: Sequence[str] = ()) -> list[Config]:
    """The configuration of each run of a sweep, named after its overrides.

    They do not register their encoders, unless an override of `tracking.model` asks for it: a sweep has many.

    Args:
        source: a preset, a TOML file or a run's directory.
        name: of the sweep.
        chosen: overrides of each run.
        overrides: of all runs, as on the command line.

    Raises:
        ConfigError: a combination cannot be run, or two runs are the same.
    """
    no_model = {} if any(text.startswith("--tracking.model") for text in overrides) else {"tracking.model": None}
    configs = []
    for values in chosen:
        own = {"name": f"{name}-{name_suffix(values)}", "tracking.sweep": name}
        configs.append(configured(source, overrides, {**no_model, **values, **own}))
    names = [config.name for config in configs]
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise ConfigError(f"the runs of a sweep must differ, got {twice[0]} more than once")
    return configs


def name_suffix(values: Overrides) -> str:
    """What the name of a run has besides the sweep's: its overrides, and a digest in place of what is too long.

    >>> name_suffix({"view.std": 0.5, "seed": 1})
    'std=0.5-seed=1'
    """
    words = [path.removesuffix(".kind").rpartition(".")[2] for path in values]
    parts = [
        f"{word if words.count(word) == 1 else path}={label(value)}"
        for word, (path, value) in zip(words, values.items(), strict=True)
    ]
    suffix = re.sub(r"[^\w.=+-]+", "_", "-".join(parts)).strip("_") or "all"
    if len(suffix) <= MAX_SUFFIX_LENGTH:
        return suffix
    return f"{suffix[:MAX_SUFFIX_LENGTH]}-{hashlib.sha256(suffix.encode()).hexdigest()[:8]}"
