"""The doctor: planted problems are found and named with their remedy, and nothing is asked of the
network."""

import errno
import json
import re
import socket
import sys
import tempfile
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from huggingface_hub import constants

from mergelib.core import paths
from mergelib.profiles import profile_names
from mergelib.profiles.downloads import needed
from mergelib.run import cli, data, doctor, runner


@pytest.fixture(autouse=True)
def own(monkeypatch, tmp_path):
    """Empty caches, an empty lock file, and no way out."""
    monkeypatch.setenv("MERGELIB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MERGELIB_HUB_LOCK", str(tmp_path / "lock.json"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def refuse(*_):
        raise AssertionError("the doctor asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def run(capsys, *arguments):
    code = cli.main(["doctor", *arguments])
    return code, capsys.readouterr().out


def line(out, topic):
    """The line of a topic, its mark included."""
    return next(text for text in out.splitlines() if text[2:14].strip() == topic)


def project(folder, *dependencies, python=">=3.11", **extras):
    options = "".join(f"{name} = {json.dumps(pins)}\n" for name, pins in extras.items())
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "x"\nrequires-python = "{python}"\ndependencies = '
        f"{json.dumps(dependencies)}\n"
        f"[project.optional-dependencies]\n{options}"
    )
    return folder


def by_topic(findings):
    return {f.topic: f for f in findings}


def test_pins(tmp_path, monkeypatch):
    have = {"torch": "2.13.0+cpu", "numpy": "2.0.0", "pytest": "9.0"}

    def version(name):
        if name not in have:
            raise doctor.PackageNotFoundError(name)
        return have[name]

    monkeypatch.setattr(doctor, "version", version)
    pins = ("torch==2.13.0", "numpy==2.4.6", "scipy==1.17.1")
    extras = {"test": ["pytest==9.2.0", "torch==2.13.0"], "book": ["sphinx==9.0.4"]}
    _, *found = doctor.versions(project(tmp_path, *pins, **extras))
    packages, test = found  # the book is not installed
    assert packages.problem and "./run_all.sh" in packages.remedy and not test.problem
    assert packages.text == (
        "differ from their pins: numpy 2.0.0 instead of 2.4.6, scipy missing instead of 1.17.1"
    )
    assert test.topic == "extra test" and test.text.endswith("pytest 9.0 instead of 9.2.0")
    assert "[test]" in test.remedy
    have |= {"numpy": "2.4.6", "scipy": "1.17.1"}
    assert not by_topic(doctor.versions(tmp_path))["packages"].problem


def test_an_old_python(tmp_path):
    found = by_topic(doctor.versions(project(tmp_path, python=">=99.1")))
    assert found["Python"].problem and ">=99.1" in found["Python"].text


def test_a_healthy_machine_and_a_violated_pin(capsys, monkeypatch):
    for unmet in ([], ["pandas 0.0.1 instead of 3.1.1"]):
        monkeypatch.setattr(doctor, "differing", lambda pins, unmet=unmet: unmet)
        code, out = run(capsys, "--profile", "mini")
        assert code == len(unmet) and ("0 problems: none" in out) is not bool(unmet)
        assert all(line(out, t) for t in ("memory", "device", "threads", "store", "output"))
        assert "hub" not in out, "mini needs nothing from it"
    assert line(out, "packages").startswith("! ") and unmet[0] in line(out, "packages")
    assert "1 problem: packages" in out


def test_a_missing_package_is_named_with_the_remedy(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delitem(sys.modules, "mergelib.run.doctor")
    assert cli.main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert "psutil" in said and "./run_all.sh" in said


def test_folders_that_cannot_be_written(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MERGELIB_STORE", str(tmp_path / "file" / "store"))
    code, out = run(capsys, "--profile", "mini")
    said = line(out, "store")
    assert code == 1 and said.startswith("! ")
    assert "Not a directory" in said and "MERGELIB_STORE" in said
    assert not line(out, "output").startswith("! ")


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_disks_that_take_nothing(capsys, monkeypatch, number):
    """Read-only or quite full: what matters is whether bytes arrive, not what permissions say."""
    true, failing, store = tempfile.TemporaryFile, MagicMock(), paths.store_root().parent
    failing.__enter__.return_value.write.side_effect = OSError(number, "planted")
    monkeypatch.setattr(
        doctor.tempfile, "TemporaryFile", lambda dir: failing if dir == store else true(dir=dir)
    )
    code, out = run(capsys, "--profile", "mini")
    assert code == 1 and "planted" in line(out, "store") and line(out, "output").startswith("  ")


def test_little_room(capsys, monkeypatch):
    usage = SimpleNamespace(free=2 * 10**8)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    said = line(run(capsys, "--profile", "mini")[1], "store")
    assert said.startswith("? ") and "0.2 GB free" in said and "free some space" in said
    usage.free *= 10
    cache = by_topic(doctor.folders(["paper"]))["hub cache"]
    assert not cache.remedy and "2.0 GB free" in cache.text
    assert "hub cache" not in by_topic(doctor.folders(["mini"])), "it needs nothing of it"


def test_what_is_not_cached(capsys, monkeypatch):
    _, out = run(capsys, "--profile", "paper")
    assert f"paper needs {len(needed('paper'))} things from the hub, 0 cached" in line(out, "hub")
    assert "data fetch --profile paper" in out and "without HF_HUB_OFFLINE" in line(out, "hub")
    assert "not cached, and offline" not in out
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _, out = run(capsys, "--profile", "paper")
    assert re.search(r"^ +not cached, and offline mode is on: .*\btab02_main\b", out, re.M)


def test_online_asks(capsys, monkeypatch):
    monkeypatch.setattr(data, "plan", lambda repository: (2, 3_000_000, 1_000_000))
    _, out = run(capsys, "--profile", "paper", "--online")
    assert out.count("2 files, 3.00 MB, of which 1.00 MB to be downloaded") == len(needed("paper"))


def test_notebooks_and_minutes(capsys):
    _, out = run(capsys)
    for profile in profile_names():
        able = [i for i in runner.manifest() if not runner.lacking(i, profile)]
        minutes = sum(i.minutes.get(profile, 0) for i in able)
        told = line(out, profile)
        assert f"{len(able)} of {len(runner.manifest())} notebooks" in told
        assert f"{minutes:.0f} min" in told or "not measured" in told


def test_a_broken_lock_file_is_named(capsys, tmp_path):
    (tmp_path / "lock.json").write_text("{")
    code = cli.main(["doctor", "--profile", "paper"])
    said = capsys.readouterr()
    assert code and "is not a lock file" in said.out + said.err
