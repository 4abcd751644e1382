"""Notebooks and their outputs, from ``manifest.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

import yaml
from pydantic import ConfigDict, TypeAdapter

from . import paths

MANIFEST_FILE = Path(__file__).parent / "manifest.yaml"
NO_ROOM = 74
"""Exit code if the executed notebook cannot be written to disk (EX_IOERR of sysexits.h)."""
# folder and group of the notebooks that solve exercises; the manifest does not list them
SOLUTIONS = "solutions"


@dataclass(frozen=True)
class Item:
    """One notebook of the manifest."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    id: str
    item: str
    title: str
    group: str
    claims: tuple[str, ...] = ()
    extra_figures: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # variants and sections of a profile
    minutes: dict[str, float] = field(
        default_factory=dict, hash=False
    )  # profile -> measured, from an empty store

    @property
    def path(self) -> Path:
        return paths.root() / "notebooks" / f"{self.id}.ipynb"

    @property
    def outputs(self) -> list[str]:
        """Files that the notebook must write to figures/<profile>/; a solution writes none."""
        return (
            []
            if self.group == SOLUTIONS
            else [
                f"{stem}.{end}"
                for stem in (self.id, *self.extra_figures)
                for end in ("pdf", "png", "csv", "json")
            ]
        )


@cache
def manifest() -> tuple[Item, ...]:
    """The notebooks, in the order in which they run."""
    raw = yaml.safe_load(MANIFEST_FILE.read_text("utf-8"))
    return TypeAdapter(tuple[Item, ...]).validate_python(raw)
