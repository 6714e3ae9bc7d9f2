"""The fields of a configuration: their types, and the reference that `genray fields` prints."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from genray.config.run import Config


def reference() -> str:
    """Every field with its default and meaning, by section."""
    lines: list[str] = []
    for name, hint in hints(Config).items():
        sections = [member for member in members(hint) if is_dataclass(member)]
        if not sections:
            lines.append(_field_line(Config, name))
        for section in sections:
            kinds = kinds_of(section) if len(sections) > 1 else ()
            title = f"  (kind = {' or '.join(map(repr, kinds))})" if kinds else ""
            lines += ["", f"[{name}]{title}  {(section.__doc__ or '').splitlines()[0]}"]
            lines += [_field_line(section, f.name) for f in fields(section) if f.name != "kind" or len(kinds) != 1]
    return "\n".join(lines)


def _field_line(owner: Any, name: str) -> str:
    info = owner.__pydantic_fields__[name]
    value = info.get_default(call_default_factory=True)
    default = "required" if info.is_required() else "none" if value is None else json.dumps(value, default=asdict)
    meaning = " ".join((info.description or "").split())
    return f"  {name} = {default}".ljust(36) + f"  {meaning}".rstrip()


def hints(owner: Any) -> dict[str, Any]:
    """The annotations of a section's fields by name."""
    return get_type_hints(owner, include_extras=True)


def kinds_of(member: Any) -> tuple[Any, ...]:
    """The values that a section's `kind` accepts; empty if it has no such field."""
    return get_args(hints(member)["kind"]) if is_dataclass(member) and "kind" in hints(member) else ()


def members(hint: Any) -> list[Any]:
    """The types that an annotation allows."""
    if get_origin(hint) is Annotated:
        return members(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [member for arg in get_args(hint) for member in members(arg)]
    return [hint]
