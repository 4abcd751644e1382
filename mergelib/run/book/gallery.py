"""The gallery: every figure on one page, under the title that states its finding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...core import paths
from ...core.manifest import Item, manifest

Figure = tuple[Item, Path]
"""A notebook, and the sidecar of a figure that it draws."""


def figures(profile: str) -> list[Figure]:
    """Every figure in the notebooks' order, as ``sidecar`` finds it."""
    return [
        (item, found)
        for item in manifest()
        for stem in (item.id, *item.extra_figures)
        if (found := sidecar(profile, stem))
    ]


def sidecar(profile: str, stem: str) -> Path | None:
    """A figure's sidecar: the run's own, else the profile's committed one, else that of
    ``mini``."""
    committed = paths.root() / "figures"
    folders = (paths.figures(profile), committed / profile, committed / "mini")
    return next((p for f in folders if (p := f / f"{stem}.json").is_file()), None)


def told(figure: Figure) -> tuple[str, str]:
    """A figure's title, where it states none the notebook's, and its alt text."""
    item, sidecar = figure
    said = json.loads(sidecar.read_text())
    return said.get("title") or f"{item.item}: {item.title}", said["alt"]


def page(shown: Sequence[Figure]) -> str:
    """Picture, finding, notebook and files of each figure, as Markdown."""
    lines = ["# Gallery", "", "::::{container} cards gallery", ""]
    for item, sidecar in shown:
        title, alt = map(plain, told((item, sidecar)))
        file = "/".join(["figures", sidecar.parent.name, sidecar.stem])
        lines += [
            ":::{container} card",
            f"[![{alt}]({file}.png)](notebooks/{item.id}.ipynb)",
            "",
            f"**{title}**",
            "",
            alt,
            "",
            f"[{item.item}](notebooks/{item.id}.ipynb) · {sidecar.parent.name} · "
            f"{{download}}`PNG <{file}.png>` · {{download}}`PDF <{file}.pdf>`",
            ":::",
            "",
        ]
    return "\n".join([*lines, "::::", ""])


def plain(text: str) -> str:
    """Text as one line of Markdown in which nothing is markup."""
    return "".join(f"\\{c}" if c in r"\`*_[]<>$|{}#" else c for c in " ".join(text.split()))
