"""pydantic's validation errors as one line in terms of the configuration's fields."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from genray.config.fields import hints, kinds_of, members
from genray.config.run import Config


def literal_choices(path: str) -> list[str]:
    """The literal values that the field at `path` accepts, over all kinds of its section; empty if there are none."""
    types: list[Any] = [Config]
    for step in path.split("."):
        annotations = [hints(owner)[step] for owner in types if is_dataclass(owner) and step in hints(owner)]
        types = [member for annotation in annotations for member in members(annotation)]
    return [choice for member in types if get_origin(member) is Literal for choice in get_args(member)]


def did_you_mean(word: str, known: Any) -> str:
    """The end of an error message with the known word nearest to a misspelt one; empty if none is near."""
    close = difflib.get_close_matches(word, list(known), 1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first broken rule in one line: `<path> must <rule>, got <value>`, and the nearest valid spelling."""
    # For a field of several types pydantic reports what is wrong for each of them: the deepest error says the most.
    first = max(error.errors(), key=lambda e: (not e["type"].endswith("_type"), len(e["loc"])))
    path, given = _path(first["loc"]), first["input"]
    if first["type"] == "unexpected_keyword_argument":
        section, _, leaf = path.rpartition(".")
        known = _field_names(section, values)
        remedy = did_you_mean(leaf, known) or f"; it has {', '.join(known)}"
        return f"{path} must be a field of {section or 'the configuration'}{remedy}"
    if first["type"] == "union_tag_invalid":
        tags = first["ctx"]["expected_tags"].replace("'", "").split(", ")
        tag = first["ctx"]["tag"]
        return f"{path}.kind must be one of {', '.join(tags)}, got {tag!r}{did_you_mean(tag, tags)}"
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
        return f"{path} must be one of {', '.join(choices)}, got {given!r}{did_you_mean(str(given), choices)}"
    rule = first["msg"].removeprefix("Input should be ").removeprefix("a valid ").split(", ")[0]
    others = "".join(f" or {word!r}" for word in literal_choices(path))
    return f"{path} must be {_ARTICLES.get(rule, rule)}{others}, got {given!r}"


_ARTICLES = {
    "integer": "an integer",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "tuple": "a list",
}


def _path(location: tuple[int | str, ...]) -> str:
    """The dotted path of an error, without the names of union members that pydantic inserts."""
    owners: list[Any] = [Config]
    path: list[str] = []
    kind_passed = False  # whether the kind of the innermost section has been passed
    for step in location:
        known = {name: hint for owner in owners for name, hint in hints(owner).items()}
        if isinstance(step, str) and step in known:
            owners, kind_passed = [member for member in members(known[step]) if is_dataclass(member)], False
            path.append(step)
        elif not kind_passed and any(step in kinds_of(owner) for owner in owners):
            kind_passed = True
        elif isinstance(step, int) or owners:
            path.append(str(step))
    return ".".join(path)


def _field_names(section: str, values: Mapping[str, Any]) -> list[str]:
    """The fields of a dotted section, of the kind chosen in `values`."""
    owner: Any = Config
    node: Any = values
    for step in filter(None, section.split(".")):
        node = node.get(step, {}) if isinstance(node, Mapping) else {}
        candidates = [member for member in members(hints(owner)[step]) if is_dataclass(member)]
        kind = node.get("kind") if isinstance(node, Mapping) else None
        owner = next((member for member in candidates if kind in kinds_of(member)), candidates[0])
    return [f.name for f in fields(owner)]
