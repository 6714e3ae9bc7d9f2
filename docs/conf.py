"""The documentation site: `make docs` builds it from the Markdown pages, offline, and fails on a broken reference.

Pages link to files of the repository by relative paths, which work wherever the repository is browsed. On the site such
a link leads to a page that shows the file.
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

import genray

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
INCLUDED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "cluster/README.md": "cluster.md",
}
"""Markdown files outside docs/, and the pages that include them."""
LINK = re.compile(r'(\]\(|<img src=")([^)#"\s:]+)((?:#[^)"\s]*)?[)"])')
"""A link or picture with a relative path: what stands before the path, the path, and an anchor with the end."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".sh": "sh"}

project = "genray"
author = copyright = "The genray authors"
version = release = genray.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.linkcode"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["html_image"]
myst_heading_anchors = 3
myst_url_schemes = {"http": None, "https": None, "mailto": None, "source": {"url": "source/{{path}}.html"}}

html_theme = "furo"
html_title = f"genray {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sourcelink = html_copy_source = html_show_sphinx = False
pygments_style, pygments_dark_style = "friendly", "native"
highlight_language = "none"
smartquotes_action = "D"  # dashes alone: quotes stay as they are typed

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
nitpick_ignore_regex = [  # names of other projects
    (r"py:.*", r"(torch|np|nn|numpy|pathlib|collections|typing|pydantic)\..*"),
    (r"py:.*", r"Tensor|Path"),
]


def site_links(text: str, directory: Path) -> str:
    """Markdown with its links to files as links of the site.

    A link to a page or a picture stays one, and a link to another file of the repository leads to the page that shows
    it. A link that leads nowhere is left as it is, and fails the build.

    Args:
        text: the Markdown.
        directory: where its file is, which its relative paths start from.
    """

    def rewritten(found: re.Match[str]) -> str:
        path = (directory / found[2]).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            return found[0]
        name = path.relative_to(ROOT).as_posix()
        if name in INCLUDED:
            target = INCLUDED[name]
        elif path.suffix in (".md", ".png"):
            target = os.path.relpath(path, DOCS)
        else:
            target = f"source:{name}"
        return f"{found[1]}{target}{found[3]}"

    return LINK.sub(rewritten, text)


def linked_files() -> set[Path]:
    """The files of the repository that the pages link to, with those in linked directories."""
    pages = [*DOCS.glob("*.md"), *(ROOT / name for name in INCLUDED)]
    named = {
        name for page in pages for name in re.findall(r"\(source:([^)#]+)", site_links(page.read_text(), page.parent))
    }
    found = {ROOT / name for name in named} | set((ROOT / "genray").rglob("*.py"))
    return found | {path for directory in found if directory.is_dir() for path in listed(directory)}


def listed(directory: Path) -> list[Path]:
    """The files in a directory, without hidden ones."""
    return sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))


def source_pages(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each linked file, whose lines have the anchors L-1, L-2, …, and one for each linked directory."""
    for path in sorted(linked_files()):
        name = path.relative_to(ROOT).as_posix()
        if path.is_dir():  # its page lies next to the directory with those of its files
            links = (f'<li><a href="{path.name}/{file.name}.html">{file.name}</a></li>' for file in listed(path))
            body = f"<ul>{''.join(links)}</ul>"
        else:
            language = LANGUAGES.get(path.suffix, "none")
            body = app.builder.highlighter.highlight_block(content(path), language, lineanchors="L")
        yield f"source/{name}", {"title": name, "body": f"<h1>{html.escape(name)}</h1>\n{body}"}, "page.html"


def content(path: Path) -> str:
    """The text of a file; of one that is no text, its size."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return f"{path.stat().st_size:,} bytes"


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where the site shows the source of a documented object."""
    found: Any = sys.modules[info["module"]]
    for part in info["fullname"].split("."):
        found = getattr(found, part, None)
    try:
        file, line = inspect.getsourcefile(found), inspect.getsourcelines(found)[1]
    except (TypeError, OSError):
        return None
    return f"source/{Path(file or '').relative_to(ROOT).as_posix()}.html#L-{line}"


def page_read(app: Any, docname: str, text: list[str]) -> None:
    text[0] = site_links(text[0], DOCS)


def included_read(app: Any, path: Path, docname: str, text: list[str]) -> None:
    text[0] = site_links(text[0], (DOCS / path).resolve().parent)


def docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring, in which backticks mark code as in Markdown."""
    text = re.sub(r"(?<![`:])`([^`]+)`(?!`)", r"``\1``", "\n".join(lines))
    if what == "attribute":
        text = text.replace(": ", ":\n")  # else napoleon takes what stands before the colon for a type
    lines[:] = text.split("\n")


def signature(app: Any, what: str, name: str, obj: Any, *rest: Any) -> tuple[str, None] | None:
    """Of a dataclass its fields and their defaults; their types stand with the fields, or in docs/configuration.md."""
    if what != "class" or not dataclasses.is_dataclass(obj):
        return None
    return f"({', '.join(map(parameter, dataclasses.fields(obj)))})", None


def parameter(field: dataclasses.Field[Any]) -> str:
    """A field as a parameter of its dataclass."""
    default: Any = field.default
    if isinstance(default, FieldInfo):
        default = default.get_default(call_default_factory=True)
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING:
        return field.name
    shown = f"{type(default).__name__}()" if dataclasses.is_dataclass(default) else repr(default)
    return f"{field.name}={shown}"


def setup(app: Any) -> None:
    app.connect("source-read", page_read)
    app.connect("include-read", included_read)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon's
    app.connect("autodoc-process-signature", signature)
    app.connect("html-collect-pages", source_pages)
