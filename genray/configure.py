"""Where configurations come from: presets, TOML files and run directories, with dotted overrides on top."""

from __future__ import annotations

import difflib
import json
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from genray import storage
from genray.config import ADAPTER, Config, check
from genray.probes.settings import absolute
from genray.settings import ConfigError

PRESETS = Path(__file__).parent / "presets"


def presets() -> dict[str, Path]:
    """Shipped presets by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def load(source: str, overrides: Sequence[str] = (), chosen: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a preset, TOML file or run directory, with `--dotted.path value` overrides.

    Fields that are `chosen`, {dotted path: value}, go on top of these.

    A run that is given no name gets the source's, with the time. Relative paths become absolute, since workers run
    elsewhere.

    Raises:
        ConfigError: the source does not exist or cannot be read, or a value breaks a rule.
    """
    values = _read(storage.here(source))
    if storage.is_url(source):
        values["storage_path"], _ = storage.parted(source)
    elif source not in presets() and Path(source).is_dir():
        values["storage_path"] = str(Path(source).absolute().parent)  # wherever the run has been moved to
    values = _override(_with_kinds(values), {**parse_overrides(overrides), **(chosen or {})})
    values.setdefault("name", f"{Path(source).stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    config = build(values)
    if config.probe.data is not None:
        config = replace(config, probe=replace(config.probe, data=absolute(config.probe.data)))
    if storage.is_url(config.storage_path):
        return settled(config)
    return settled(replace(config, storage_path=str(Path(config.storage_path).expanduser().absolute())))


def settled(config: Config) -> Config:
    """The same with every file that it names named for good; raises ConfigError where a folder is not there."""
    found = replace(
        config, source=config.source.settled(), generator=config.generator.settled(), view=config.view.settled()
    )
    return config if found == config else found


def build(values: Mapping[str, Any]) -> Config:
    """A checked configuration from nested dictionaries; raises ConfigError on the first broken rule."""
    values = _with_kinds(values)
    try:
        config = ADAPTER.validate_python(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, values)) from None
    check(config)
    return config


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`--a.b value` and `--a.b=value` pairs as {path: value}; values are read as TOML, else kept as text."""
    found: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        path, assigned, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not path:
            raise ConfigError(f"an override must look like --path.to.field VALUE, got {argument!r}")
        if not assigned:
            text = next(rest, "--")
            if text.startswith("--"):
                raise ConfigError(f"--{path} must be followed by a value")
        found[path.replace("-", "_")] = value(text)
    return found


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted paths at which two configurations differ, with both values."""
    for key in sorted(ours.keys() | theirs.keys()):
        a, b, here = ours.get(key), theirs.get(key), f"{path}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{here}.")
        elif a != b:
            yield here, a, b


def value(text: str) -> Any:
    """What a text on the command line stands for: TOML, or none, or else the text."""
    if text.lower() in ("none", "null"):
        return None
    try:
        found = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return found if isinstance(found, bool | int | float | str | list | dict) else text  # no field holds a date


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if source in presets():
        path = presets()[source]
    elif path.is_dir():
        path = path / "config.json"
    elif path.suffix not in (".toml", ".json"):
        raise ConfigError(
            f"the preset must be one of {', '.join(presets())}, or a TOML file, got {source!r}"
            + _near(source, presets())
        )
    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path} must be a file that exists") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} must be readable {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold the sections of a configuration, got {found!r}")
    return found


def _kinds() -> dict[str, str]:
    """The sections that may be of several kinds, each with the kind that it has where it names none."""
    return {
        name: getattr(Config, name).kind
        for name, hint in _hints(Config).items()
        if sum(map(is_dataclass, _members(hint))) > 1
    }


def _with_kinds(values: Mapping[str, Any], owner: Any = Config) -> dict[str, Any]:
    """The same with the default kind in each section, or section of a section, that may be of several and has none."""
    hints, found = _hints(owner), dict(values)
    for name in found.keys() & hints.keys():
        members = [member for member in _members(hints[name]) if is_dataclass(member)]
        if isinstance(found[name], Mapping) and len(members) > 1:
            section = {"kind": getattr(owner, name).kind, **found[name]}
            chosen = [member for member in members if section["kind"] in _kinds_of(member)]
            found[name] = _with_kinds(section, chosen[0]) if chosen else section
    return found


def _override(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    kinds = _kinds()
    # A new kind comes first: it takes the numbers of the old one away, and none of those that are given beside it.
    for path, value in sorted(overrides.items(), key=lambda item: (not item[0].endswith(".kind"), item[0].count("."))):
        *parents, leaf = path.split(".")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{path} must name a field, but {parent} holds the value {node!r}")
        if value is None and "none" in _words(path):
            value = "none"  # a choice like any other in this field
        if leaf == "kind" and parents[0] in kinds and not _together(parents[0], node.get("kind"), value):
            node.clear()
        node[leaf] = value
    return values


def _together(section: str, *kinds: Any) -> bool:
    """Whether these kinds of a section are told by the same fields, which then keep their numbers."""
    members = _members(_hints(Config)[section])
    return any(all(kind in _kinds_of(member) for kind in kinds) for member in members)


def _words(path: str) -> list[str]:
    """The words that a field may hold, over all kinds of its section; empty where it holds something else."""
    owners: list[Any] = [Config]
    for step in path.split("."):
        hints = [_hints(owner)[step] for owner in owners if is_dataclass(owner) and step in _hints(owner)]
        owners = [member for hint in hints for member in _members(hint)]
    return [word for member in owners if get_origin(member) is Literal for word in get_args(member)]


def _near(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first broken rule in one line: `<path> must <rule>, got <value>`, and the remedy where one is near."""
    # Where a field may be of several types, pydantic tells what each of them misses: the nearest one says the most.
    first = max(error.errors(), key=lambda e: (not e["type"].endswith("_type"), len(e["loc"])))
    path, given = _path(first["loc"]), first["input"]
    if first["type"] == "unexpected_keyword_argument":
        section, _, leaf = path.rpartition(".")
        known = _fields_at(section, values)
        remedy = _near(leaf, known) or f"; it has {', '.join(known)}"
        return f"{path} must be a field of {section or 'the configuration'}{remedy}"
    if first["type"] == "union_tag_invalid":
        tags = first["ctx"]["expected_tags"].replace("'", "").split(", ")
        tag = first["ctx"]["tag"]
        return f"{path}.kind must be one of {', '.join(tags)}, got {tag!r}{_near(tag, tags)}"
    if first["type"] == "too_long":
        return f"{path} must have at most {first['ctx']['max_length']} values, got {given!r}"
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        return f"{path.rpartition('.')[0]} must have more values, got {given!r}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{path} must be given"
    if first["type"] in ("dataclass_type", "model_attributes_type", "dict_type"):
        return f"{path} must be a section of fields, got {given!r}"
    if first["type"] == "literal_error":
        choices = [word.strip("' ") for word in first["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return f"{path} must be one of {', '.join(choices)}, got {given!r}{_near(str(given), choices)}"
    rule = first["msg"].removeprefix("Input should be ").removeprefix("a valid ").split(", ")[0]
    words = "".join(f" or {word!r}" for word in _words(path))
    return f"{path} must be {_ARTICLES.get(rule, rule)}{words}, got {given!r}"


_ARTICLES = {
    "integer": "an integer",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "tuple": "a list",
}


def _path(location: tuple[int | str, ...]) -> str:
    """The dotted path of an error, without the names of union members that pydantic puts in between."""
    owners: list[Any] = [Config]
    path: list[str] = []
    told = False  # whether the kind of the section that was entered last has been passed
    for step in location:
        known = {name: hint for owner in owners for name, hint in _hints(owner).items()}
        if isinstance(step, str) and step in known:
            owners, told = [member for member in _members(known[step]) if is_dataclass(member)], False
            path.append(step)
        elif not told and any(step in _kinds_of(owner) for owner in owners):
            told = True
        elif isinstance(step, int) or owners:
            path.append(str(step))
    return ".".join(path)


def _fields_at(section: str, values: Mapping[str, Any]) -> list[str]:
    """Names of the fields of a dotted section, of the kind chosen in `values`."""
    owner: Any = Config
    node: Any = values
    for step in filter(None, section.split(".")):
        node = node.get(step, {}) if isinstance(node, Mapping) else {}
        candidates = [member for member in _members(_hints(owner)[step]) if is_dataclass(member)]
        kind = node.get("kind") if isinstance(node, Mapping) else None
        owner = next((member for member in candidates if kind in _kinds_of(member)), candidates[0])
    return [f.name for f in fields(owner)]


def reference() -> str:
    """Every field with its default and its meaning, by section."""
    lines: list[str] = []
    for name, hint in _hints(Config).items():
        members = [member for member in _members(hint) if is_dataclass(member)]
        if not members:
            lines.append(_field_line(Config, name))
        for member in members:
            told = _kinds_of(member) if len(members) > 1 else ()
            kind = f"  (kind = {' or '.join(map(repr, told))})" if told else ""
            lines += ["", f"[{name}]{kind}  {(member.__doc__ or '').splitlines()[0]}"]
            lines += [_field_line(member, f.name) for f in fields(member) if f.name != "kind" or len(told) != 1]
    return "\n".join(lines)


def _field_line(owner: Any, name: str) -> str:
    info = owner.__pydantic_fields__[name]
    value = info.get_default(call_default_factory=True)
    default = "required" if info.is_required() else json.dumps(value, default=asdict)
    meaning = " ".join((info.description or "").split())
    return f"  {name} = {default}".ljust(36) + f"  {meaning}".rstrip()


def _hints(owner: Any) -> dict[str, Any]:
    return get_type_hints(owner, include_extras=True)


def _kinds_of(member: Any) -> tuple[Any, ...]:
    """What a section's `kind` may be; nothing where it has none."""
    return get_args(_hints(member)["kind"]) if is_dataclass(member) and "kind" in _hints(member) else ()


def _members(hint: Any) -> list[Any]:
    """The types that an annotation allows."""
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [member for arg in get_args(hint) for member in _members(arg)]
    return [hint]
