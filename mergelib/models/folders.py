"""Write folders and files atomically, and never over anything that mergelib did not write."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..core import paths
from ..core.documents import MAX_NAME, read_json, user_path
from ..core.errors import ConfigError, StoreError, first_five, shortened

RECORD = "mergelib.json"
SMALL = 1 << 20  # bytes; for larger files (weights), the time is compared instead of the content


def _place(given: str | os.PathLike, inputs: Iterable[str | os.PathLike]) -> Path:
    """An absolute path, symbolic links followed, whose last name leaves room for a temporary one's.

    Raises ``ConfigError``, also when it is an input, or an input lies below it.
    """
    try:
        target = user_path(given).resolve()
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"'{given}' is a link that leads nowhere; choose another name."
        ) from error
    if len(os.fsencode(target.name)) > 2 * MAX_NAME:
        raise ConfigError(
            f"'{shortened(target.name)}' is too long for the name of a file "
            "or folder; choose a shorter one."
        )
    for path in inputs:
        source = user_path(path)
        if source.exists() and target in (source.resolve(), *source.resolve().parents):
            raise ConfigError(
                f"'{target}' is or contains an input ('{path}'), which writing there would "
                "delete; choose another place."
            )
    return target


def free_folder(
    folder: str | os.PathLike,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike] = (),
) -> Path:
    """``folder`` as an absolute path, symbolic links followed.

    Raises ``ConfigError`` if it is not a folder, if it is or contains an input, or if it is not
    empty; with ``overwrite``, only if it contains something that mergelib did not write.
    """
    target = _place(folder, inputs)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"'{folder}' is not a folder; choose another name.")
    entries = _entries(target) if target.exists() else []
    if entries and not overwrite:
        raise ConfigError(
            f"'{folder}' exists and is not empty; choose another folder, or overwrite what "
            "mergelib wrote there (overwrite=True, --overwrite)."
        )
    if entries and (foreign := _foreign(target)):
        raise ConfigError(
            f"'{folder}' holds {first_five(foreign)}, which mergelib did not write or which "
            "has changed since; mergelib overwrites only its own files. Choose another "
            "folder, or empty this one yourself."
        )
    return target


def _entries(folder: Path) -> list[Path]:
    """The contents of a folder, except what killed writers left behind."""
    return sorted(p for p in folder.iterdir() if not _is_left(p, folder.name))


def _is_left(path: Path, name: str) -> bool:
    """Whether this was left behind by a writer of the folder ``name``."""
    return (
        path.name.startswith(f".{name}.partial-")
        and path.is_dir()
        and not path.is_symlink()
        and {p.name for p in path.iterdir()} <= {"new", "old"}
    )


def _files(folder: Path) -> dict[str, Path]:
    """The files and links in a folder, and in those below it, by their names in it."""
    return {
        path.relative_to(folder).as_posix(): path
        for entry in _entries(folder)
        for path in (entry, *sorted(entry.rglob("*")))
        if path.is_symlink() or not path.is_dir()
    }


def _foreign(folder: Path) -> list[str]:
    """The contents of a folder, apart from the unchanged files that its record lists."""
    listed: Any = {}
    with suppress(ConfigError):
        listed = read_json(folder / RECORD, RECORD).get("files")
    known = {RECORD, *listed} if listed and isinstance(listed, dict) else {}
    return [
        name
        for name, path in _files(folder).items()
        if path.is_symlink()
        or name not in known
        or (name != RECORD and listed[name] != _mark(path))
    ]


def _mark(path: Path, whole: bool = False) -> str:
    """A file's fingerprint: its length and its content or, unless ``whole``, if it is large, its
    modification time."""
    if not path.is_file():
        return ""
    now = path.stat()
    small = whole or now.st_size <= SMALL
    content = hashlib.sha256(path.read_bytes()).hexdigest() if small else now.st_mtime_ns
    return f"{now.st_size} {content}"


def _list_files(folder: Path) -> None:
    """Add the files written with the record to it, and give them its mode: safetensors writes files
    for their owner only, whatever the umask."""
    record = folder / RECORD
    if record.is_file():
        files = _files(folder)
        for path in files.values():
            path.chmod(record.stat().st_mode)
        marks = {name: _mark(path) for name, path in files.items() if path != record}
        write_record(folder, json.loads(record.read_text()) | {"files": marks})


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Write what a folder holds and how it was made."""
    (folder / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def whole_folder(
    folder: str | os.PathLike,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike] = (),
) -> Iterator[Path]:
    """A temporary folder that is renamed to ``folder`` when the block ends, and deleted if it
    fails.

    It lies next to ``folder``, or inside it if that is empty or its parent is not writable (a
    container's volume). Raises like ``free_folder``, again when the block ends, and ``StoreError``
    if the disk refuses.
    """
    inputs = tuple(inputs)
    target = free_folder(folder, overwrite, inputs)
    beside = not target.is_dir() or bool(_entries(target))
    scratch = None
    try:
        try:
            scratch = _scratch(paths.make_folder(target.parent) if beside else target, target.name)
        except OSError:
            if not target.is_dir():
                raise
            scratch = _scratch(target, target.name)
        with paths.held(scratch):
            out = scratch / "new"
            out.mkdir()
            yield out
            _list_files(out)
            free_folder(folder, overwrite, inputs)
            _take_name(out, target, scratch)
    # tokenizers and safetensors report a full disk by errors of their own
    except Exception as error:
        if not paths.refused_by_disk(error):
            raise
        raise StoreError(
            f"Cannot write {target}: {error}. Free space, or choose a folder that you can write to."
        ) from error
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _scratch(place: Path, name: str) -> Path:
    """A new temporary folder; those that killed processes left are removed."""
    prefix = f".{name}.partial-"
    for folder in place.glob(glob.escape(prefix) + "*"):
        with suppress(OSError), paths.held(folder, wait=False) as free:
            if free and _is_left(folder, name):
                shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=place))


def _take_name(out: Path, target: Path, scratch: Path) -> None:
    """Put ``out`` in ``target``'s place: by two renames or, in a folder that cannot be renamed,
    entry by entry, with the file that makes it loadable last."""
    free = not target.exists()
    if not free and scratch.parent != target:
        with suppress(OSError):  # a mount point
            target.replace(scratch / "old")
            free = True
    if free:
        out.replace(target)
        return
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.partial-", dir=target) as room:
        new, old = Path(room, "new"), Path(room, "old")
        old.mkdir()
        shutil.move(out, new)  # copies if the target is on another disk
        for entry in sorted(_entries(target), key=lambda p: p.name != "config.json"):
            entry.replace(old / entry.name)
        for entry in sorted(new.iterdir(), key=lambda p: (p.name == "config.json", p.name)):
            entry.replace(target / entry.name)


def free_file(
    file: str | os.PathLike,
    overwrite: bool,
    inputs: Iterable[str | os.PathLike] = (),
) -> Path:
    """A path for a file of results.

    Raises ``ConfigError`` when it is a folder, an input, or exists: with ``overwrite`` only when
    it is not what ``write_file`` left there, or was changed since; and when its record would
    replace something else. Raises ``StoreError`` for a folder that is not writable.
    """
    target = _place(file, inputs)
    if target.is_dir():
        raise ConfigError(f"'{file}' is a folder; give the name of a file to write.")
    record, said = _record_of(target), b""
    if os.path.lexists(record):
        if record.is_file() and not record.is_symlink() and record.stat().st_size < 100:
            said = record.read_bytes()
        if not re.fullmatch(rb"\d+ [0-9a-f]{64}", said):
            raise ConfigError(
                f"'{file}' needs '{record.name}' beside it, "
                "and mergelib did not write what is there; choose another name."
            )
    if target.exists():
        ours = False
        with suppress(OSError):  # a target that may not be read
            ours = bool(said) and said == _mark(target, whole=True).encode()
        if not overwrite or not ours:
            raise ConfigError(
                f"'{file}' exists"
                + (" and is not, or no longer, what mergelib wrote; " if overwrite else "; ")
                + "choose another name"
                + (", or replace it with --overwrite." if ours else ".")
            )
    if not os.access(paths.make_folder(target.parent), os.W_OK):
        raise StoreError(f"'{target.parent}' is not writable for you; choose another folder.")
    return target


def write_file(target: Path, text: str) -> None:
    """Write a file of results and, next to it, a hidden file by which ``free_file`` recognises
    it."""
    paths.write_whole(target, text.encode())
    paths.write_whole(_record_of(target), _mark(target, whole=True).encode())


def _record_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.mergelib")
