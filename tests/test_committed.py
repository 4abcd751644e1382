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
ITEM = Item("fig02_knn_eval", "Figure 2", "A title", "text", extra_figures=("more",))


def leave(root, tables, verdicts=(("C1", "WA", "reproduced"), ("C1", "TA", "reproduced")), **other):
    """What a notebook leaves: its tables, a sidecar, and an extra figure without tables."""
    folder = root / "figures" / "mini"
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = {
        "profile": {"name": "mini"},
        "overrides": {},
        "sources": {},
        "data": [f"{stem}.csv" for stem in tables],
        "claims": {"C1": "reproduced"},
        "verdicts": [dict(zip(("claim", "part", "verdict"), v, strict=True)) for v in verdicts],
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


def commit(root):
    for words in (["init", "-q"], ["add", "figures"], ["commit", "-qm", "figures"]):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *who, "-C", str(root), *words], check=True)


def compared(changed=()):
    return [committed.compare("mini", ITEM, ITEM.id in changed)]


@pytest.mark.parametrize(
    "here, points, said",
    [
        (TABLE.replace("81", "80.6"), 0.4, "0.4 points"),
        (TABLE.replace("70.5", "73"), 2.5, "2.5 points"),
        (TABLE + "dbpedia,wa,,,10,1000\n", 0, "other rows"),
        (TABLE.replace("wa", "ties"), 0, "other rows"),
        (TABLE.replace(",1000", ",999"), 0, "other digits"),
        (TABLE.replace("accuracy", "score"), 0, "other rows"),
        (TABLE.replace("70.5", ""), 0, "other digits"),
        (None, 0, "in one of them only"),
    ],
)
def test_a_table_differs_by_its_worst_accuracy_and_by_its_rows(here, points, said):
    found = committed.difference(here, TABLE)
    assert found == (pytest.approx(points), said)


def test_printed_cells_and_shares_count_in_points():
    printed = "Model,Protocol,AG News,Average\nTies,KNN Eval,70.6 ± 0.7,65\n"
    assert committed.difference(printed.replace("70.6", "70.9"), printed)[0] == pytest.approx(0.3)
    share = "method,lam,task,accuracy\nties,0.1,ag,0.62\n"
    assert committed.difference(share.replace("0.62", "0.65"), share)[0] == pytest.approx(3)
    other = "first,second,current,order\nwa,ties,-7.2,same\n"
    assert committed.difference(other.replace("same", "swapped"), other) == (0, "other digits")


@pytest.mark.parametrize("with_git", [True, False])
def test_a_run_is_compared_with_git_or_with_a_copy_of_what_lay_here(project, with_git):
    if with_git:
        commit(project)
    committed.keep()
    assert (project / "build").exists() == (not with_git)
    assert committed.summary(compared()) == committed.AS_COMMITTED
    flipped = (("C1", "WA", "undecided"), ("C1", "TA", "reproduced"))
    leave(project, {"a": TABLE.replace("81", "80.6"), "c": TABLE}, flipped)
    committed.keep()  # a second run; what lies here now was never committed
    [found] = compared()
    assert found.tables == {"a": "0.4 points", "c": committed.MISSING, "b": committed.MISSING}
    assert found.said == "0.4 points"
    assert found.verdicts == {"C1": ("reproduced", "undecided")}
    said = committed.compared_markdown([found])
    assert "0.4 points at most (fig02_knn_eval). C1 is undecided, not reproduced." in said
    assert "| mini | fig02_knn_eval | b | in one of them only |" in said
    assert committed.rewritten() == (2 if with_git else 0)


def test_what_cannot_be_compared_says_why(project):
    assert compared()[0].said == committed.UNKNOWN, "nothing knows them"
    assert "no notebook" in committed.summary([])
    commit(project)
    assert compared([ITEM.id])[0].said == committed.SETTINGS
    leave(project, {"a": TABLE}, overrides={"tasks.n_test": 100})
    assert compared()[0].said == committed.SETTINGS
    assert "1 of mini, other settings" in committed.summary(compared())
    other = committed.compare("mine", ITEM)
    assert other.said == committed.UNKNOWN
    subprocess.run(["git", "-C", str(project), "rm", "-rq", "--cached", "figures"], check=True)
    subprocess.run(
        "git -c user.name=x -c user.email=x@y.org commit -qm none".split(), cwd=project, check=True
    )
    assert compared()[0].said == committed.UNKNOWN, "a project whose figures are not committed"


def test_outputs_elsewhere_leave_the_checkout_alone(project, monkeypatch, tmp_path):
    commit(project)
    leave(project / "out", {"a": TABLE.replace("81", "82"), "b": TABLE})
    monkeypatch.setenv("MERGELIB_OUTPUT", str(project / "out"))
    assert compared()[0].said == "1 points" and committed.rewritten() == 0


def test_the_closing_lines_of_a_run(project, monkeypatch, capsys):
    """Numbers, verdicts and the files that git calls modified, after a run that changed them."""
    commit(project)
    item = next(i for i in runner.manifest() if i.id == ITEM.id)
    monkeypatch.setattr(runner, "select", lambda _: [item])
    monkeypatch.setattr(runner, "check_before", lambda *_: None)
    monkeypatch.setattr(runner, "declared_parameters", lambda _: {})

    def run(table, verdict):
        def execute(self, items, parameters):
            leave(project, {"a": table, "b": TABLE}, (("C1", "WA", verdict), ("C1", "TA", verdict)))
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
