"""Disks that are full or closed to writing: one line names file and remedy, nothing half-written is
believed, a rerun completes."""

import sys
import warnings
from contextlib import contextmanager

import nbformat
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from tiny import write_berts, write_notebook
from toy import run

import mergelib
from mergelib.core import paths
from mergelib.core.errors import StoreError
from mergelib.core.store import Artifact, Store
from mergelib.core.types import state_digest
from mergelib.figures import save_files
from mergelib.models.folders import RECORD
from mergelib.run import runner
from mergelib.run.cli import main
from mergelib.training.loop import checkpoints

from .disks import PAGE, Disk, on_a_disk
from .kill import csvs, temporary, tensors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts as Linux does")
KEY = {"version": 1}


def names(line, file, *remedies):
    """That a message is one line, names the file, and says what to do."""
    assert (
        "\n" not in line.strip()
        and str(file) in line
        and "Free space" in line
        and all(r in line for r in remedies)
    ), line


@contextmanager
def refused(file, *remedies):
    with pytest.raises(StoreError) as caught:
        yield
    names(str(caught.value), file, *remedies)


def files(place):
    """Content by name of all files below ``place`` but the store's locks, which stay, and what the
    disk is filled with."""
    return {
        str(p.relative_to(place)): p.read_bytes()
        for p in sorted(place.rglob("*"))
        if p.is_file() and p.name != "ballast" and p.suffix != ".lock"
    }


def until_it_fits(disk, attempt, step, after_refusal):
    """Call ``attempt`` with 0 bytes left, ``step`` more, and so on until nothing is refused;
    returns how often it was."""
    refused = 0
    while True:
        disk.leave(refused * step)
        try:
            attempt()
            return refused
        except StoreError as error:
            refused += 1
            after_refusal(str(error))
        assert refused < 200, "it never fits"


# ---- the store -----------------------------------------------------------------------------------


def made():
    return Artifact({"a": torch.arange(5000.0), "b": torch.ones(3)}, {"said": ["x" * 50] * 100})


@on_a_disk
def test_a_full_disk_while_the_store_writes(tmp_path):
    disk = Disk(tmp_path / "disk")
    kept = Store(disk.place / "store")
    other = state_digest(kept.get("step", {"version": 2}, made).tensors)
    before = files(disk.place)

    def after(line):
        names(line, disk.place / "store", "MERGELIB_STORE")
        assert (
            kept.peek("step", KEY) is None and kept.verify() == [] and temporary(disk.place) == []
        )
        assert files(disk.place) == before

    refused = until_it_fits(disk, lambda: kept.get("step", KEY, made), PAGE, after)
    assert refused >= 20_000 // PAGE
    found = kept.peek("step", KEY)
    assert (
        state_digest(found.tensors) == other and found.info == made().info and kept.verify() == []
    )


@on_a_disk
def test_a_store_that_is_read_only_gives_what_it_has_and_names_itself_for_the_rest(
    tmp_path, monkeypatch, capsys
):
    disk = Disk(tmp_path / "disk")
    kept = Store(disk.place)
    digest = state_digest(kept.get("step", KEY, made).tensors)
    damaged = kept.folder("step", {"version": 3})
    kept.get("step", {"version": 3}, made)
    (damaged / "meta.json").write_text("{")
    before = files(disk.place)
    disk.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert state_digest(kept.get("step", KEY, pytest.fail).tensors) == digest
        for version in (2, 3):  # absent, damaged
            with refused(disk.place, "MERGELIB_STORE"):
                kept.get("step", {"version": version}, pytest.fail)
        with refused(disk.place, "MERGELIB_STORE"):
            kept.scratch("step", {"version": 2})
    monkeypatch.setenv("MERGELIB_STORE", str(disk.place))
    assert main(["store", "ls"]) == 0 and "DAMAGED" in capsys.readouterr().out
    assert main(["store", "verify"]) == 1 and str(damaged) in capsys.readouterr().out
    assert main(["store", "prune"]) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and said.startswith("mergelib: Cannot remove")
        and str(disk.place) in said
        and "by hand" in said
    )
    assert files(disk.place) == before
    disk.open()
    with pytest.warns(UserWarning, match="damaged"):
        assert state_digest(kept.get("step", {"version": 3}, made).tensors) == digest


SHORT = {
    "fine_tuning.steps": 8,
    "fine_tuning.save_every": 0,
    "merging.methods": ["ties"],
    "tasks.n_train": 160,
    "tasks.n_test": 40,
    "encoder.pretraining": {"documents": 120, "steps": 4, "batch_size": 16, "lr": 2.0e-3},
}


@pytest.mark.slow
@on_a_disk
def test_a_study_whose_disk_fills_up_goes_on_after_space_is_made_to_the_same_numbers(tmp_path):
    from . import program

    alone, disk = tmp_path / "alone", Disk(tmp_path / "disk")
    store, output = disk.place / "store", disk.place / "output"
    program.run(alone / "store", alone / "output", SHORT)
    disk.leave(sum(map(len, files(alone).values())) // 2)
    with refused(store, "MERGELIB_STORE", "are kept"):
        program.run(store, output, SHORT)
    kept = tensors(store)
    assert kept and Store(store).verify() == [] and not output.exists()
    changed = {name: (store / name / "meta.json").stat().st_mtime_ns for name in kept}
    disk.open()
    program.run(store, output, SHORT)
    assert tensors(store) == tensors(alone / "store") and tensors(store).keys() > kept.keys()
    assert csvs(output) == csvs(alone / "output") != {} and temporary(disk.place) == []
    assert {name: (store / name / "meta.json").stat().st_mtime_ns for name in kept} == changed, (
        "a finished artifact was made again"
    )


@on_a_disk
def test_a_full_disk_while_a_checkpoint_is_written(tmp_path):
    """Room for half of the first checkpoint, or of the second: what is whole is gone on from, to
    the same bytes."""
    wanted, _ = run(tmp_path / "alone")
    newest = checkpoints(tmp_path / "alone")[-1]
    size = -(-newest.stat().st_size // PAGE) * PAGE
    left = []
    for part in (0.5, 1.5):
        disk = Disk(tmp_path / f"disk{part}")
        scratch = disk.place / "scratch"
        disk.leave(int(part * size))
        with refused(scratch, "MERGELIB_STORE"):
            run(scratch)
        assert sorted(scratch.iterdir()) == checkpoints(scratch)
        left.append(len(checkpoints(scratch)))
        disk.open()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # none of them is damaged
            assert torch.equal(run(scratch)[0], wanted)
    assert left == [0, 1]


# ---- figures and their numbers -------------------------------------------------------------------


@on_a_disk
def test_a_full_or_closed_disk_while_a_figure_is_saved(tmp_path, monkeypatch):
    disk, alone, whole = Disk(tmp_path / "disk"), tmp_path / "alone", []
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1])

    def save(n, output=disk.place):
        monkeypatch.setenv("MERGELIB_OUTPUT", str(output))
        data, alt = {"": pd.DataFrame({"n": [n] * 2000})}, "A line that rises from nought to one."
        save_files(fig, "fig00", "quick", alt=alt, sidecar={"claims": {}}, data=data)

    for n in (1, 2):
        save(n, alone)
        whole.append(files(alone))

    def after(line):
        names(line, disk.place / "figures", "MERGELIB_OUTPUT")
        assert temporary(disk.place) == []
        for name, content in files(disk.place).items():
            assert content in (whole[0].get(name), whole[1].get(name)), "half a file"

    assert until_it_fits(disk, lambda: save(1), PAGE, after) >= 3
    assert files(disk.place) == whole[0]
    # What is there is replaced, or kept.
    assert until_it_fits(disk, lambda: save(2), PAGE, after) >= 1
    assert files(disk.place) == whole[1]
    disk.close()
    for output in (disk.place, disk.place / "new"):
        with refused(output / "figures", "MERGELIB_OUTPUT"):
            save(1, output)


# ---- notebooks -----------------------------------------------------------------------------------


def a_notebook(root, monkeypatch):
    """A project with one notebook, whose output is long."""
    write_notebook(root / "notebooks" / "long.ipynb", 'print("0123456789" * 50_000)')
    item = runner.Item("long", "Item", "A title", runner.SOLUTIONS)  # which leaves no figures
    monkeypatch.setattr(paths, "root", lambda: root)
    monkeypatch.setattr(runner, "manifest", lambda: (item,))
    monkeypatch.setenv("MERGELIB_OUTPUT", str(root / "output"))


def run_quick(capsys):
    """Exit code of ``mergelib run``, and what it said on stderr."""
    code = main(["run", "--profile", "quick"])
    return code, capsys.readouterr().err


@pytest.mark.slow
@on_a_disk
def test_a_full_disk_while_the_outputs_of_a_notebook_are_saved(tmp_path, monkeypatch, capsys):
    a_notebook(tmp_path / "project", monkeypatch)
    disk = Disk(tmp_path / "disk")
    monkeypatch.setenv("MERGELIB_OUTPUT", str(disk.place))
    disk.leave(100_000)
    code, said = run_quick(capsys)
    assert code == 2 and said.startswith("mergelib: ")
    names(said, disk.place, "MERGELIB_OUTPUT")
    executed = paths.build("quick") / "notebooks" / "long.ipynb"
    assert not executed.exists() and not (paths.build("quick") / "timings.json").exists()
    assert temporary(tmp_path) == []
    disk.open()
    assert run_quick(capsys) == (0, "")
    (output,) = nbformat.read(executed, as_version=4).cells[-1].outputs
    assert "0123456789" * 50_000 in output.text


@on_a_disk
def test_a_read_only_folder_for_outputs_is_refused_before_a_notebook_starts(
    tmp_path, monkeypatch, capsys
):
    a_notebook(tmp_path / "project", monkeypatch)
    disk = Disk(tmp_path / "disk")
    disk.close()
    monkeypatch.setenv("MERGELIB_OUTPUT", str(disk.place))
    monkeypatch.setattr(runner.subprocess, "Popen", pytest.fail)
    code, said = run_quick(capsys)
    assert code == 2
    names(said, disk.place / "build", "MERGELIB_OUTPUT")


# ---- merged models -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and two experts."""
    return write_berts(tmp_path_factory.mktemp("models"), {"ag": "abcd", "yelp": "abcde"})


def experts(models):
    return {name: models / name for name in ("ag", "yelp")}


@on_a_disk
def test_a_full_disk_while_a_merged_model_is_written(tmp_path, models):
    disk = Disk(tmp_path / "disk")
    out, alone = disk.place / "out", tmp_path / "alone"
    merged = mergelib.merge("task_arithmetic", base=models / "base", experts=experts(models))
    merged.save_pretrained(alone, single=True)
    wanted = files(alone)
    step = sum(map(len, wanted.values())) // 12

    def after(line, left):
        names(line, out)
        assert files(disk.place) == left and temporary(disk.place) == []

    refused = until_it_fits(
        disk, lambda: merged.save_pretrained(out, single=True), step, lambda line: after(line, {})
    )
    assert refused >= 12 and files(out) == wanted
    before = files(disk.place)
    refused = until_it_fits(
        disk,
        lambda: merged.save_pretrained(out, overwrite=True),
        step,
        lambda line: after(line, before),
    )
    # The record lists the files, and is another.
    encoder = {n: b for n, b in wanted.items() if n.partition("/")[0] not in ("tasks", RECORD)}
    assert refused > 1 and {n: b for n, b in files(out).items() if n != RECORD} == encoder


@on_a_disk
def test_merging_on_the_command_line_onto_a_disk_that_refuses(tmp_path, models, capsys):
    disk = Disk(tmp_path / "disk")
    out = disk.place / "out"
    command = [
        "merge",
        "--method",
        "task_arithmetic",
        "--base",
        str(models / "base"),
        "--experts",
        *(f"{t}={f}" for t, f in experts(models).items()),
        "--out",
    ]
    assert main([*command, str(tmp_path / "alone")]) == 0
    capsys.readouterr()
    for refuse in (lambda: disk.leave(20_000), disk.close):
        refuse()
        assert main([*command, str(out)]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("mergelib: ") and said.out == ""
        names(said.err, out)
        assert files(disk.place) == {} and temporary(disk.place) == []
        disk.open()
    assert main([*command, str(out)]) == 0 and files(out) == files(tmp_path / "alone")
