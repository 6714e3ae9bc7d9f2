"""Write the fields of the configuration into docs/configuration.md: each with its values, its default and its meaning.

    python docs/configuration.py

The meaning of a field is its docstring in genray/config; the text around the tables is written by hand.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

from figures import fill  # noqa: E402

from genray.config import fields as reference  # noqa: E402
from genray.config.renamed import RENAMED_FIELDS, RENAMED_VALUES, current_path  # noqa: E402
from genray.config.run import MAY_CHANGE_ON_RESUME, Config  # noqa: E402

PAGE = DOCS / "configuration.md"
NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "none"}
LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def main() -> None:
    PAGE.write_text(written(PAGE.read_text()))


def written(page: str) -> str:
    """The page with its generated blocks as the code has them."""
    for name, block in {"may change": may_change(), "renamed": renamed(), "fields": all_fields()}.items():
        page = fill(page, name, block)
    return page


def may_change() -> str:
    """The fields and sections that a resumed run may have changed."""
    return ", ".join(f"`{path}`" for path in MAY_CHANGE_ON_RESUME)


def renamed() -> str:
    """Former names, and what they are called now."""
    rows = ["| former name | now |", "|---|---|"]
    for former in RENAMED_FIELDS:
        current = current_path(former)
        changed = "".join(f" (`{old}` is `{new}`)" for old, new in RENAMED_VALUES.get(current, {}).items())
        rows.append(f"| `{former}` | `{current}`{changed} |")
    return "\n".join(rows)


def all_fields() -> str:
    """A table for the top level and for each section, or for each kind of a section that has several."""
    names, parts = reference.hints(Config), []
    sections = {name: [m for m in reference.members(hint) if is_dataclass(m)] for name, hint in names.items()}
    parts += ["## Top level", "", table(Config, [name for name, found in sections.items() if not found])]
    for name, kinds in sections.items():
        if kinds:
            parts += ["", f"## {name}"]
        for section in kinds:
            words = reference.kinds_of(section) if len(kinds) > 1 else ()
            if words:
                parts += ["", f"### `{name}.kind = {' or '.join(map(json.dumps, words))}`"]
            shown = [field.name for field in fields(section) if field.name != "kind" or len(words) > 1]
            parts += ["", about(section), *(["", table(section, shown)] if shown else [])]
    return "\n".join(parts)


def about(section: Any) -> str:
    """The docstring of a section as one paragraph for each of its own."""
    paragraphs = (section.__doc__ or "").strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def table(owner: Any, names: list[str]) -> str:
    """The rows of these fields."""
    rows = ["| field | values | default | meaning |", "|---|---|---|---|"]
    for name in names:
        info = owner.__pydantic_fields__[name]
        default = "required" if info.is_required() else f"`{shown(info.get_default(call_default_factory=True))}`"
        meaning = " ".join((info.description or "").split())
        cells = [f"`{name}`", values(reference.hints(owner)[name]), default, meaning]
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def shown(value: Any) -> str:
    """A default as it would be written in TOML or on the command line."""
    if isinstance(value, tuple):
        return json.dumps(list(value))
    if is_dataclass(value):
        return ", ".join(f"{name} = {shown(part)}" for name, part in asdict(value).items())
    return "none" if value is None else json.dumps(value)


def values(hint: Any, plural: str = "") -> str:
    """What a field of this type may hold, in words; of several such values with the plural "s"."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{values(parts[0], plural)} {limits(parts[1:])}".strip()
    if origin is Literal:
        return ", ".join(f"`{json.dumps(word)}`" for word in parts)
    if origin is tuple:
        kinds = list(dict.fromkeys(values(part, "s") for part in parts if part is not Ellipsis))
        kind = kinds[0] if len(kinds) == 1 else kinds[0].split()[0]  # limits that differ are left to the meaning
        number = f"list{plural} of" if Ellipsis in parts else f"pair{plural} of" if len(parts) == 2 else len(parts)
        return f"{number} {kind}"
    if origin is dict:
        return "table"
    if sections := [part for part in parts if is_dataclass(part)]:
        return "section of kind " + ", ".join(f"`{json.dumps(part.kind)}`" for part in sections)
    if parts:
        return " or ".join(values(part, plural) for part in parts)
    return NAMES[hint] + plural


def limits(annotations: Any) -> str:
    """The limits of a number, such as `above 0`."""
    found = [part for annotation in annotations for part in getattr(annotation, "metadata", [annotation])]
    limit = {key: getattr(part, key) for part in found for key in LIMITS if hasattr(part, key)}
    if limit.keys() == {"ge", "le"}:
        return f"from {limit['ge']:g} to {limit['le']:g}"
    return " and ".join(f"{LIMITS[key]} {value:g}" for key, value in limit.items())


if __name__ == "__main__":
    main()
