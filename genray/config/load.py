"""Loads configurations from presets, TOML files and run directories, with dotted overrides on top."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genray.config import renamed
from genray.config.errors import ConfigError
from genray.config.explain import did_you_mean, explain, literal_choices
from genray.config.fields import hints, kinds_of, members
from genray.config.files import CONFIG_FILE, absolute, is_url
from genray.config.probe import with_absolute_path
from genray.config.rules import check
from genray.config.run import CONFIG_ADAPTER, Config

PRESETS = Path(__file__).parent / "presets"


def presets() -> dict[str, Path]:
    """The shipped presets by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def to_stderr(line: str) -> None:
    """Print a line on standard error, apart from a command's output."""
    print(line, file=sys.stderr)


@cache
def notify(line: str) -> None:
    """Print a line on standard error, once in a process."""
    to_stderr(line)


def load(
    source: str,
    overrides: Sequence[str] = (),
    chosen: Mapping[str, Any] | None = None,
    storage_path: str | None = None,
    say: Callable[[str], None] = notify,
) -> Config:
    """The configuration of a preset, TOML file or run directory, with `--dotted.path value` overrides.

    A run without a name is named after the source and the time. Relative paths become absolute, since workers run in
    other directories.

    Args:
        source: name of a preset, or path of a TOML file, a config.json or a run directory.
        overrides: arguments of the command line.
        chosen: further fields, {dotted path: value}, which take precedence over the overrides.
        storage_path: storage path of the run, if `source` is a run's directory that is not directly below it.
        say: called with a line for each field that was given under a former name.

    Raises:
        ConfigError: the source does not exist or cannot be read, or a value breaks a rule.
    """
    values, former = renamed.values(_read(source))
    given = parse_overrides(overrides)
    former += [path for path in [*given, *(chosen or {})] if renamed.current_path(path) != path]
    for path in dict.fromkeys(former):
        say(renamed.notice(path))
    if storage_path is not None:
        values["storage_path"] = storage_path
    elif source not in presets() and Path(source).is_dir():
        values["storage_path"] = str(Path(source).absolute().parent)  # wherever the run has been moved to
    fields = {**renamed.overrides(given), **renamed.overrides(chosen or {})}
    values = _override(_with_kinds(values), fields)
    values.setdefault("name", f"{Path(source).stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    return with_absolute_paths(build(values))


def with_absolute_paths(config: Config) -> Config:
    """The same run with the paths of its storage and its labelled images absolute, since workers run elsewhere."""
    if config.probe.data is not None:
        config = replace(config, probe=replace(config.probe, data=with_absolute_path(config.probe.data)))
    return config if is_url(config.storage_path) else replace(config, storage_path=absolute(config.storage_path))


def build(values: Mapping[str, Any]) -> Config:
    """A checked configuration from nested dictionaries; former names of fields are accepted.

    Raises:
        ConfigError: a rule is broken; the message says which.
    """
    values = _with_kinds(renamed.values(values)[0])
    try:
        config = CONFIG_ADAPTER.validate_python(values)
    except ValidationError as error:
        raise ConfigError(explain(error, values)) from None
    check(config)
    return config


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`--a.b value` and `--a.b=value` as {path: value}. Values are TOML, or else text."""
    overrides: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        path, assigned, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not path:
            raise ConfigError(f"an override must look like --path.to.field VALUE, got {argument!r}")
        if not assigned:
            text = next(rest, "--")
            if text.startswith("--"):
                raise ConfigError(f"--{path} must be followed by a value")
        overrides[path.replace("-", "_")] = parse_value(text)
    return overrides


def differences(first: Mapping[str, Any], second: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted paths at which two configurations differ, each with both values."""
    for key in sorted(first.keys() | second.keys()):
        a, b = first.get(key), second.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{path}{key}.")
        elif a != b:
            yield f"{path}{key}", a, b


def parse_value(text: str) -> Any:
    """The value of a text on the command line: none, TOML, or else the text itself.

    >>> parse_value("[1, 3]"), parse_value("none"), parse_value("resnet18")
    ([1, 3], None, 'resnet18')
    """
    if text.lower() in ("none", "null"):
        return None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str | list | dict) else text  # no field holds a date


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if source in presets():
        path = presets()[source]
    elif path.is_dir():
        path = path / CONFIG_FILE
    elif path.suffix not in (".toml", ".json"):
        raise ConfigError(
            f"the preset must be one of {', '.join(presets())}, or a TOML file, got {source!r}"
            + did_you_mean(source, presets())
        )
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path} must be a file that exists") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} must be readable {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold the sections of a configuration, got {values!r}")
    return values


def _default_kinds() -> dict[str, str]:
    """The default kind of each section that has several kinds."""
    return {
        name: getattr(Config, name).kind
        for name, hint in hints(Config).items()
        if sum(map(is_dataclass, members(hint))) > 1
    }


def _with_kinds(values: Mapping[str, Any], owner: Any = Config) -> dict[str, Any]:
    """The values with the default kind in each section, at any depth, that has several kinds and names none."""
    annotations, completed = hints(owner), dict(values)
    for name in completed.keys() & annotations.keys():
        classes = [member for member in members(annotations[name]) if is_dataclass(member)]
        if isinstance(completed[name], Mapping) and len(classes) > 1:
            section = {"kind": getattr(owner, name).kind, **completed[name]}
            chosen = [member for member in classes if section["kind"] in kinds_of(member)]
            completed[name] = _with_kinds(section, chosen[0]) if chosen else section
    return completed


def _override(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    kinds = _default_kinds()
    # Kinds come first: a new kind drops the values of the old one, but not those that are given with it.
    for path, value in sorted(overrides.items(), key=lambda item: (not item[0].endswith(".kind"), item[0].count("."))):
        *parents, leaf = path.split(".")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{path} must name a field, but {parent} holds the value {node!r}")
        if value is None and "none" in literal_choices(path):
            value = "none"  # here it is one of the choices
        if leaf == "kind" and parents[0] in kinds and not _same_fields(parents[0], node.get("kind"), value):
            node.clear()
        node[leaf] = value
    return values


def _same_fields(section: str, *kinds: Any) -> bool:
    """Whether these kinds of a section have the same fields, whose values are then kept."""
    return any(all(kind in kinds_of(member) for kind in kinds) for member in members(hints(Config)[section]))
