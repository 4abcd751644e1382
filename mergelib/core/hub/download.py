"""Pinned downloads: a repository's files at the locked commit, whole or as a sample."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import huggingface_hub  # its functions are imported when they are first used

from ..errors import StoreError, check_name
from ..paths import existing
from .errors import as_ours
from .lock import lock, locked
from .repository import Repository, base_model, registry
from .whole import WholeFiles


def locked_revision(id: str) -> str | None:
    """Return the commit at which a base model was fetched; None if it was not, or for a folder."""
    return locked(base_model(id))


def fetch_model(id: str, revision: str | None, kind: Literal["transformers", "clip"]) -> Path:
    """Return the folder of a base model's files, verified. Raises as :func:`fetch` does."""
    return fetch(base_model(id, revision, kind))["config.json"].parent


def fetch_file(name: str, key: str) -> Path:
    """Return one file of the registry: ``("released_data", "ag/train")``.

    Raises:
        UnknownNameError: The registry has no such name or file.
        MergelibError: As :func:`fetch` does.
    """
    repository = registry()[name]
    check_name(f"file of '{name}'", key, repository.files)
    single = repository.model_copy(update={"files": {key: repository.files[key]}})
    return fetch(single)[key]


def pin(repository: Repository) -> str:
    """Return a repository's commit, from the lock file or, the first time, from the hub, and lock
    it.

    Raises:
        OfflineError: The hub does not answer, and the client's cache does not have the newest
            commit.
        DataError: The hub refuses, or the lock file contradicts the registry.
        StoreError: The lock file cannot be written.
    """
    if commit := locked(repository):
        return commit
    commit = repository.revision
    if not commit:
        with as_ours(repository, None):
            hub = huggingface_hub.HfApi()
            commit = hub.resolve_revision(repository.id, repo_type=repository.kind).resolved
    lock(repository, commit)
    return commit


def fetch(repository: Repository) -> dict[str, Path]:
    """Return a repository's files, complete and verified, from the client's cache or from the hub.

    What is cached at the locked commit is used without network.

    Returns:
        Our name for a file, or its path in the repository -> its path in the cache.

    Raises:
        OfflineError: The hub does not answer and the cache does not have all files.
        StoreError: There is no space, or the cache or the lock file cannot be written.
        DataError: There is no such repository, revision or file, a table cannot be sampled, or a
            file's bytes do not match the hub's hash; such a file is deleted.
    """
    return _files(repository, pin(repository)).fetch()


def cached_files(repository: Repository) -> dict[str, Path]:
    """Return all files at the locked commit, without network and without reading them; none if one
    is missing.

    Raises:
        DataError: The lock file does not parse.
    """
    commit = locked(repository)
    return _files(repository, commit).kept() if commit else {}


def check(repository: Repository) -> dict[str, str]:
    """Return what is wrong with each cached file ("" for nothing), without network."""
    if not (commit := locked(repository)):
        return {"": "never fetched"}
    files = _files(repository, commit)
    if not (kept := files.kept()):
        return {"": "not completely in the cache"}
    wrong = f"its bytes do not match the {files.hashed}"
    return {name: wrong if files.damaged(path) else "" for name, path in kept.items()}


def plan(repository: Repository) -> tuple[int, int, int]:
    """Return files, bytes, and bytes that are not cached, as the hub lists them now.

    Raises:
        MergelibError: As :func:`fetch` does.
    """
    return _files(repository, pin(repository)).plan()


def check_room(need: int, folder: Path) -> None:
    """Raise ``StoreError`` when fewer than ``need`` bytes are free where ``folder`` will be."""
    if (free := shutil.disk_usage(existing(folder)).free) < need:
        raise StoreError(
            f"'data fetch' needs {need / 1e9:.2f} GB more and {folder} has {free / 1e9:.2f} GB "
            "left. Free some space, or set HF_HOME to a larger disk."
        )


def _files(repository: Repository, commit: str) -> Any:
    """``WholeFiles``, or the ``Sample`` that is asked for: both can fetch, keep, plan and check."""
    if not repository.sample:
        return WholeFiles(repository, commit)
    from .sample import Sample  # with pyarrow, which takes a while

    return Sample(repository, commit)
