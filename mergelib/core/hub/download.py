"""Pinned downloads: huggingface_hub fetches, resumes and lists; this module compares the bytes.

In its cache, the client names each blob after the hash that the hub reported (sha256 of large
files, git's sha1 of small ones). A file counts as fetched when its bytes have that hash.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import huggingface_hub  # its functions are imported when they are first used

from ..errors import DataError, OfflineError, StoreError, UnknownNameError, first_five
from ..paths import existing
from .errors import translated
from .lock import lock, locked
from .repository import BESIDE, NEEDED, REGISTRY, Repository, base_model, registry


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
    if key not in repository.files:
        raise UnknownNameError(f"file of '{name}'", key, repository.files)
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
    try:  # the client's errors have no common base class except Exception
        commit = (
            repository.revision
            or huggingface_hub.HfApi()
            .resolve_revision(repository.id, repo_type=repository.kind)
            .resolved
        )
    except Exception as error:
        raise translated(repository, None, error) from error
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
        DataError: There is no such repository, revision or file, or a file's bytes do not match the
            hub's hash; such a file is deleted.
    """
    commit = pin(repository)
    if repository.sample:
        return _sample().fetch(repository, commit)
    files = _files(repository, commit)
    for path in files.values():
        if damaged(path):
            _replace(repository, commit, path)
    return files


def cached_files(repository: Repository) -> dict[str, Path]:
    """Return all files at the locked commit, without network and without reading them; none if one
    is missing.

    Raises:
        DataError: The lock file does not parse.
    """
    commit = locked(repository)
    if repository.sample:
        return _sample().kept(repository, commit) if commit else {}
    try:
        return _files(repository, commit, local_files_only=True) if commit else {}
    except (OfflineError, DataError):
        return {}


def check(repository: Repository) -> dict[str, str]:
    """Return what is wrong with each cached file ("" for nothing), without network."""
    if not locked(repository):
        return {"": "never fetched"}
    if not (files := cached_files(repository)):
        return {"": "not completely in the cache"}
    wrong = "its bytes do not match the hash that the hub listed"
    if repository.sample:
        wrong, differs = "its bytes do not match the hash in its name", _sample().damaged
    else:
        differs = damaged
    return {name: wrong if differs(path) else "" for name, path in files.items()}


def plan(repository: Repository) -> tuple[int, int, int]:
    """Return files, bytes, and bytes that are not cached, as the hub lists them now.

    Raises:
        MergelibError: As :func:`fetch` does.
    """
    if repository.sample:
        return _sample().plan(repository, pin(repository))
    files = _files(repository, pin(repository), dry_run=True).values()
    missing = sum(file.file_size for file in files if file.will_download)
    return len(files), sum(file.file_size for file in files), missing


def check_room(need: int, folder: Path) -> None:
    """Raise ``StoreError`` when fewer than ``need`` bytes are free where ``folder`` will be."""
    if (free := shutil.disk_usage(existing(folder)).free) < need:
        raise StoreError(
            f"'data fetch' needs {need / 1e9:.2f} GB more and {folder} has {free / 1e9:.2f} GB "
            "left. Free some space, or set HF_HOME to a larger disk."
        )


def damaged(path: Path) -> bool:
    """Return whether a file's bytes do not match the hash in its blob's name."""
    blob = path.resolve().name
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob):
        return False  # a file system without links: the client kept no hash
    with path.open("rb") as f:
        if len(blob) == 64:
            return hashlib.file_digest(f, "sha256").hexdigest() != blob
        start = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        return hashlib.file_digest(f, lambda: start).hexdigest() != blob


def _sample() -> Any:
    from . import sample  # with pyarrow, which takes a while

    return sample


def _files(repository: Repository, commit: str, **options: Any) -> dict[str, Any]:
    """Name -> path of all wanted files, or with ``dry_run``, the client's information about them.

    Raises ``DataError`` unless the repository has all wanted files.
    """
    if isinstance(repository.files, dict):
        needed = [tuple(p for end in repository.files.values() for p in (end, f"*/{end}"))]
    else:
        needed = NEEDED.get(repository.files, [repository.files])
    extra = BESIDE if repository.is_base_model else ()
    for patterns in needed:
        try:  # the client's errors have no common base class except Exception
            available = huggingface_hub.snapshot_download(
                repository.id,
                repo_type=repository.kind,
                revision=commit,
                allow_patterns=[*patterns, *extra],
                ignore_patterns=["*/*"] if repository.is_base_model else [],
                **options,
            )
        except Exception as error:
            raise translated(repository, commit, error) from error
        if options.get("dry_run"):
            available = {file.filename: file for file in available}
        else:
            paths = sorted(p for p in Path(available).rglob("*") if p.is_file())
            available = {p.relative_to(available).as_posix(): p for p in paths}
        fitting = [[f for f in available if fnmatch(f, pattern)] for pattern in patterns]
        if isinstance(repository.files, dict):
            # A name's two patterns, of which only one can match, and only one file.
            ends = [[*a, *b] for a, b in zip(fitting[::2], fitting[1::2], strict=True)]
            names = dict(zip(repository.files, ends, strict=True))
            if lacking := {repository.files[n]: f for n, f in names.items() if len(f) != 1}:
                break
            return {name: available[files[0]] for name, files in names.items()}
        lacking = {p: [] for p, files in zip(patterns, fitting, strict=True) if not files}
        if not lacking:
            chosen = {f for files in fitting for f in files}
            chosen |= {f for f in available if "/" not in f and any(fnmatch(f, p) for p in extra)}
            return {f: available[f] for f in sorted(chosen)}
    missing, files = next(iter(lacking.items()))
    has = f"{len(files)} files {first_five(files)} that end in" if files else "no file"
    raise DataError(
        f"'{repository.name}': {repository.id} at {commit} has {has} {missing}. "
        f"See {repository.card} and correct files in {REGISTRY.name}, or name another copy."
    )


def _replace(repository: Repository, commit: str, path: Path) -> None:
    """Download one file again, and delete it if that does not help."""
    name = path.relative_to(next(p for p in path.parents if p.name == commit)).as_posix()
    try:
        huggingface_hub.hf_hub_download(
            repository.id, name, repo_type=repository.kind, revision=commit, force_download=True
        )
    except Exception as error:
        detail = f"the copy of {name} in the cache is damaged, and "
        raise translated(repository, commit, error, detail) from error
    if damaged(path):
        path.resolve().unlink()
        path.unlink()
        raise DataError(
            f"'{repository.name}': {name} of {repository.id} at {commit} does not have the hash "
            "that the hub lists. It was deleted from the cache; fetch again."
        )
