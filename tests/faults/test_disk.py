"""Disks that are full or read-only: small ones in memory, mounted in a child's own namespace, gone with it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mergelib import paths
from mergelib.errors import StoreError
from mergelib.store import Artifact, Store

from . import program
from .kill import Undisturbed, csvs, finish, forked, temporary, tensors
from .test_kill import SHORT, start_short

KEY = {"version": 1}
NEW_MOUNTS = 0x00020000  # CLONE_NEWNS of unshare(2)

needs_mounts = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system, which needs root on Linux")


def mount(place: Path, options: str) -> None:
    """A file system in memory at ``place``, or other options for the one that is there."""
    remount = "remount," if os.path.ismount(place) else ""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{remount}{options}", "tmpfs", str(place)], check=True)


def on_a_small_disk(work, log: Path) -> None:
    """``work()`` in a forked child whose mounts nobody else sees; its failure is this test's."""
    def alone():
        assert ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS) == 0, os.strerror(ctypes.get_errno())
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        work()

    assert finish(forked(alone, log)) == 0, log.read_text()[-3000:]


@needs_mounts
@pytest.mark.slow
def test_a_program_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path):
    reference = Undisturbed(start_short, tmp_path / "alone")
    place, refused = tmp_path / "disk", tmp_path / "refused.txt"

    def work():
        size, complaints = 256, []
        while True:
            mount(place, f"size={size}k")
            try:
                program.run(place / "store", place / "output", SHORT)
                break
            except StoreError as error:
                complaints.append(str(error))
                assert str(place) in complaints[-1] and "Free space" in complaints[-1], complaints
                assert Store(place / "store").verify() == []
                assert all(reference.tensors[name] == found for name, found in tensors(place / "store").items())
            size *= 2
        assert csvs(place / "output") == reference.csvs and tensors(place / "store") == reference.tensors
        assert temporary(place) == []
        refused.write_text("\n".join(complaints))

    on_a_small_disk(work, tmp_path / "said.log")
    assert len(refused.read_text().splitlines()) >= 3, "the disk was never full"


@needs_mounts
@pytest.mark.slow
def test_a_finished_store_serves_from_a_read_only_disk(tmp_path):
    place, output = tmp_path / "disk", tmp_path / "output"

    def work():
        mount(place, "size=200m")
        program.run(place / "store", output / "before", SHORT)
        mount(place, "ro")
        program.run(place / "store", output / "after", SHORT)
        assert csvs(output / "after") == csvs(output / "before") != {}
        with pytest.raises(StoreError, match=r"Cannot write to the store at .*Read-only file system.*MERGELIB_STORE"):
            program.run(place / "store", output / "more", SHORT | {"fine_tuning.steps": 17})
        with pytest.raises(StoreError, match=r"Cannot make the folder .*MERGELIB_OUTPUT"):
            program.run(place / "store", place / "output", SHORT)
        assert not (output / "more").exists()

    on_a_small_disk(work, tmp_path / "said.log")


@needs_mounts
def test_an_artifact_and_a_table_that_do_not_fit_leave_nothing(tmp_path):
    place = tmp_path / "disk"

    def work():
        mount(place, "size=1m")
        store, table = Store(place / "store"), place / "scores.csv"
        paths.write_whole(table, b"before")
        with pytest.raises(StoreError, match=r"Cannot write .*[0-9a-f]{64}.*MERGELIB_STORE"):
            store.get("step", KEY, lambda: Artifact({"t": torch.zeros(10**6)}))
        with pytest.raises(StoreError, match=r"Cannot write .*scores\.csv.*No space left.*MERGELIB_OUTPUT"):
            paths.write_whole(table, b"x" * 10**7)
        assert table.read_bytes() == b"before" and temporary(place) == [] and store.entries() == []
        assert store.get("step", KEY, lambda: Artifact({"t": torch.zeros(3)})).tensors["t"].shape == (3,)

    on_a_small_disk(work, tmp_path / "said.log")
