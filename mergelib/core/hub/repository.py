"""Repositories on the hub, as listed in ``registry.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

REGISTRY = Path(__file__).with_name("registry.yaml")
# Of Repository.files: the patterns of which each must fit a file, or those in their place.
NEEDED = {
    "transformers": [("config.json", "*.safetensors")],
    "clip": [("config.json", "*.safetensors"), ("config.json", "pytorch_model*.bin")],
    "tables": [("*train*.parquet", "*test*.parquet"), ("*train*.csv*", "*test*.csv*")],
}
BESIDE = ("*.json", "*.txt", "*.model")  # of a base model: tokenizer and configuration


class Table(BaseModel):
    """The columns of a text data set; ``registry.yaml`` explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: dict[Literal["train", "test"], int] | None = None
    label: str
    first_label: Literal[0, 1]
    text: tuple[str, ...]
    variants: tuple[str, ...]


class Repository(BaseModel):
    """One repository of the registry; ``registry.yaml`` explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    id: str
    kind: Literal["model", "dataset"]
    revision: str | None = Field(None, pattern="^[0-9a-f]{40}$")
    files: dict[str, str] | tuple[str, ...] | Literal["transformers", "clip", "tables"]
    licence: str | None = None
    citation: str | None = None
    table: Table | None = None
    sample: tuple[int, int] | None = None  # rows of train and test; None: whole files

    @property
    def card(self) -> str:
        """The page that describes it."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"

    @property
    def wanted(self) -> list[dict[str, list[str]]]:
        """The patterns of each wanted file or group of files by its name; where the repository
        lacks one, the next entry counts."""
        if isinstance(self.files, dict):
            return [{name: [end, f"*/{end}"] for name, end in self.files.items()}]
        alternatives = NEEDED.get(self.files, [self.files])
        return [{pattern: [pattern] for pattern in patterns} for patterns in alternatives]

    @property
    def is_base_model(self) -> bool:
        """Whether it is a model that is loaded from a folder."""
        return self.files in ("transformers", "clip")


def registry() -> dict[str, Repository]:
    """Return every repository of ``registry.yaml`` by our name for it."""
    entries = yaml.safe_load(REGISTRY.read_text("utf-8"))
    return {name: Repository(name=name, **raw) for name, raw in entries.items()}


def base_model(
    id: str, revision: str | None = None, kind: Literal["transformers", "clip"] = "transformers"
) -> Repository:
    """Return the base model with this hub id; if the registry lacks it, the id is its name."""
    for repository in registry().values():
        if repository.id == id and repository.is_base_model:
            return repository.model_copy(update={"revision": repository.revision or revision})
    return Repository(name=id, id=id, kind="model", revision=revision, files=kind)
