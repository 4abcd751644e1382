"""Every figure under the title that states its finding: on one page, and as slides."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from ...core import paths
from ...core.manifest import Item, manifest
from .pages import render


@dataclass(frozen=True)
class Figure:
    """A figure's notebook, its sidecar, its title (where it states none, the notebook's) and its
    alt text."""

    item: Item
    file: Path
    title: str
    alt: str

    def picture(self) -> str:
        """The PNG as base64."""
        return base64.b64encode(self.file.with_suffix(".png").read_bytes()).decode()


def figures(profile: str) -> list[Figure]:
    """Every figure in the notebooks' order, as ``sidecar`` finds it."""
    found = []
    for item in manifest():
        for stem in (item.id, *item.extra_figures):
            if file := sidecar(profile, stem):
                said = json.loads(file.read_text())
                title = said.get("title") or f"{item.item}: {item.title}"
                found.append(Figure(item, file, title, said["alt"]))
    return found


def sidecar(profile: str, stem: str) -> Path | None:
    """A figure's sidecar: the run's own, else the profile's committed one, else that of
    ``mini``."""
    committed = paths.root() / "figures"
    folders = (paths.figures(profile), committed / profile, committed / "mini")
    return next((p for f in folders if (p := f / f"{stem}.json").is_file()), None)


def page(profile: str) -> str:
    """Picture, finding, notebook and files of each figure, as Markdown."""
    return render("gallery.md", figures=figures(profile))


def slides(profile: str) -> str:
    """``slides.html``: one slide per figure, in one file that needs no network.

    Arrow keys, Page Down and a swipe turn the page; the browser prints a slide per sheet. A
    figure's alt text, with the numbers, stands below it.
    """
    return render("slides.html", figures=figures(profile))
