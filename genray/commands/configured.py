"""Loads the configuration of a command: fetches a run from its store, and pins files by their digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from genray.config import renamed
from genray.config.files import is_url, split_address
from genray.config.load import build, load, notify, with_absolute_paths
from genray.config.rules import check
from genray.config.run import Config
from genray.runs import store
from genray.views.pin import pinned


def configured(source: str, overrides: Sequence[str] = (), chosen: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a preset, a TOML file, a run's directory or its address; see `genray.config.load.load`.

    Raises:
        ConfigError: it does not exist, or breaks a rule.
        UserError: the store does not answer, or has no such run.
    """
    if is_url(source):
        storage_path, _ = split_address(source)
        return pinned(load(store.fetch_run(source), overrides, chosen, storage_path))
    return pinned(load(source, overrides, chosen))


def prepared(config: Config) -> Config:
    """A configuration that was made in Python as commands take it: checked, its paths absolute, its files pinned.

    One that is so already is returned as it is.

    Raises:
        ConfigError: a rule is broken.
    """
    check(config)
    return pinned(with_absolute_paths(config))


def load_config(source: str | Path | None = None, /, **fields: Any) -> Config:
    """A checked configuration: a preset, a TOML file or a run, with fields changed by keywords.

    >>> load_config("demo", name="first", training={"steps": 100}, view={"kind": "uniform", "std": 0.5})

    Args:
        source: as on the command line. Without one the configuration starts from the defaults, and needs a `name`.
        fields: fields, and sections as dictionaries of fields; what is not given keeps the source's value.

    Raises:
        ConfigError: the source does not exist, or the configuration breaks a rule.
    """
    if source is not None:
        return configured(str(source), chosen=dict(_leaves(fields)))
    for former in renamed.values(fields)[1]:
        notify(renamed.notice(former))
    return prepared(build(fields))


def _leaves(fields: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of all sections by their dotted paths; dictionaries that are values of fields are kept whole."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and not path:
            yield from _leaves(value, f"{name}.")
        else:
            yield f"{path}{name}", value
