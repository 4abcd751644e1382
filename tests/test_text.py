"""Spelling and links of everything that people read: markdown files, notebooks, docstrings."""

import re
import tomllib
from urllib.parse import urlsplit

import nbformat
import pytest
import yaml
from committed import committed
from tiny import python

from mergelib.core import paths

ROOT = paths.root()
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("**/*.md"),
        committed() / "figures" / "REPORT.md",
        *(ROOT / "benchmarks").glob("*.md"),
    ]
)
NOTEBOOKS = sorted((committed() / "notebooks").glob("**/*.ipynb"))
READ = [*PAGES, *NOTEBOOKS]


def root_of(path):
    return ROOT if path.is_relative_to(ROOT) else committed()


def place(path):
    return str(path.relative_to(root_of(path)))


def prose(path):
    """The markdown of a page or notebook."""
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n\n".join(
        c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
    )


def without_code(text):
    return re.sub(r"```.*?```|`[^`\n]*`", " ", text, flags=re.S)


def links(path):
    """Targets of links and pictures, markdown's and HTML's."""
    text = without_code(prose(path))
    return (
        re.findall(r"\]\(\s*<?([^)\s>]+)", text)
        + re.findall(r'(?:src|href)="([^"]+)"', text)
        + re.findall(r"<(https?://[^>]+)>", text)
    )


def anchors(path):
    """Anchors of a page's headings, as code hosts make them."""
    headings = re.findall(
        r"^#+ +(.*?)\s*#*$", re.sub(r"```.*?```", "", prose(path), flags=re.S), flags=re.M
    )
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_spelling(tmp_path):
    """codespell over prose and library; markdown of notebooks is written out first, so that
    pictures do not look like words. Class names of images (images.yaml) are as their authors wrote
    them."""
    for path in READ:
        (tmp_path / f"{path.parent.name}-{path.stem}.md").write_text(prose(path))
    sources = [p for end in ("py", "yaml") for p in (ROOT / "mergelib").rglob(f"*.{end}")]
    sources = [p for p in sources if p.name != "images.yaml"]
    checker = ("-m", "codespell_lib", "--toml", ROOT / "pyproject.toml")
    assert not python(*checker, tmp_path, *sources).strip()


@pytest.mark.parametrize("path", READ, ids=place)
def test_relative_links_and_anchors_lead_somewhere(path):
    for target in links(path):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{target} is missing"
        assert there.is_relative_to(root_of(path)), f"{target} leaves the project"
        if anchor:
            assert anchor in anchors(there), f"{target}: no such heading"


@pytest.mark.parametrize("path", READ, ids=place)
def test_external_links_are_well_formed(path):
    for target in links(path):
        if re.match(r"[a-z]+:", target):
            parts = urlsplit(target)
            assert parts.scheme == "https" and re.fullmatch(
                r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc
            ), target
            assert not re.search(r"[\s<>\"]|[.,;]$", target), target


def test_citation_and_licence_agree_with_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (
        citation["version"] == project["version"]
        and citation["license"] == project["license"] == "MIT"
    )
    assert (
        "2412.13526" in citation["preferred-citation"]["journal"]
        and len(citation["preferred-citation"]["authors"]) == 5
    )
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
