"""The lock file ``hub.lock.json``: the commit at which each repository was first fetched."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from filelock import FileLock

from .. import paths
from ..documents import read_json
from ..errors import ConfigError, DataError, StoreError, shortened
from .repository import Repository

COMMIT = re.compile("[0-9a-f]{40}")


def lock_path() -> Path:
    """Return ``hub.lock.json`` in the project's folder, or the path in ``MERGELIB_HUB_LOCK``."""
    return Path(os.environ.get("MERGELIB_HUB_LOCK") or paths.root() / "hub.lock.json")


def read(path: Path) -> dict[str, dict[str, str]]:
    """Return the entries. Raises ``DataError`` for a file that does not parse."""
    if not path.exists():
        return {}
    try:
        entries = dict(read_json(path, path.name))
        for name, entry in entries.items():
            if not isinstance(entry["id"], str) or not COMMIT.fullmatch(entry["revision"]):
                raise ConfigError(f"'{shortened(name)}' has no id and commit")
        return entries
    except (ConfigError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is not a lock file ({shortened(str(error), 200)}). "
            "Restore it, or delete it and connect once."
        ) from error


def locked(repository: Repository) -> str | None:
    """Return the commit at which a repository was first fetched, None before that.

    Raises:
        DataError: The file does not parse, or contradicts the registry.
    """
    path = lock_path()
    entry = read(path).get(repository.name)
    if not entry:
        return None
    if entry["id"] != repository.id or repository.revision not in (None, entry["revision"]):
        raise DataError(
            f"'{repository.name}': {path} has {entry['id']} at {entry['revision']}, "
            f"but {repository.id} is requested at {repository.revision or 'any revision'}. "
            "Delete the lock file's entry to accept that."
        )
    return entry["revision"]


def lock(repository: Repository, commit: str) -> None:
    """Record the commit of a repository; several processes may do so at once.

    Raises:
        StoreError: The file cannot be written.
    """
    path = lock_path()
    try:
        guard = paths.store_root() / ".locks" / "hub.lock"
        guard.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(guard):
            entries = read(path)
            entries[repository.name] = {"id": repository.id, "revision": commit}
            paths.write_whole(path, (json.dumps(entries, indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error}). Set MERGELIB_HUB_LOCK to a writable file."
        ) from error
