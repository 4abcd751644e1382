"""Small disks of one test's own: a tmpfs that only a forked child sees, which can be full, or
closed to writing, for root too."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .kill import finish, forked

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
READ_ONLY, REMOUNT, RECURSIVE, PRIVATE = 1, 32, 0x4000, 0x40000
PAGE = os.sysconf("SC_PAGE_SIZE")


def _mount(
    source: str | None, place: Path, kind: str | None, flags: int, options: str | None = None
) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    source, kind, options = (
        None if text is None else text.encode() for text in (source, kind, options)
    )
    if libc.mount(source, os.fsencode(place), kind, flags, options):
        raise OSError(ctypes.get_errno(), f"mount {place}: {os.strerror(ctypes.get_errno())}")


def own_mounts() -> None:
    """From now on this process's mounts are its own, and go when it and its children end. Raises
    ``OSError`` where that is forbidden."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS | (NEW_USER if user else 0)):
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", Path("/"), None, RECURSIVE | PRIVATE)


class Disk:
    """A file system at the new folder ``place``, with plenty of room at first."""

    def __init__(self, place: Path):
        place.mkdir()
        self.place = place
        _mount("tmpfs", place, "tmpfs", 0, "size=64m")

    def leave(self, room: int) -> None:
        """From now on ``room`` bytes, up to the next page, are free."""
        found = os.statvfs(self.place)
        used = found.f_blocks - found.f_bfree
        if not used:  # a size of 0 would mean none
            (self.place / "ballast").write_bytes(b"x")
            used = 1
        _mount(None, self.place, None, REMOUNT, f"size={(used + -(-room // PAGE)) * PAGE}")

    def open(self) -> None:
        """Plenty of room, and writing allowed."""
        _mount(None, self.place, None, REMOUNT, "size=64m")

    def close(self) -> None:
        """Read only from now on."""
        _mount(None, self.place, None, REMOUNT | READ_ONLY)


@functools.cache
def why_not() -> str:
    """Why no disk can be mounted here; empty where one can."""
    if sys.platform != "linux":
        return "mounts as Linux does"
    reading, writing = os.pipe()

    def probe() -> None:
        try:
            own_mounts()
            _mount("tmpfs", Path("/tmp"), "tmpfs", 0, "size=64k")
        except OSError as error:
            os.write(writing, f"no disk can be mounted here ({error})".encode())

    finish(forked(probe, Path(os.devnull)))
    os.close(writing)
    with os.fdopen(reading) as said:
        return said.read()


def on_a_disk(test: Callable) -> Callable:
    """A test that runs in a forked child, whose mounts vanish with it; ``tmp_path`` is its first
    argument."""

    @functools.wraps(test)
    def run(tmp_path: Path, **fixtures) -> None:
        if why_not():
            pytest.skip(why_not())
        log = tmp_path / "said.log"

        def work() -> None:
            own_mounts()
            test(tmp_path, **fixtures)

        code = finish(forked(work, log))
        assert code == 0, log.read_text()[-6000:]

    return run
