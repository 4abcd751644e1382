"""Did it reproduce: what a run says about its numbers beside the committed ones."""

import json
import subprocess

import pytest

from mergelib.core import paths
from mergelib.core.manifest import Item
from mergelib.run import runner
from mergelib.run.cli import main
from mergelib.tables import committed

TABLE = (
    "task,method,k,seed,accuracy,n\nag,ties,5,0,80,1000\nag,ties,5,1,81,1000\nag,wa,,,70.5,1000\n"
)
PRINTED = "Model,Protocol,AG News,Average\nTies,KNN Eval,70.6 ± 0.7,65\n"
SHARES = "method,lam,task,accuracy\nties,0.1,ag,0.62\n"
ORDER = "first,second,current,order\nwa,ties,-7.2,same\n"
ITEM = Item("fig02_knn_eval", "Figure 2", "A title", "text", extra_figures=("more",))


def leave(root, tables, verdict="reproduced", **other):
    """What a notebook leaves: its tables, a sidecar, and an extra figure without tables."""
    folder = root / "figures" / "mini"
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = {
        "profile": {"name": "mini"},
        "overrides": {},
        "sources": {},
        "data": [f"{stem}.csv" for stem in tables],
        "claims": {"C1": verdict},
    }
    (folder / f"{ITEM.id}.json").write_text(json.dumps(sidecar | other))
    (folder / "more.json").write_text(json.dumps({"data": []}))
    for stem, text in tables.items():
        (folder / f"{stem}.csv").write_text(text)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one's own whose committed figures are two tables; git as asked."""
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.delenv("MERGELIB_OUTPUT", raising=False)
    leave(tmp_path, {"a": TABLE, "b": TABLE})
    return tmp_path


def git(root, *words):
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *who, "-C", str(root), *words], check=True)


def commit(root):
    git(root, "init", "-q")
    git(root, "add", "figures")
    git(root, "commit", "-qm", "figures")


def compared(changed=False):
    return committed.compare("mini", ITEM, changed)


@pytest.mark.parametrize(
    "here, there, points, said",
    [
        (TABLE.replace("81", "80.6"), TABLE, 0.4, "0.4 points"),
        (TABLE.replace("70.5", "73"), TABLE, 2.5, "2.5 points"),
        (TABLE + "dbpedia,wa,,,10,1000\n", TABLE, 0, "other rows"),
        (TABLE.replace("wa", "ties"), TABLE, 0, "other rows"),
        (TABLE.replace(",1000", ",999"), TABLE, 0, "other digits"),
        (TABLE.replace("accuracy", "score"), TABLE, 0, "other rows"),
        (TABLE.replace("70.5", ""), TABLE, 0, "other digits"),
        (None, TABLE, 0, "in one of them only"),
        (PRINTED.replace("70.6", "70.9"), PRINTED, 0.3, "0.3 points"),
        (SHARES.replace("0.62", "0.65"), SHARES, 3, "3 points"),
        (ORDER.replace("same", "swapped"), ORDER, 0, "other digits"),
        (ORDER + "wa,ta,1,same\n", ORDER, 0, "other rows"),
    ],
)
def test_a_table_differs_by_its_worst_accuracy_in_points_and_by_its_rows(here, there, points, said):
    assert committed.difference(here, there) == (pytest.approx(points), said)


@pytest.mark.parametrize("with_git", [True, False])
def test_a_run_is_compared_with_git_or_with_a_copy_of_what_lay_here(project, with_git):
    if with_git:
        commit(project)
    committed.keep()
    assert (project / "build").exists() == (not with_git)
    assert committed.summary([compared()]) == committed.AS_COMMITTED
    leave(project, {"a": TABLE.replace("81", "80.6"), "c": TABLE}, "undecided")
    committed.keep()  # a second run; what lies here now was never committed
    found = compared()
    assert found.tables == {"a": "0.4 points", "c": committed.MISSING, "b": committed.MISSING}
    assert found.said == "0.4 points"
    assert found.verdicts == {"C1": ("reproduced", "undecided")}
    said = committed.compared_markdown([found])
    assert "0.4 points at most (fig02_knn_eval). C1 is undecided, not reproduced." in said
    assert "| mini | fig02_knn_eval | b | in one of them only |" in said
    assert committed.rewritten() == (2 if with_git else 0)


def test_what_cannot_be_compared_says_why(project):
    assert compared().said == committed.UNKNOWN, "nothing knows them"
    assert "no notebook" in committed.summary([])
    commit(project)
    assert compared(changed=True).said == committed.SETTINGS
    leave(project, {"a": TABLE}, overrides={"tasks.n_test": 100})
    assert compared().said == committed.SETTINGS
    assert "1 of mini, other settings" in committed.summary([compared()])
    assert committed.compare("mine", ITEM).said == committed.UNKNOWN
    git(project, "rm", "-rq", "--cached", "figures")
    git(project, "commit", "-qm", "none")
    assert compared().said == committed.UNKNOWN, "a project whose figures are not committed"


def test_outputs_elsewhere_leave_the_checkout_alone(project, monkeypatch):
    commit(project)
    leave(project / "out", {"a": TABLE.replace("81", "82"), "b": TABLE})
    monkeypatch.setenv("MERGELIB_OUTPUT", str(project / "out"))
    assert compared().said == "1 points" and committed.rewritten() == 0


def test_the_closing_lines_of_a_run(project, monkeypatch, capsys):
    """Numbers, verdicts and the files that git calls modified, after a run that changed them."""
    commit(project)
    item = next(i for i in runner.manifest() if i.id == ITEM.id)
    monkeypatch.setattr(runner, "select", lambda _: [item])
    monkeypatch.setattr(runner, "check_before", lambda *_: None)
    monkeypatch.setattr(runner, "declared_parameters", lambda _: {})

    def run(table, verdict):
        def execute(self, items, parameters):
            leave(project, {"a": table, "b": TABLE}, verdict)
            return [runner.Result(item, ok=True, claims={"C1": verdict})]

        monkeypatch.setattr(runner.Runner, "run", execute)
        (project / "build" / "mini").mkdir(parents=True, exist_ok=True)
        assert main(["run", "--only", "fig02"]) == 0
        return capsys.readouterr().out

    said = run(TABLE, "reproduced")
    assert "identical" in said and committed.AS_COMMITTED in said and "git checkout" not in said
    said = run(TABLE.replace("70.5", "71"), "undecided")
    assert "0.5 points      C1: undecided (published: reproduced)" in said
    assert "2 files under figures/ now hold what this machine made" in said
