"""Former names of fields: runs, TOML files and commands of earlier versions are still accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genray.config.errors import ConfigError

RENAMED_FIELDS = {"generators.mode": "render_on", "generators": "pool"}
"""Current paths of renamed fields and sections, by former path. The first match counts."""
RENAMED_VALUES = {"render_on": {"inline": "learners"}}
"""Current spellings of renamed values, by the field's current path and former spelling."""


def current_path(path: str) -> str:
    """The current name of a dotted path.

    >>> current_path("generators.num")
    'pool.num'
    """
    for former, current in RENAMED_FIELDS.items():
        if path == former or path.startswith(f"{former}."):
            return current + path[len(former) :]
    return path


def current_value(path: str, value: Any) -> Any:
    """The current spelling of a value of the field with this current path.

    >>> current_value("render_on", "inline")
    'learners'
    """
    return RENAMED_VALUES.get(path, {}).get(value, value) if isinstance(value, str) else value


def overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides, {dotted path: value}, under their current names.

    Raises:
        ConfigError: a field is given under both of its names.
    """
    sections = {path: value for path, value in given.items() if path in RENAMED_FIELDS and isinstance(value, Mapping)}
    given = {path: value for path, value in given.items() if path not in sections} | {
        f"{path}.{name}": value for path, section in sections.items() for name, value in section.items()
    }
    former = [path for path in given if current_path(path) != path]
    renamed = {path: value for path, value in given.items() if path not in former}
    for path in former:
        _put(renamed, current_path(path), current_value(current_path(path), given[path]), path)
    return renamed


def values(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The nested values of a configuration under their current names, and the former names that it used.

    Raises:
        ConfigError: a field is given under both of its names.
    """
    renamed: dict[str, Any] = {key: dict(part) if isinstance(part, Mapping) else part for key, part in given.items()}
    used = []
    for former, current in RENAMED_FIELDS.items():
        section, _, name = former.partition(".")
        old = renamed.get(section)
        if name and isinstance(old, dict) and name in old:
            used.append(former)
            _put(renamed, current, current_value(current, old.pop(name)), former)
        elif not name and section in renamed:
            old, new = renamed.pop(section), renamed.get(current, {})
            used.append(former)
            if not isinstance(old, Mapping) or not isinstance(new, Mapping):
                renamed[current] = new if isinstance(old, Mapping) else old  # the error about it names the section
                continue
            for key, value in old.items():
                _put(renamed.setdefault(current, {}), key, value, f"{former}.{key}")
    return renamed, used


def notice(former: str) -> str:
    """The line for a user who gave a field under its former name.

    >>> notice("generators.mode")
    "genray: generators.mode is now called render_on; for 'inline' say 'learners'"
    """
    values = RENAMED_VALUES.get(current_path(former), {})
    spelling = "".join(f"; for {old!r} say {new!r}" for old, new in values.items())
    return f"genray: {former} is now called {current_path(former)}{spelling}"


def _put(section: dict[str, Any], name: str, value: Any, former: str) -> None:
    if name in section:
        raise ConfigError(f"{former} must not be given together with {current_path(former)}, its current name")
    section[name] = value
