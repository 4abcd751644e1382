"""The lock file: which commit was fetched, and what lay in it. One entry per data set or repository."""

from __future__ import annotations

import json
import os
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .. import paths
from ..documents import read_json
from ..errors import ConfigError, DataError, StoreError, shortened


class SplitFacts(BaseModel):
    """Fingerprint of one split: rows, rows without text, digest of its labels in their order."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int
    empty: int
    labels: str


class FileFacts(BaseModel):
    """One file as it was fetched and verified: where in the repository, bytes, sha256."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class LockedEntry(BaseModel):
    """What a first fetch got. A data set has facts of its splits, a repository of its files, a data set fetched by ``data fetch`` of both."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    train: SplitFacts | None = None
    test: SplitFacts | None = None
    files: dict[str, FileFacts] = {}


def default_path() -> Path:
    """``hub.lock.json`` in the project's folder, to be committed. ``MERGELIB_HUB_LOCK`` moves it."""
    return Path(os.environ.get("MERGELIB_HUB_LOCK") or paths.root() / "hub.lock.json")


def read(path: Path) -> dict[str, LockedEntry]:
    """Raises ``DataError`` for a file that does not parse."""
    if not path.exists():
        return {}
    try:
        return {
            name: LockedEntry.model_validate(entry)
            for name, entry in read_json(path, path.name).items()
        }
    except (ConfigError, ValidationError) as error:
        said = shortened(" ".join(str(error).split()), 200)
        raise DataError(
            f"{path} is no lock file ({said}). Restore it, or delete it and connect once."
        ) from error


def locked(
    path: Path, name: str, id: str, revision: str | None, registry: str
) -> LockedEntry | None:
    """The entry ``name``, when there is one. Raises ``DataError`` where it contradicts the registry's ``id`` and ``revision``."""
    entry = read(path).get(name)
    if entry and (entry.id != id or revision not in (None, entry.revision)):
        raise DataError(
            f"'{name}': {path} has {entry.id} at {entry.revision}, {registry} {id} at {revision or 'any revision'}. "
            "Delete the lock file's entry to accept the registry's."
        )
    return entry


def add(path: Path, name: str, found: LockedEntry) -> None:
    """Add to one entry, or begin it; two processes may do so at once. What is known of the same commit already stays. Raises
    ``StoreError``."""
    try:
        guard = paths.store_root() / ".locks" / "hub.lock"
        guard.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(guard):
            entries = read(path)
            if (before := entries.get(name)) and (before.id, before.revision) == (
                found.id,
                found.revision,
            ):
                found = LockedEntry(
                    id=found.id,
                    revision=found.revision,
                    train=found.train or before.train,
                    test=found.test or before.test,
                    files=before.files | found.files,
                )
            entries[name] = found
            content = {
                key: entries[key].model_dump(exclude_defaults=True) for key in sorted(entries)
            }
            paths.write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error}). Set MERGELIB_HUB_LOCK to a writable file."
        ) from error
