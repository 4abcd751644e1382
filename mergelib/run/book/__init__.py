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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from ...core import paths
from ...core.errors import ConfigError
from ...core.manifest import Item, manifest
from ...core.version import __version__
from ..publish import normalise
from . import api, gallery, slides

HERE = Path(__file__).parent
GROUPS = {
    "lesson": "Start here",
    "text": "Figures and tables",
    "ladder": "The ladder and its controls",
    "ext": "Beyond the paper",
    "report": "The report",
}

LESSON = "00_start_here"
SLIDERS = {"explore": "", "explore-mirror": "#0,2"}  # cell -> buttons of the plane, pressed
PLANE = """<iframe class="plane" src="../plane.html{}" loading="lazy"
title="The toy with sliders: merged features, old and re-aligned classifier"></iframe>"""
SEARCH = """<form action="search.html" role="search"><input class="search" type="search" name="q"
placeholder="Search this book" aria-label="Search this book"></form>"""
MATHJAX = "tex-svg.js"  # glyphs as paths: one file, no fonts to load


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
    warnings = io.StringIO()
    # From Python, without a conf.py that other tools might pick up.
    app = Sphinx(
        source,
        None,
        target,
        source / ".doctrees",
        "html",
        confoverrides=settings(),
        status=None,
        warning=warnings,
    )
    app.connect("autodoc-process-signature", api.readable)
    app.build()
    shutil.rmtree(source / ".doctrees")
    (target / "plane.html").write_text(plane.page())
    (target / "slides.html").write_text(slides.page(profile))
    return target / "index.html", [
        line for line in warnings.getvalue().splitlines() if line.strip()
    ]


def settings() -> dict[str, Any]:
    """Sphinx's configuration. Nothing is executed, and pages load nothing from the network."""
    return {
        "project": "mergelib",
        "author": "the mergelib authors",
        "copyright": "the mergelib authors, MIT licence",
        "release": __version__,
        "html_title": "mergelib",
        "language": "en",
        "smartquotes_action": "D",  # no curly quotes: what is quoted is code, to be copied
        "extensions": [
            "myst_nb",
            *(f"sphinx.ext.{name}" for name in ("mathjax", "autodoc", "autosummary", "napoleon")),
        ],
        "autosummary_generate": False,
        "add_module_names": False,
        "maximum_signature_line_length": 80,
        "toc_object_entries_show_parents": "hide",
        "exclude_patterns": [".doctrees"],
        "nb_execution_mode": "off",
        "nb_merge_streams": True,
        "nb_ipywidgets_js": {},
        # Without a kernel a widget is empty: show its picture or its text.
        "nb_mime_priority_overrides": [("html", "application/vnd.jupyter.widget-view+json", None)],
        "myst_enable_extensions": ["dollarmath", "amsmath", "colon_fence"],
        "myst_heading_anchors": 3,
        "mathjax_path": MATHJAX,
        "html_theme": "furo",
        "html_theme_options": {"top_of_page_buttons": []},
        "html_static_path": [str(HERE / "static"), str(mathjax_file())],
        "html_css_files": ["book.css"],
        "html_copy_source": False,
        "html_domain_indices": False,
        "html_show_sourcelink": False,
        # summaries are fetched, which browsers refuse for local files
        "html_show_search_summary": False,
    }


def mathjax_file() -> Path:
    """MathJax as a single file, from the package that ships it."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    return Path(spec.origin).parent / "static" / "mathjax" / MATHJAX


# ---- what Sphinx reads ---------------------------------------------------------------------------


def stage(profile: str, source: Path, commands: argparse.ArgumentParser) -> None:
    """Copy notebooks, figures and pages to ``source`` in the project's own layout, so that their
    relative links hold."""
    root, executed = paths.root(), paths.build(profile) / "notebooks"
    solutions = sorted((root / "notebooks" / "solutions").glob("*.ipynb"))
    pages = sorted([root / "CONTRIBUTING.md", *root.glob("docs/*.md")])
    report = paths.output_root() / "figures" / "REPORT.md"
    files = {
        i.path.relative_to(root): executed / i.path.name
        if (executed / i.path.name).is_file()
        else i.path
        for i in manifest()
    }
    files |= {p.relative_to(root): p for p in [*solutions, *pages]}
    if report.is_file():
        files[Path("figures/REPORT.md")] = report
    for folder in (root, paths.output_root()):
        files |= {p.relative_to(folder): p for p in folder.glob("figures/*/*.png")}
    drawn = gallery.figures(profile)
    for _, sidecar in drawn:
        for file in (sidecar.with_suffix(".png"), sidecar.with_suffix(".pdf")):
            files[Path(*file.parts[-3:])] = file
    for place, origin in files.items():
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".ipynb":
            notebook = normalise(nbformat.read(origin, as_version=4))
            name_pictures(notebook, profile, place.stem)
            if place == Path("notebooks", f"{LESSON}.ipynb"):
                add_sliders(notebook)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = keep_links(cell.source, place, set(files))
            nbformat.write(notebook, source / place)
        elif place.suffix == ".md":
            (source / place).write_text(keep_links(origin.read_text(), place, set(files)))
        else:
            shutil.copyfile(origin, source / place)
    (source / "gallery.md").write_text(gallery.page(drawn))
    reference = api.pages(commands)
    for place, text in reference.items():
        (source / place).parent.mkdir(exist_ok=True)
        (source / f"{place}.rst").write_text(text)
    others = [p.relative_to(root) for p in pages]
    (source / "index.md").write_text(
        index_page(
            manifest(), [p.relative_to(root) for p in solutions], others, set(files), [*reference]
        )
    )


def keep_links(text: str, place: Path, files: set[Path]) -> str:
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


def index_page(
    items: Sequence[Item],
    solutions: list[Path],
    pages: list[Path],
    files: set[Path],
    reference: list[str],
) -> str:
    """The first page: what this is (the README's opening), a thumbnail per notebook, and the order
    of the pages."""
    opening = (paths.root() / "README.md").read_text().split("\n```")[0].strip()
    lines = [
        keep_links(re.sub(r"!\[[^\]]*\]\([^)]*\)\s*", "", opening), Path("index.md"), files),
        "",
    ]
    lines += [
        '- <a href="plane.html">Turn the plane</a>: the lesson\'s sliders in one file, which a '
        "phone opens without network.",
        "- [Gallery](gallery.md): every figure, and what it found; as "
        '<a href="slides.html">slides</a>, too.',
        "- [API reference](api/index.rst): every public name, with examples, and the command line.",
        "",
        SEARCH,
        "",
    ]
    contents = []
    for group in dict.fromkeys([*GROUPS, *(i.group for i in items)]):
        title, members = (
            GROUPS.get(group, group.capitalize()),
            [i for i in items if i.group == group],
        )
        lines += [f"## {title}", "", "::::{container} cards", ""]
        for item in members:
            picture = Path("figures/mini") / f"{item.id}.png"
            image = f"![{item.item}: {item.title}]({picture})" if picture in files else item.item
            minutes = ", ".join(f"{p} {m:g} min" for p, m in sorted(item.minutes.items()))
            lines += [
                ":::{container} card",
                f"[{image}](notebooks/{item.id}.ipynb)",
                "",
                f"[{item.item}](notebooks/{item.id}.ipynb)",
                "",
                item.title + (f" ({minutes})" if minutes else ""),
                ":::",
                "",
            ]
        lines += ["::::", ""]
        listed = [f"notebooks/{i.id}" for i in members]
        if group == "report" and Path("figures/REPORT.md") in files:
            listed.append("figures/REPORT")
        contents += toctree(title, listed)
    contents += toctree("Figures", ["gallery"])
    contents += toctree("Solutions", [p.with_suffix("").as_posix() for p in solutions])
    contents += toctree("API reference", reference)
    contents += toctree(
        "For teachers and contributors", [p.with_suffix("").as_posix() for p in pages]
    )
    return "\n".join([*lines, *contents])


def toctree(caption: str, places: list[str]) -> list[str]:
    """A hidden table of contents: it makes the side bar and the order of previous and next."""
    return ["```{toctree}", ":hidden:", f":caption: {caption}", "", *places, "```", ""]
