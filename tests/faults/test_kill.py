"""Kills at random moments of a program over store and study, and at every line of the store:
nothing finished is lost, nothing is left."""

import os
import signal
import sys
from itertools import count

import pytest
import torch

from mergelib.core import paths, store
from mergelib.core.errors import ConfigError
from mergelib.core.progress import progress
from mergelib.core.store import META, Artifact, Store
from mergelib.models.folders import whole_folder

from .kill import (
    SIGNALS,
    Undisturbed,
    artifacts,
    csvs,
    finish,
    forked,
    kill_often,
    start_program,
    temporary,
    tensors,
)

SHORT = {
    "fine_tuning.steps": 16,
    "encoder.pretraining": {"documents": 120, "steps": 8, "batch_size": 16, "lr": 2.0e-3},
    "merging.methods": ["ties"],
}
KEY = {"version": 1}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="forks, and looks at Linux's clocks of processes"
)


def start_short(place):
    return start_program(place, SHORT)


@pytest.mark.slow
def test_a_killed_program_completes_with_the_same_numbers_and_makes_nothing_again():
    trials = kill_often(start_short, len(SIGNALS), seed=1, say=print)
    assert [t["signal"] for t in trials] == [s.name for s in SIGNALS]
    assert any(t["finished"] for t in trials), (
        "every kill came before the first artifact: nothing was shown"
    )


@pytest.mark.slow
def test_two_programs_at_once_on_one_store_share_the_work(tmp_path):
    reference = Undisturbed(start_short, tmp_path / "alone")
    place, log = tmp_path / "both", tmp_path / "saved.txt"
    place.mkdir()

    def noting(name):
        def work():
            save = Store._save

            def noted(self, folder, *args):
                with log.open("a") as f:
                    f.write(f"{name} {folder.parent.name}/{folder.name}\n")
                return save(self, folder, *args)

            Store._save = noted
            from . import program

            program.run(place / "store", place / "output", SHORT)

        return work

    children = [forked(noting(name), place / f"{name}.log") for name in ("one", "two")]
    assert [finish(pid) for pid in children] == [0, 0]
    saved = [line.split() for line in log.read_text().splitlines()]
    assert sorted(name for _, name in saved) == sorted(reference.tensors), (
        "every artifact was computed once, by one of the two"
    )
    assert (
        tensors(place / "store") == reference.tensors and csvs(place / "output") == reference.csvs
    )
    assert temporary(place) == []


def test_a_child_that_is_killed_while_it_writes_progress_holds_up_no_other(tmp_path):
    def write():
        with progress(desc="writes", total=1) as bar:
            bar.update()

    def killed():
        progress(desc="killed").get_lock().acquire()
        kill()

    write()  # from now on this process has tqdm's lock
    endings = [finish(forked(work, tmp_path / "said.log")) for work in (killed, write)]
    assert endings == [-signal.SIGKILL, 0]


# ---- every line of the store ---------------------------------------------------------------------


def making(kept, calls):
    """A ``make`` that begins a scratch folder, and notes its calls."""

    def make():
        calls.append(1)
        (kept.scratch("step", KEY) / "checkpoint").write_text("half way")
        return Artifact({"t": torch.arange(5.0)}, {"value": 1})

    return make


def at_line(n, act):
    """Call ``act`` before the n-th line that runs in store.py."""
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        if frame.f_code.co_filename != store.__file__:
            return None
        if event == "line":
            lines += 1
            if lines == n:
                sys.settrace(None)
                act()
        return trace

    sys.settrace(trace)


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore::mergelib.core.store.StoreWarning")
@pytest.mark.parametrize("act", [interrupt, kill])
@pytest.mark.parametrize("before", ["nothing there", "a damaged artifact there"])
def test_stopped_at_every_line_of_the_store(tmp_path, act, before):
    kept_whole = 0
    for n in count(1):
        root = tmp_path / str(n)
        root.mkdir()
        kept = Store(root / "store")
        if before != "nothing there":
            kept.get("step", KEY, making(kept, []))
            (kept.folder("step", KEY) / META).write_text("{")

        def work(kept=kept, n=n):
            at_line(n, act)
            kept.get("step", KEY, making(kept, []))

        if finish(forked(work, root / "said.log")) == 0:
            break
        finished, calls = {} if kept.verify() else artifacts(kept.root), []
        made = kept.get("step", KEY, making(kept, calls))
        assert torch.equal(made.tensors["t"], torch.arange(5.0)) and made.info == {"value": 1}
        assert kept.verify() == [] and temporary(root) == [], f"at line {n} of those that run"
        if finished:
            kept_whole += 1
            assert calls == [] and artifacts(kept.root) == finished
    assert n > 40 and kept_whole, "the trace saw no store at work"


# ---- files of results and folders of models ------------------------------------------------------


def test_what_a_killed_writer_left_is_taken_over(tmp_path):
    (tmp_path / ".scores.csv.mergelib.tmp").write_bytes(b"half of a lo")
    (tmp_path / "scores.csv.tmp").write_bytes(b"mine")
    paths.write_whole(tmp_path / "scores.csv", b"all")
    left = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert left == {"scores.csv": b"all", "scores.csv.tmp": b"mine"}


def test_what_two_runs_write_at_once_is_ones_or_the_others(tmp_path):
    file, contents = tmp_path / "scores.csv", [bytes([65 + i]) * 200_000 for i in range(2)]

    def work(content):
        for _ in range(40):
            paths.write_whole(file, content)
            assert file.read_bytes() in contents

    children = [
        forked(lambda content=content: work(content), tmp_path.parent / "said.log")
        for content in contents
    ]
    assert [finish(pid) for pid in children] == [0, 0]
    assert file.read_bytes() in contents and [p.name for p in tmp_path.iterdir()] == ["scores.csv"]


def test_folders_of_killed_writers_go_and_those_at_work_stay(tmp_path):
    def killed():
        with whole_folder(tmp_path / "out") as out:
            (out / "model.safetensors").write_bytes(b"half")
            kill()

    assert finish(forked(killed, tmp_path.parent / "said.log")) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ConfigError, match="not empty"):  # the second to end finds the first's
        with whole_folder(tmp_path / "out") as outer, whole_folder(tmp_path / "out") as inner:
            assert outer.is_dir() and inner.is_dir(), (
                "the second writer took the first one's folder away"
            )
            (inner / "whole").touch()
            left = [p for p in tmp_path.iterdir() if ".partial-" in p.name]
            assert len(left) == 2
            (outer / "lost").touch()
    assert (tmp_path / "out" / "whole").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
