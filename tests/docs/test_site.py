"""The site that `make docs` builds: strictly, from the pages alone, with nothing of other hosts."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from paths import ROOT

import genray

DOCS = ROOT / "docs"
BROKEN = {
    "[a page](missing.md)": "missing.md",
    "[a file](../genray/missing.py)": "../genray/missing.py",
    "[a heading](#missing)": "'missing'",
    "![a picture](missing.png)": "missing.png",
    "{py:func}`genray.missing`": "genray.missing",
}
"""References that lead nowhere, and what the build says of them."""


def built(out: Path, *more: str, source: Path = DOCS) -> subprocess.CompletedProcess[str]:
    """Runs what `make docs` runs, with other places to read from and to write to."""
    [line] = re.findall(r"^docs:.*\n\t\$\(BIN\)/python (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    flags, places, _ = line.partition(" -d build/doctrees docs build/docs")
    assert places
    command = [sys.executable, *flags.split(), *more, "-d", str(out / "doctrees"), str(source), str(out / "site")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


class Page(HTMLParser):
    """What a page loads, what it links to, and where links to it may lead."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if "src" in found:
            self.loaded.append(found["src"])
        if "href" in found:
            (self.links if tag == "a" else self.loaded).append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The pages of the site by their files."""
    out = tmp_path_factory.mktemp("docs")
    done = built(out)
    assert done.returncode == 0, done.stderr
    return {path: Page(path) for path in (out / "site").rglob("*.html")}


def target(page: Page, link: str) -> tuple[Path, str]:
    """The file and the anchor that a relative link leads to."""
    parts = urlparse(link)
    return (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path, unquote(parts.fragment)


def test_every_page_is_on_the_site(site: dict[Path, Page]) -> None:
    names = {path.name for path in site}
    assert {f"{path.stem}.html" for path in DOCS.glob("*.md")} <= names


def test_every_link_leads_somewhere(site: dict[Path, Page]) -> None:
    """Those to files of the repository included, which Sphinx does not check."""
    lost = set()
    for page in site.values():
        for link in page.links:
            if urlparse(link).scheme in ("http", "https"):
                continue
            path, anchor = target(page, link)
            if not path.exists() or (anchor and path in site and anchor not in site[path].anchors):
                lost.add((page.path.name, link))
    assert lost == set()


def test_nothing_comes_from_other_hosts(site: dict[Path, Page]) -> None:
    loaded = {(page, link) for page in site.values() for link in page.loaded}
    assert {link for _, link in loaded if urlparse(link).netloc} == set()
    assert {
        link for page, link in loaded if not link.startswith("data:") and not target(page, link)[0].exists()
    } == set()
    styles = {path.read_text() for page, link in loaded if (path := target(page, link)[0]).suffix == ".css"}
    assert not any(re.search(r"@import|url\(['\"]?(https?:)?//", style) for style in styles)


def test_the_public_api_is_in_the_reference(site: dict[Path, Page]) -> None:
    [reference] = [page for path, page in site.items() if path.name == "reference.html"]
    assert {f"genray.{name}" for name in genray.__all__ if not name.startswith("_")} <= reference.anchors


def test_a_broken_reference_fails(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "index.md").write_text("# Broken\n\n" + "\n\n".join(BROKEN))
    done = built(tmp_path, "-c", str(DOCS), source=source)
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == len(BROKEN)
    assert [told for told in BROKEN.values() if not any(told in line for line in warnings)] == []
