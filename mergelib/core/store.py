"""A content-addressed store: results are computed once, and found again complete or not at all.

An artifact is a folder ``<root>/<step>/<digest>/`` with ``tensors.safetensors`` and ``meta.json``.
The digest is that of the key: everything the result depends on, and the version of the step that
made it. A folder is written under a temporary name and renamed when complete; a checksum detects
altered files; a lock per key lets two processes share the work.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import StoreError, warn

DIGEST = re.compile("[0-9a-f]{64}")
LEFT_OVER = re.compile(r"(\.tmp-)?[0-9a-f]{64}(\.lock)?")
TENSORS, META = "tensors.safetensors", "meta.json"
# What an absent artifact raises when it is read, and a damaged one.
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
DAMAGED = (ValueError, KeyError, TypeError, RecursionError, SafetensorError)
REMEDY = (
    "Free space, or set MERGELIB_STORE to a folder that you can write to; "
    "artifacts already written are kept."
)


@dataclass(frozen=True)
class Artifact:
    """Named tensors plus a JSON-able ``info``."""

    tensors: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)


class StoreWarning(UserWarning):
    """Warns that an artifact was damaged and is computed again."""


def _canonical(value: Any) -> str:
    """JSON text with sorted keys, equal before and after a round trip (JSON turns integer keys into
    texts)."""
    return json.dumps(
        json.loads(json.dumps(value, allow_nan=False)), sort_keys=True, separators=(",", ":")
    )


def _text_sha256(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def key_digest(step: str, key: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a step's name and key. Raises ``TypeError`` for values that JSON cannot
    hold."""
    return _text_sha256([step, dict(key)])


def file_sha256(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Leave the block where ``path`` is absent or damaged; raise ``StoreError`` if the system
    cannot read it. That does not prove damage: a good artifact must not be removed because too
    many files are open or a network disk is offline."""
    try:
        yield
    except (*ABSENT, *DAMAGED):
        return
    except OSError as error:
        raise StoreError(
            f"Cannot read {path}: {error}. Nothing was removed: make it readable, "
            "remove it, or set MERGELIB_STORE to another folder."
        ) from error


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raise ``StoreError`` for what the system refuses to write at ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # which safetensors raises for a full disk
        raise StoreError(f"Cannot write to the store at {path}: {error}. {REMEDY}") from error


class Store:
    """Artifacts under ``root``. Safe for several processes at once; the module's docstring
    describes the layout."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        # <step>/<digest> of every artifact that was requested and exists, in order
        self.asked: dict[str, None] = {}

    def folder(self, step: str, key: Mapping[str, Any]) -> Path:
        return self.root / step / key_digest(step, key)

    def get(self, step: str, key: Mapping[str, Any], make: Callable[[], Artifact]) -> Artifact:
        """The artifact of ``key``; ``make()`` computes it if it is absent or damaged.

        The key's lock is held meanwhile, so a second process waits instead of computing the same
        thing. Raises ``StoreError`` if the folder cannot be written, or exists and cannot be read.
        """
        folder = self.folder(step, key)
        artifact = self._load(
            folder
        )  # the common case needs no lock: a folder appears complete or not at all
        if artifact is None:
            with self.lock(step, key):
                artifact = self._load(folder)
                if artifact is None:
                    if os.path.lexists(folder):
                        warn(
                            f"{folder} is damaged; it will be removed and computed again.",
                            StoreWarning,
                        )
                        self._remove(folder)
                    artifact = self._save(folder, step, key, make())
        self.asked[f"{step}/{folder.name}"] = None
        # Here, not in saving: a run may have been killed between the two.
        shutil.rmtree(self.root / ".scratch" / folder.name, ignore_errors=True)
        return artifact

    def peek(self, step: str, key: Mapping[str, Any]) -> Artifact | None:
        """The artifact if it exists and is intact, else ``None``. Computes nothing."""
        return self._load(self.folder(step, key))

    @contextmanager
    def lock(self, step: str, key: Mapping[str, Any]) -> Iterator[None]:
        """Exclusive right to one key, across processes; released by the system if the holder
        dies."""
        path = self.root / ".locks" / f"{key_digest(step, key)}.lock"
        lock = FileLock(path)
        with writable(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def being_made(self, step: str, key: Mapping[str, Any]) -> bool:
        """Whether another process computes the artifact of ``key`` at this moment."""
        path = self.root / ".locks" / f"{key_digest(step, key)}.lock"
        try:
            with FileLock(path, timeout=0) if path.exists() else nullcontext():
                return False
        except OSError:  # a timeout, or a lock that cannot be opened: ``get`` will say why
            return True

    def scratch(self, step: str, key: Mapping[str, Any]) -> Path:
        """A folder that outlives an interrupted computation of ``key`` (training checkpoints);
        ``get`` removes it."""
        path = self.root / ".scratch" / key_digest(step, key)
        with writable(self.root):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def entries(self) -> list[dict[str, Any]]:
        """A row per artifact: step, digest, bytes, key; ``ok=False`` where the meta file is damaged
        (``verify`` checks the tensors too)."""
        rows = []
        for folder in self._folders():
            if (folder / META).exists():
                meta = self._meta(folder)
                rows.append(
                    {
                        "step": folder.parent.name,
                        "digest": folder.name,
                        "bytes": sum(p.stat().st_size for p in folder.iterdir()),
                        "ok": meta is not None,
                        "key": meta["key"] if meta else {},
                    }
                )
        return rows

    def _folders(self) -> list[Path]:
        # Only folders named by a digest are ours: the root may contain others.
        return [
            p
            for p in sorted(self.root.glob("*/*"))
            if DIGEST.fullmatch(p.name) and p.is_dir() and not p.parent.name.startswith(".")
        ]

    def verify(self) -> list[Path]:
        """Folders whose checksum or key is wrong."""
        return [p for p in self._folders() if self._load(p) is None]

    def prune(self, keep_steps: Mapping[str, int]) -> list[Path]:
        """Remove damaged artifacts, those of unknown steps or older step versions, left-over
        temporary and scratch folders and locks. Returns the removed paths. Run it while nothing
        else uses the store."""
        doomed = set(self.verify())
        for row in self.entries():
            if row["ok"] and keep_steps.get(row["step"]) != row["key"].get("version"):
                doomed.add(self.root / row["step"] / row["digest"])
        for pattern in ("*/.tmp-*", ".scratch/*", ".locks/*.lock"):
            doomed.update(p for p in self.root.glob(pattern) if LEFT_OVER.fullmatch(p.name))
        for path in doomed:
            self._remove(path)
        return sorted(doomed)

    @staticmethod
    def _remove(path: Path) -> None:
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            raise StoreError(
                f"Cannot remove {path}: {error}. Remove it by hand, "
                "or set MERGELIB_STORE to another folder."
            ) from error

    def _meta(self, folder: Path) -> dict[str, Any] | None:
        """What the meta file says; None if it is damaged or another key's."""
        with readable(folder / META):
            meta = json.loads((folder / META).read_text())
            is_its = key_digest(meta["step"], meta["key"]) == folder.name
            return meta if is_its and isinstance(meta["tensors_sha256"], str) else None

    def _load(self, folder: Path) -> Artifact | None:
        """The artifact; None if it is absent or damaged."""
        meta = self._meta(folder)
        with readable(folder / TENSORS):
            if (
                meta
                and file_sha256(folder / TENSORS) == meta["tensors_sha256"]
                and _text_sha256(meta["info"]) == meta["info_sha256"]
            ):
                return Artifact(load_file(folder / TENSORS), meta["info"])

    def _save(self, folder: Path, step: str, key: Mapping[str, Any], made: Artifact) -> Artifact:
        # The key's lock is held: anything under this name was left by a killed process.
        tmp = folder.parent / f".tmp-{folder.name}"
        shutil.rmtree(tmp, ignore_errors=True)
        try:
            with writable(folder):
                tmp.mkdir(parents=True)
                tensors = {
                    k: t.detach().cpu().contiguous().clone() for k, t in made.tensors.items()
                }
                save_file(tensors, tmp / TENSORS)
                # safetensors would make it readable only for us
                (tmp / TENSORS).chmod(tmp.stat().st_mode & 0o666)
                info = json.loads(_canonical(made.info))

                meta = {
                    "step": step,
                    "key": dict(key),
                    "info": info,
                    "tensors_sha256": file_sha256(tmp / TENSORS),
                    "info_sha256": _text_sha256(info),
                    "torch": torch.__version__,
                }
                (tmp / META).write_text(json.dumps(meta, indent=1, sort_keys=True))
                os.replace(tmp, folder)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
        return Artifact(tensors, info)
