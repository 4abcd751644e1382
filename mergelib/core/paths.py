"""Paths, found from the package's location, so that a notebook works in any folder."""

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import StoreError

REMEDY = (
    "Free space, or choose a folder that you can write to: "
    "MERGELIB_OUTPUT moves figures/ and build/."
)


def root() -> Path:
    """The project's folder (the one that holds ``notebooks/``)."""
    return Path(__file__).resolve().parents[2]


def store_root() -> Path:
    """Computed artifacts. ``MERGELIB_STORE`` moves them."""
    return Path(os.environ.get("MERGELIB_STORE") or root() / ".cache" / "store")


def output_root() -> Path:
    """Folder that receives ``figures/`` and ``build/``. ``MERGELIB_OUTPUT`` moves both (the tests
    do)."""
    return Path(os.environ.get("MERGELIB_OUTPUT") or root())


def figures(profile: str) -> Path:
    return output_root() / "figures" / profile


def build(profile: str) -> Path:
    return output_root() / "build" / profile


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def make_folder(path: Path) -> Path:
    """Create the folder if it is missing. Raises ``StoreError`` if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"Cannot make the folder {path}: {error}. {REMEDY}") from error
    return path


def refused_by_disk(error: BaseException) -> bool:
    """Whether ``error`` means that the disk is full, read-only or not writable for this user;
    safetensors and tokenizers have their own errors for that."""
    refusals = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
    code = (
        error.errno
        if isinstance(error, OSError)
        else int(next(iter(re.findall(r"os error (\d+)", str(error))), 0))
    )
    return code in refusals


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file, and if two runs
    write at once, one file wins as a whole. Raises ``StoreError`` if it cannot be written; the old
    file is then kept.

    A killed process leaves ``.<name>.mergelib.tmp``, which the next writer of the file takes over.
    """
    tmp = path.with_name(f".{path.name}.mergelib.tmp")
    try:
        with held(path.parent):
            try:
                tmp.write_bytes(content)
                tmp.replace(path)
            except BaseException:
                tmp.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error}. {REMEDY}") from error


@contextmanager
def held(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """A lock on the folder itself, which leaves no file and ends with the process, however that
    ends. Yields whether the lock was acquired: not if another process holds it and ``wait`` is
    false, or if the file system cannot lock folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        acquired = False
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            acquired = True
        yield acquired
    finally:
        os.close(handle)
