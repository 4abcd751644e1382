"""Notebooks and their outputs, from ``manifest.yaml``, and how long they took, from
``minutes.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

from . import paths
from .documents import own_yaml

MINUTES_FILE = Path(__file__).with_name("minutes.yaml")
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
    # profile -> measured, from an empty store
    minutes: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def path(self) -> Path:
        return paths.root() / "notebooks" / f"{self.id}.ipynb"

    @property
    def outputs(self) -> list[str]:
        """Files that the notebook must write to figures/<profile>/; a solution writes none."""
        stems = () if self.group == SOLUTIONS else (self.id, *self.extra_figures)
        return [f"{stem}.{end}" for stem in stems for end in ("pdf", "png", "csv", "json")]


@cache
def manifest() -> tuple[Item, ...]:
    """The notebooks, in the order in which they run."""
    raw = own_yaml(__file__, "manifest.yaml")
    for profile, minutes in own_yaml(__file__, MINUTES_FILE.name).items():
        for entry in raw:
            if entry["id"] in minutes:
                entry.setdefault("minutes", {})[profile] = minutes[entry["id"]]
    return TypeAdapter(tuple[Item, ...]).validate_python(raw)
