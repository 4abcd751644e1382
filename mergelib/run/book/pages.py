"""What the book is made of: ``book.yaml``, and the layout of its own pages in ``pages/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from ...core.documents import own_yaml

DATA = own_yaml(__file__, "book.yaml")
LAYOUTS = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("pages")), trim_blocks=True
)


def plain(text: str) -> str:
    """Text as one line of Markdown in which nothing is markup."""
    return "".join(f"\\{c}" if c in r"\`*_[]<>$|{}#" else c for c in " ".join(text.split()))


LAYOUTS.filters["plain"] = plain


def render(name: str, **content: Any) -> str:
    """The page of this name in ``pages/``, with ``content``."""
    return LAYOUTS.get_template(f"{name}.jinja").render(content)
