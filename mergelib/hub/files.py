"""Files of repositories on the hub: registry in ``files.yaml``, downloaded by huggingface_hub into its cache, verified and locked here.

A file counts as fetched when its bytes agree with all that is known of it: size and hash as the hub lists them (sha256 of large files,
git's sha1 of small ones), size and sha256 of the registry where they are given, and of the lock file once it has been fetched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from ..errors import (
    DataError,
    MergelibError,
    OfflineError,
    StoreError,
    UnknownNameError,
    first_five,
)
from . import lock
from .client import TIMEOUT_S, no_answer, offline, refusal, said
from .lock import FileFacts, LockedEntry

REGISTRY = Path(__file__).with_name("files.yaml")
TRANSFORMERS = (
    "*.json",
    "*.txt",
    "*.model",
    "*.safetensors",
)  # configuration, tokenizer and weights of a model, at the root
PICKLED = (
    "pytorch_model*.bin"  # of a model without safetensors, where its loader reads tensors only
)
PAGE = re.compile(rb"\s*<(!doctype|html|\?xml|head|body)", re.IGNORECASE)
PART = re.compile(r"-\d+-of-(\d+)\.")  # as datasets numbers the files of a split
POINTER = b"version https://git-lfs.github.com/spec"


class HubFile(BaseModel):
    """One file of the registry; ``files.yaml`` explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    size: int | None = Field(None, ge=0)
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")


class Repository(BaseModel):
    """One repository of the registry; ``files.yaml`` explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    kind: Literal["model", "dataset"]
    card: str | None
    revision: str | None = Field(pattern="^[0-9a-f]{40}$")
    files: dict[str, HubFile] | Literal["transformers", "clip"] | tuple[str, ...]
    licence: str | None
    citation: str | None

    @property
    def is_model(self) -> bool:
        """Whether it is a base model, read from the folder of its files."""
        return isinstance(self.files, str)

    @property
    def named(self) -> dict[str, HubFile]:
        """The files that the registry names one by one; none where it takes all that fit, each of which goes by its path."""
        return self.files if isinstance(self.files, dict) else {}


@dataclass(frozen=True)
class Listed:
    """A file as a repository lists it: bytes, and sha256 (of a file in large-file storage) or git's sha1 of its content; None: unknown."""

    size: int | None
    hash: str | None


def registry() -> dict[str, Repository]:
    """Our name of a repository -> the repository."""
    return {
        name: Repository.model_validate(raw)
        for name, raw in yaml.safe_load(REGISTRY.read_text("utf-8")).items()
    }


def base_model(
    id: str, revision: str | None = None, kind: Literal["transformers", "clip"] = "transformers"
) -> tuple[str, Repository]:
    """Name and repository of a base model by its hub id; one that the registry does not have goes by its id, and nothing is known of it but
    its ``kind``."""
    for name, repository in registry().items():
        if repository.id == id and repository.is_model:
            return name, repository.model_copy(update={"revision": repository.revision or revision})
    return id, Repository(
        id=id, kind="model", card=None, revision=revision, files=kind, licence=None, citation=None
    )


def locked_revision(id: str) -> str | None:
    """The commit at which a base model was fetched, so that it is loaded from there with and without network; None before that, and for a
    folder."""
    name, _ = base_model(id)
    entry = lock.read(lock.default_path()).get(name)
    return entry.revision if entry and entry.id == id else None


def fetch_model(
    id: str, revision: str | None = None, *, kind: Literal["transformers", "clip"] = "transformers"
) -> Path:
    """The folder of a base model's files in the client's cache, all of them there and verified. Raises what ``fetch_files`` raises."""
    name, repository = base_model(id, revision, kind)
    return fetch_files(name, repository=repository)["config.json"].parent


def fetch_file(name: str, *, lock_path: Path | str | None = None) -> Path:
    """One file of the registry, whole and verified, from the client's cache or the hub: ``released_checkpoints/ag``,
    ``released_data/ag/train``, ``bert-base-uncased/config.json``. Raises what ``fetch_files`` raises."""
    known = registry()
    for repository in known:
        if name.startswith(f"{repository}/"):
            key = name.removeprefix(f"{repository}/")
            return fetch_files(repository, [key], lock_path=lock_path)[key]
    raise UnknownNameError(
        "file of the hub", name, (f"{n}/{k}" for n, r in known.items() for k in r.named)
    )


def fetch_files(
    name: str,
    keys: Sequence[str] | None = None,
    *,
    lock_path: Path | str | None = None,
    repository: Repository | None = None,
) -> dict[str, Path]:
    """Files of the repository ``name`` of the registry (or of ``repository``, under that name), all or those of ``keys``: key -> path in
    the client's cache. What is cached at the locked commit is verified and used without network.

    Raises ``UnknownNameError`` for a name or key that the registry does not have; ``OfflineError`` when the hub does not answer and the
    cache does not have the files; ``StoreError`` when there is no room, or cache or lock file cannot be written; ``DataError`` for a
    repository, revision or file that does not exist, and for a file whose bytes are not those expected, which is then deleted.
    """
    repository, path = repository or _known(name), _lock_path(lock_path)
    if repository.named:
        for key in keys or ():
            if key not in repository.named:
                raise UnknownNameError(f"file of '{name}'", key, repository.named)
    entry = lock.locked(path, name, repository.id, repository.revision, REGISTRY.name)
    if entry and (known := _known_keys(repository, entry, keys)):
        got = {k: _cached(repository, entry.revision, entry.files[k].path) for k in known}
        if all(
            p and not wrong_with(p, _expected(repository, k, entry, Listed(None, None)))
            for k, p in got.items()
        ):
            return got
    revision, listing, lost = _list(
        name, repository, entry.revision if entry else repository.revision
    )
    try:
        chosen = _choose(name, repository, listing, keys)
    except DataError:
        if lost:  # the cache lacks it; the hub may well have it
            raise lost from None
        raise
    if not entry:  # from here on an interrupted fetch goes on with the same commit
        entry = LockedEntry(id=repository.id, revision=revision)
        lock.add(path, name, entry)
    _room(
        name,
        sum(listing[p].size or 0 for p in chosen.values() if not _cached(repository, revision, p)),
    )
    got, facts = {}, {}
    for key, file in chosen.items():
        got[key], facts[key] = _fetch(name, repository, revision, key, file, entry, listing[file])
        if repository.named:
            lock.add(
                path,
                name,
                LockedEntry(id=repository.id, revision=revision, files={key: facts[key]}),
            )
    if (
        not repository.named and not keys and not lost
    ):  # its files are all that the lock file names: never a part of them
        lock.add(path, name, LockedEntry(id=repository.id, revision=revision, files=facts))
    return got


def check_files(
    name: str, *, lock_path: Path | str | None = None, repository: Repository | None = None
) -> dict[str, str]:
    """Compare the cached files of a repository with the lock file, without network: key -> what is wrong, an empty text where nothing is.

    A repository of which nothing is locked has the one key ``""``. Raises ``DataError`` for a broken lock file.
    """
    repository, path = repository or _known(name), _lock_path(lock_path)
    entry = lock.locked(path, name, repository.id, repository.revision, REGISTRY.name)
    if not entry or not entry.files:
        return {"": "never fetched"}
    keys = list(repository.named or entry.files)
    result = {}
    for key in keys:
        if key not in entry.files:
            result[key] = "never fetched"
        elif not (file := _cached(repository, entry.revision, entry.files[key].path)):
            result[key] = "not in the cache"
        else:
            result[key] = "; ".join(
                wrong_with(file, _expected(repository, key, entry, Listed(None, None)))
            )
    return result


def check_room(name: str, need: int, folder: Path) -> None:
    """Raises ``StoreError`` when fewer than ``need`` bytes are free where ``folder`` is or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if (free := shutil.disk_usage(folder).free) < need:
        raise StoreError(
            f"'{name}' needs {need / 1e9:.2f} GB more and {folder} has {free / 1e9:.2f} GB left. Make room, or set HF_HOME to a "
            "larger disk."
        )


def list_files(
    name: str, repository: Repository, *, lock_path: Path | str | None = None
) -> tuple[str, dict[str, tuple[str, Listed]]]:
    """Commit and files, key -> (path, what the hub lists), that a fetch would get now. Raises as ``fetch_files`` does."""
    entry = lock.locked(
        _lock_path(lock_path), name, repository.id, repository.revision, REGISTRY.name
    )
    wanted = entry.revision if entry else repository.revision
    revision, listing = hub_listing(name, repository.id, repository.kind, wanted, repository.card)
    return revision, {
        k: (p, listing[p]) for k, p in _choose(name, repository, listing, None).items()
    }


def cached_path(id: str, kind: str, revision: str, path: str) -> Path | None:
    """Where the client's cache has a file of the repository ``id`` at a commit, whatever is in it; None: nowhere."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(id, path, revision=revision, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def hub_listing(
    name: str, id: str, kind: str, wanted: str | None, card: str | None
) -> tuple[str, dict[str, Listed]]:
    """Commit (``wanted``, or the newest) and all files of a repository, as the hub lists them. Raises ``OfflineError`` when the hub does
    not answer, ``DataError`` when it refuses."""
    from huggingface_hub import HfApi

    try:  # what is raised here has no common base class but Exception
        info = HfApi().repo_info(
            id, repo_type=kind, revision=wanted, files_metadata=True, timeout=TIMEOUT_S
        )
        if not wanted:
            # Leaves the newest commit's name in the cache, where transformers looks when it is offline and given none.
            HfApi().resolve_revision(id, repo_type=kind)
    except Exception as error:
        raise _translated(name, id, wanted, card, error) from error
    return info.sha, {
        s.rfilename: Listed(s.size, s.lfs.sha256 if s.lfs else s.blob_id)
        for s in info.siblings or ()
    }


def _known(name: str) -> Repository:
    known = registry()
    if name not in known:
        raise UnknownNameError("repository of the hub", name, known)
    return known[name]


def _lock_path(path: Path | str | None) -> Path:
    return Path(path) if path else lock.default_path()


def _known_keys(
    repository: Repository, entry: LockedEntry, keys: Sequence[str] | None
) -> list[str]:
    """The wanted keys when the lock file has them all; else none."""
    wanted = list(keys or repository.named or entry.files)
    return wanted if set(wanted) <= entry.files.keys() else []


def _list(
    name: str, repository: Repository, wanted: str | None
) -> tuple[str, dict[str, Listed], OfflineError | None]:
    """Commit and files of a repository from the hub, and None; when the hub does not answer, from the client's cache, and the reason."""
    try:
        return *hub_listing(name, repository.id, repository.kind, wanted, repository.card), None
    except OfflineError as error:
        if found := _cached_listing(repository, wanted):
            return *found, error
        raise


def _cached_listing(
    repository: Repository, wanted: str | None
) -> tuple[str, dict[str, Listed]] | None:
    """What the client's cache has of the commit ``wanted``, or of that which was the newest when it last asked."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        with offline():
            commit = (
                HfApi()
                .resolve_revision(
                    repository.id, repo_type=repository.kind, revision=wanted, local_files_only=True
                )
                .resolved
            )
    except Exception:
        return None
    folder = Path(
        constants.HF_HUB_CACHE,
        repo_folder_name(repo_id=repository.id, repo_type=repository.kind),
        "snapshots",
        commit,
    )
    files = {
        p.relative_to(folder).as_posix(): Listed(None, None)
        for p in folder.rglob("*")
        if p.is_file()
    }
    return (commit, files) if files else None


def _choose(
    name: str, repository: Repository, listing: Iterable[str], keys: Sequence[str] | None
) -> dict[str, str]:
    """key -> path in the repository. Raises ``DataError`` unless every key has exactly one file, every pattern at least one."""
    listing = sorted(listing)
    here = f"{repository.id} has {first_five(listing) if listing else 'no files'}"
    if not repository.named:
        found = (
            _model_files(name, repository, listing, here)
            if repository.is_model
            else _matching(name, repository, listing, here)
        )
        if lacking := [k for k in keys or () if k not in found]:
            raise DataError(f"'{name}' has no {', '.join(lacking)}; {here}.")
        return {k: k for k in keys or found}
    chosen = {}
    for key in keys or repository.named:
        wanted = repository.named[key].path
        ends = [p for p in listing if p == wanted or p.endswith(f"/{wanted}")]
        if len(ends) != 1:
            what = f"{len(ends)} files {', '.join(ends)} that end in" if ends else "no file"
            raise DataError(
                f"'{name}': {what} {wanted}; {here}. See {repository.card} and correct the path of '{key}' in {REGISTRY.name}."
            )
        chosen[key] = ends[0]
    return chosen


def _model_files(name: str, repository: Repository, listing: Sequence[str], here: str) -> list[str]:
    def at_root(*patterns: str) -> list[str]:
        return [
            p
            for p in listing
            if "/" not in p and any(PurePosixPath(p).match(pattern) for pattern in patterns)
        ]

    found, kinds = at_root(*TRANSFORMERS), "*.safetensors"
    if repository.files == "clip" and not at_root("*.safetensors"):
        found, kinds = [*found, *at_root(PICKLED)], f"*.safetensors or {PICKLED}"
    if not any(p.endswith((".safetensors", ".bin")) for p in found) or "config.json" not in found:
        raise DataError(
            f"'{name}': no config.json with {kinds} at its root; {here}. Only such models are read: name another copy."
        )
    return found


def _matching(name: str, repository: Repository, listing: Sequence[str], here: str) -> list[str]:
    by_pattern = {
        pattern: [p for p in listing if PurePosixPath(p).match(pattern)]
        for pattern in repository.files
    }
    for pattern, found in by_pattern.items():
        if not found:
            raise DataError(
                f"'{name}': no file {pattern}; {here}. See {repository.card} and correct files of '{name}' in {REGISTRY.name}."
            )
        if parts := {int(m[1]) for p in found if (m := PART.search(p))} - {len(found)}:
            raise DataError(
                f"'{name}': {len(found)} files {pattern}, which are numbered as {max(parts)}; {here}."
            )
    return [p for found in by_pattern.values() for p in found]


def _cached(repository: Repository, revision: str, path: str) -> Path | None:
    return cached_path(repository.id, repository.kind, revision, path)


def _room(name: str, need: int) -> None:
    from huggingface_hub import constants

    check_room(name, need, Path(constants.HF_HUB_CACHE))


def _expected(
    repository: Repository, key: str, entry: LockedEntry, listed: Listed
) -> list[tuple[str, int | None, str | None]]:
    """(who says so, size, hash) of all that is known of a file."""
    claims = [("the hub lists", listed.size, listed.hash)]
    if key in repository.named:
        claims.append(
            (f"{REGISTRY.name} says", repository.named[key].size, repository.named[key].sha256)
        )
    if key in entry.files:
        claims.append(("the lock file has", entry.files[key].size, entry.files[key].sha256))
    return claims


def wrong_with(file: Path, claims: Iterable[tuple[str, int | None, str | None]]) -> list[str]:
    """What of a cached file contradicts what is known of it. The client names the blob behind a file after the hash that the hub gave."""
    size = file.stat().st_size
    with file.open("rb") as f:
        head = f.read(512)
    if PAGE.match(head):
        return ["it is a web page (an error or log-in page?)"]
    if head.startswith(POINTER):
        return ["it is a pointer to large-file storage, not the file"]
    if sizes := [
        f"{size:,} bytes, {who} {wanted:,}"
        for who, wanted, _ in claims
        if wanted not in (None, size)
    ]:
        return sizes
    hashes = {who: wanted for who, _, wanted in claims if wanted}
    if file.is_symlink() and re.fullmatch(
        "[0-9a-f]{40}|[0-9a-f]{64}", blob := Path(os.readlink(file)).name
    ):
        hashes["its name in the cache says"] = blob
    found = {n: file_hash(file, n) for n in {len(h) for h in hashes.values()}}
    return [
        f"hash {found[len(h)][:12]}, {who} {h[:12]}"
        for who, h in hashes.items()
        if found[len(h)] != h
    ]


def file_hash(file: Path, digits: int = 64) -> str:
    """Hash of a file's content as the hub names it: sha256 (64 digits), or git's sha1 of a blob (40 digits)."""
    with file.open("rb") as f:
        if digits == 64:
            return hashlib.file_digest(f, "sha256").hexdigest()
        return hashlib.file_digest(
            f, lambda: hashlib.sha1(b"blob %d\0" % file.stat().st_size)
        ).hexdigest()


def _fetch(
    name: str,
    repository: Repository,
    revision: str,
    key: str,
    path: str,
    entry: LockedEntry,
    listed: Listed,
) -> tuple[Path, FileFacts]:
    """Download one file unless it is cached, verify it, delete it where it is wrong. A damaged copy in the cache is replaced once."""
    from huggingface_hub import hf_hub_download

    claims = _expected(repository, key, entry, listed)
    wrong: list[str] = []
    for again in [False, True] if _cached(repository, revision, path) else [False]:
        try:
            file = Path(
                hf_hub_download(
                    repository.id,
                    path,
                    repo_type=repository.kind,
                    revision=revision,
                    force_download=again,
                )
            )
        except Exception as error:
            # That a damaged file could not be replaced is the lesser news.
            detail = f"the copy in the cache is damaged ({'; '.join(wrong)}), and " if wrong else ""
            raise _translated(
                f"{name}/{key}", repository.id, revision, repository.card, error, path, detail
            ) from error
        if not (wrong := wrong_with(file, claims)):
            return file, FileFacts(path=path, size=file.stat().st_size, sha256=file_hash(file))
    _delete(file)
    raise DataError(
        f"'{name}/{key}': {path} of {repository.id} at {revision} is not the file expected: {'; '.join(wrong)}. It was deleted from "
        f"the cache; fetch again. If that does not help, compare {repository.card or 'the repository'} with {REGISTRY.name} and the "
        "lock file."
    )


def _delete(file: Path) -> None:
    """A file of the client's cache and the blob behind it."""
    blob = file.parent / os.readlink(file) if file.is_symlink() else None
    file.unlink(missing_ok=True)
    if blob:
        blob.unlink(missing_ok=True)


def _translated(
    name: str,
    id: str,
    revision: str | None,
    card: str | None,
    error: Exception,
    path: str = "",
    detail: str = "",
) -> MergelibError:
    """A client's error as one of ours."""
    import errno

    what = f"{path} of {id}" if path else id
    if (
        path
        and isinstance(error, OSError)
        and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)
    ):
        return StoreError(
            f"'{name}': {what} cannot be written to the cache ({said(error)}). Make room or get write access, or set HF_HOME to "
            "another folder."
        )
    if reason := no_answer(error):
        kept = "; files that were complete are kept" if path else ""
        return OfflineError(
            f"'{name}': {what} is not to be had: {detail}{reason}{kept}. Connect (HF_HUB_OFFLINE unset) and run "
            "`python -m mergelib data fetch` again."
        )
    why = refusal(error, "repository", card)
    if not why and "RemoteEntryNotFoundError" in type(error).__name__:
        why = f"it has no {path}"
    if not why and "Consistency check failed" in str(error):
        why = "what came is not as long as the hub says (an error page, or a cut connection); fetch again"
    return DataError(
        f"'{name}': {what} at {revision or 'its newest revision'} cannot be fetched: {detail}{why or 'the client refused it'}. "
        f"({said(error)})"
    )
