"""The book: the executed notebooks as a small static site, rendered by Sphinx with MyST-NB and the
theme Furo.

Everything is generated from the manifest and the notebooks into ``build/<profile>/book`` (sources)
and ``build/<profile>/html``. The site needs no server and no network. The packages come with the
extra ``book``; ``./run_all.sh --html`` installs them.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import nbformat

from ...core import paths
from ...core.errors import ConfigError
from ...core.manifest import Item, manifest
from ...core.version import __version__
from ..publish import normalise
from . import api, gallery
from .pages import DATA, render

LESSON = "00_start_here"
SLIDERS = DATA["sliders"]
PLANE = """<iframe class="plane" src="../plane.html{}" loading="lazy"
title="The toy with sliders: merged features, old and re-aligned classifier"></iframe>"""


def build_book(profile: str, commands: argparse.ArgumentParser) -> tuple[Path, list[str]]:
    """Render the executed notebooks of ``profile``, or the committed ones, and the reference of the
    ``commands``; returns ``index.html``
    and Sphinx's warnings.

    Raises ``ConfigError`` if the extra ``book`` is not installed.
    """
    for name in ("myst_nb", "furo", "bokeh", "sphinx-mathjax-offline"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                "The book needs more packages: pip install -e '.[book]' "
                "(./run_all.sh --html does it)."
            )
    from sphinx.application import Sphinx

    from . import plane  # both belong to the extra

    source, target = paths.build(profile) / "book", paths.build(profile) / "html"
    for folder in (source, target):
        shutil.rmtree(folder, ignore_errors=True)
    source.mkdir(parents=True)
    stage(profile, source, commands)
    cache, warnings = source / ".doctrees", io.StringIO()
    # From Python, without a conf.py that other tools might pick up.
    options = {"confoverrides": settings(), "status": None, "warning": warnings}
    app = Sphinx(source, None, target, cache, "html", **options)
    app.connect("autodoc-process-signature", api.readable)
    app.build()
    shutil.rmtree(cache)
    (target / "plane.html").write_text(plane.page())
    (target / "slides.html").write_text(gallery.slides(profile))
    said = [line for line in warnings.getvalue().splitlines() if line.strip()]
    return target / "index.html", said


def settings() -> dict[str, Any]:
    """Sphinx's configuration: what ``book.yaml`` has, the version, and where static files are."""
    fixed = DATA["sphinx"]
    spec = importlib.util.find_spec("sphinx-mathjax-offline")  # which ships it as a single file
    mathjax = Path(spec.origin).with_name("static") / "mathjax" / fixed["mathjax_path"]
    static = [str(Path(__file__).with_name("static")), str(mathjax)]
    return fixed | {"release": __version__, "html_static_path": static}


# ---- what Sphinx reads ---------------------------------------------------------------------------


def stage(profile: str, source: Path, commands: argparse.ArgumentParser) -> None:
    """Copy notebooks, figures and pages to ``source`` in the project's own layout, so that their
    relative links hold."""
    root, executed = paths.root(), paths.build(profile) / "notebooks"
    solutions = sorted((root / "notebooks" / "solutions").glob("*.ipynb"))
    pages = sorted([root / "CONTRIBUTING.md", *root.glob("docs/*.md")])
    figures = [
        p
        for folder in (root, paths.output_root())
        for ends in ("figures/*/*.png", "figures/*/*.pdf")
        for p in folder.glob(ends)
    ]
    report = paths.output_root() / "figures" / "REPORT.md"
    files = {p.relative_to(root): p for p in [*(i.path for i in manifest()), *solutions, *pages]}
    for place in files:
        if (executed / place.name).is_file() and place.parent.name == "notebooks":
            files[place] = executed / place.name
    files |= {Path(*p.parts[-3:]): p for p in figures}
    if report.is_file():
        files[Path("figures/REPORT.md")] = report
    for place, origin in files.items():
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".ipynb":
            notebook = normalise(nbformat.read(origin, as_version=4))
            name_pictures(notebook, profile, place.stem)
            if place.stem == LESSON and place.parent.name == "notebooks":
                add_sliders(notebook)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = keep_links(cell.source, place, files)
            nbformat.write(notebook, source / place)
        elif place.suffix == ".md":
            (source / place).write_text(keep_links(origin.read_text(), place, files))
        else:
            shutil.copyfile(origin, source / place)
    reference = api.pages(commands)
    own = {f"{place}.rst": text for place, text in reference.items()}
    own["gallery.md"] = gallery.page(profile)
    own["index.md"] = index_page(
        manifest(),
        {
            "Figures": ["gallery"],
            "Solutions": [_document(p, root) for p in solutions],
            "API reference": [*reference],
            "For teachers and contributors": [_document(p, root) for p in pages],
        },
        files,
    )
    (source / "api").mkdir()
    for place, text in own.items():
        (source / place).write_text(text)


def _document(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def keep_links(text: str, place: Path, files: Collection[Path]) -> str:
    """Markdown with links to files outside the book turned into their texts."""

    def link(found: re.Match) -> str:
        target = found[2].split("#")[0]
        if re.match(r"[a-z]+:", target) or not target:
            return found[0]
        return found[0] if Path(os.path.normpath(place.parent / target)) in files else found[1]

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def name_pictures(notebook: nbformat.NotebookNode, profile: str, stem: str) -> None:
    """Alt text for the pictures that cells drew: the output's own (the sliders' stills have one),
    else that of the saved figure's sidecar, else a generic one."""
    figure, saved = None, False  # the last picture up to the first cell that saves one
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        said = [o.get("metadata", {}).get("image/png", {}).get("alt", "") for o in pictures]
        if pictures:
            _describe(cell, " ".join(filter(None, said)) or "Plot drawn by the code above it")
            if not saved:
                figure = None if any(said) else cell
        saved = saved or "save_" in cell.source
    if figure and (sidecar := gallery.sidecar(profile, stem)):
        _describe(figure, json.loads(sidecar.read_text())["alt"])


def _describe(cell: nbformat.NotebookNode, alt: str) -> None:
    cell.metadata["mystnb"] = {"image": {"alt": alt.replace("\n", " ")}}


def add_sliders(notebook: nbformat.NotebookNode) -> None:
    """The explorable page above the stills of the lesson's sliders, which need a kernel."""
    for cell in notebook.cells:
        if cell.id in SLIDERS:
            frame = {"text/html": PLANE.format(SLIDERS[cell.id])}
            cell.outputs.insert(0, nbformat.v4.new_output("display_data", data=frame))


def index_page(items: Sequence[Item], others: dict[str, list[str]], files: Collection[Path]) -> str:
    """The first page: what this is (the README's opening), a thumbnail per notebook, and the order
    of the pages, ``others`` by their caption at the end."""
    opening = (paths.root() / "README.md").read_text().split("\n```")[0].strip()
    opening = re.sub(r"!\[[^\]]*\]\([^)]*\)\s*", "", opening)
    groups = {t: [i for i in items if i.group == name] for name, t in DATA["groups"].items()}
    contents = {t: [f"notebooks/{i.id}" for i in members] for t, members in groups.items()}
    if Path("figures/REPORT.md") in files:
        contents["The report"].append("figures/REPORT")
    return render(
        "index.md",
        opening=keep_links(opening, Path("index.md"), files),
        groups=groups,
        contents=contents | others,
        files=set(map(str, files)),
    )
