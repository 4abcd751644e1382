"""What is committed agrees with itself: README, sidecars, tables and notebooks."""

import ast
import json
import re
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from committed import committed
from IPython.lib.pretty import pretty

import mergelib
from mergelib import claims
from mergelib.core import paths
from mergelib.run import publish, runner
from mergelib.tables import report

ROOT = committed()
FIGURES = ROOT / "figures"
REMEDY = "run ./run_all.sh --publish"
if ROOT == paths.root() and list(ROOT.glob("build/*/notebooks")):
    pytest.skip("a run may have rewritten figures/, and no git knows it", allow_module_level=True)
profiles = pytest.mark.parametrize(
    "profile", [run.profile for run in report.read_runs(FIGURES) if run.judged]
)


@pytest.mark.parametrize("part", ["results", "notebooks"])
def test_the_readme_shows_what_the_committed_figures_say(part):
    readme = (ROOT / "README.md").read_text()
    first, last = publish.marks(part)
    assert readme.count(first) == readme.count(last) == 1
    shown = readme.split(first)[1].split(last)[0].strip()
    assert shown == publish.readme_parts(FIGURES)[part].strip(), REMEDY


def test_the_report_says_what_the_committed_figures_say():
    runs = report.read_runs(FIGURES)
    means, rows = report.averages(runs), report.verdict_rows(runs)
    files = {FIGURES / "REPORT.md": report.report_markdown(FIGURES)}
    for page in FIGURES.glob("*/99_report.json"):
        assert json.loads(page.read_text())["alt"] == report.alt(means, rows), REMEDY
        for name, frame in (("99_report.csv", means), ("99_report_claims.csv", rows)):
            written = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
            files[page.with_name(name)] = written
    for file, said in files.items():
        assert file.read_text() == said, REMEDY


def sidecar(profile, item):
    return json.loads((FIGURES / profile / f"{item.id}.json").read_text())


def published(profile):
    """Items of the groups that are published for a profile; `mini` has all of them."""
    items = runner.manifest()
    there = (
        i for i in items if profile == "mini" or (FIGURES / profile / f"{i.id}.json").is_file()
    )
    groups = {i.group for i in there}
    return [i for i in items if i.group in groups]


@profiles
def test_a_published_group_is_complete_and_its_verdicts_are_of_this_claims_file(profile):
    """They cover the manifest, and notebooks that judge the same claim agree."""
    seen = {}
    for item in published(profile):
        lacking = [n for n in item.outputs if not (FIGURES / profile / n).is_file()]
        assert not lacking, f"{profile}: {lacking}"
        found = sidecar(profile, item)
        assert found["claims_file"] == claims.claims_hash()
        assert set(found["claims"]) == set(item.claims)
        assert found["overrides"] in ({}, {"tasks.source": "local"})
        for v in found["verdicts"]:
            assert seen.setdefault((v["claim"], v["part"]), v) == v, item.id


@profiles
def test_items_agree_with_each_other(profile):
    """Table 3 = averages of Table 2; Figures 2 and 5 at k = 5 = Table 2; the identity rung =
    Current Eval (H12)."""

    def scores(name):
        return pd.read_csv(FIGURES / profile / f"{name}.csv")

    keys = ["task", "method", "protocol", "k", "draw", "seed"]
    table = scores("tab02_main_scores").set_index(keys).accuracy.to_dict()
    ladder_too = any(i.group == "ladder" for i in published(profile))
    others = ["fig02_knn_eval", "fig05_ft_classifier", "tab03_base_model_scores"]
    for other in others + ["fig07_surgery"] * ladder_too:
        found = scores(other).set_index(keys).accuracy.to_dict()
        shared = found.keys() & table.keys()
        assert len(shared) > 20 and all(table[k] == found[k] for k in shared), other
    all_scores = scores("tab02_main_scores")
    current = all_scores[all_scores.protocol == "current"].groupby("method").accuracy.mean()
    ladder = scores("fig04_transformations") if ladder_too else pd.DataFrame({"rung": []})
    for row in ladder[ladder.rung == "identity"].itertuples():
        assert row.accuracy == pytest.approx(current[row.method], abs=1e-3)
    three = scores("tab03_base_model")
    here = three[three.iloc[:, 0] == "here"].set_index("Protocol")
    assert here.loc["Current Eval", "WA"] == pytest.approx(current["weight_averaging"], abs=0.051)
    clusters = pd.concat([scores("fig01_clusters"), scores("fig08_clusters_appendix")])
    by_cell = all_scores[all_scores.protocol == "current"].set_index(["method", "task"]).accuracy
    cells = pd.MultiIndex.from_frame(clusters[["method", "task"]])
    assert clusters["Current Eval (%)"].tolist() == pytest.approx(by_cell[cells].tolist(), abs=1e-3)


def notebook_of(item):
    return ROOT / "notebooks" / f"{item.id}.ipynb"


@pytest.mark.parametrize("item", runner.manifest(), ids=lambda i: i.id)
def test_committed_notebooks_show_the_committed_verdicts(item):
    """A notebook that was not refreshed with its figure would show other verdicts than the
    sidecar."""
    text = notebook_of(item).read_text()
    if '"execution_count": 1' not in text:
        pytest.skip("no outputs committed")
    for verdict in sidecar("mini", item)["verdicts"]:
        shown = rf"{verdict['low']:.2f} \.\. {verdict['high']:.2f}"
        assert re.search(shown, text), verdict["claim"]


# ---- solutions: they judge no claim and draw no figure, so their words are compared with what thei

SOLUTIONS = runner.solutions(runner.manifest())


def stale(notebook, scores):
    """Cells of a solution whose committed words are not what they say when ``scores`` are all that
    the study knows; what asks for more, or rests on it, is passed over."""

    def published(encoders, protocols):
        return scores[scores.method.isin(encoders) & scores.protocol.isin(protocols)]

    names, found = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mergelib, "Study", lambda *_, **__: SimpleNamespace(scores=published))
        for cell in (c for c in notebook.cells if c.cell_type == "code"):
            steps = ast.parse(cell.source).body
            shown = [steps.pop()] if isinstance(steps[-1], ast.Expr) else []
            try:
                exec(compile(ast.Module(steps, []), cell.id, "exec"), names)
                says = [pretty(eval(ast.unparse(step), names)) for step in shown]
            except (AttributeError, NameError):
                continue
            if says != [o.data["text/plain"] for o in cell.outputs if "data" in o]:
                found.append(cell.id)
    return found


def published_scores(stem):
    files = (FIGURES / "mini" / f"{name}.csv" for name in (f"{stem}_scores", stem))
    scores = pd.read_csv(next(f for f in files if f.is_file()))
    return scores.astype({c: "Int64" for c in ("k", "seed") if c in scores})


@pytest.mark.parametrize("item", SOLUTIONS, ids=lambda i: i.id)
def test_committed_solutions_say_what_the_committed_figures_say(item):
    notebook = nbformat.read(notebook_of(item), as_version=4)
    assert stale(notebook, published_scores(item.path.stem)) == [], REMEDY


def test_a_stale_solution_is_noticed():
    item = next(i for i in SOLUTIONS if i.path.stem == "00_start_here")
    notebook = nbformat.read(notebook_of(item), as_version=4)
    scores = published_scores("00_start_here")
    moved = scores.assign(accuracy=scores.accuracy + 5 * (scores.protocol == "ft_classifier"))
    assert stale(notebook, moved) == ["answer-5"], "numbers of another run"
    cells = {c.id: c for c in notebook.cells}
    cells["answer-2"].outputs[0].data["text/plain"] = "Right. In other words."
    cells["answer-3"].outputs = []
    assert stale(notebook, scores) == ["answer-2", "answer-3"], "words of an older check; no output"
