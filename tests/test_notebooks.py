"""Every notebook of the manifest and every solution, executed on ``quick`` through the runner."""

import json
import math
import os

import golden
import nbformat
import pandas as pd
import pytest

from mergelib import claims
from mergelib.core import paths
from mergelib.run import runner
from mergelib.run.runner import Runner
from mergelib.study.versions import STEP_VERSIONS

pytestmark = pytest.mark.slow
ITEMS = runner.manifest()
SOLUTIONS = runner.solutions(ITEMS)


FOUNDATIONS = {step for step in STEP_VERSIONS if step.startswith("pretrain")}  # files are shipped
AGAIN = [i for i in ITEMS if i.id in ("tab02_main", "fig05_ft_classifier", "fig01_clusters")]


def run(items, folder, store):
    """Notebooks into ``folder``, two at a time; returns their results."""
    wanted = {"overrides": {"threads": 1}, "device": "cpu"}
    given = {
        i.id: {
            name: value
            for name, value in wanted.items()
            if name in runner.declared_parameters(i.path)
        }
        for i in items
    }
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGELIB_OUTPUT", str(folder))
        patch.setenv("MERGELIB_STORE", str(store))
        results = Runner("quick", jobs=2, echo=said.append).run(items, given)
        return (
            {r.item.id: r for r in results},
            paths.figures("quick"),
            paths.build("quick") / "notebooks",
            said,
        )


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def first(store, tmp_path_factory):
    return run([*ITEMS, *SOLUTIONS], tmp_path_factory.mktemp("first"), store)


@pytest.fixture(scope="session")
def second(first, store, tmp_path_factory):
    """Again on the store of the first run: everything is found, only tables and figures are made
    anew."""
    return run(AGAIN, tmp_path_factory.mktemp("second"), store)


@pytest.fixture(params=ITEMS, ids=lambda i: i.id)
def item(request):
    return request.param


def test_it_runs_and_leaves_its_outputs(first, item):
    results, figures, build, said = first
    assert results[item.id].ok, results[item.id].error + "\n" + "\n".join(said[-20:])
    for name in item.outputs:
        assert (figures / name).stat().st_size > 100, name
    assert not list(figures.glob("*.tmp"))
    notebook = nbformat.read(build / f"{item.id}.ipynb", as_version=4)
    assert all(c.execution_count for c in notebook.cells if c.cell_type == "code")


def test_its_sidecar_says_what_made_it(first, item):
    results, figures, _, _ = first
    for stem in (item.id, *item.extra_figures):
        sidecar = json.loads((figures / f"{stem}.json").read_text())
        assert len(sidecar["alt"].split()) >= 6 and sidecar["alt"].endswith(".")
        assert sidecar["profile"]["name"] == "quick" and sidecar["overrides"] == (
            {"threads": 1} if "overrides" in runner.declared_parameters(item.path) else {}
        )
        assert sidecar["claims_file"] == claims.claims_hash()
        assert set(sidecar["data"]) == {p.name for p in figures.glob(f"{stem}*.csv")}
        assert not any(
            d in (figures / f"{stem}.json").read_text()
            for d in ("/home/", "/tmp/", "/work/", "/root/")
        )
    main = json.loads((figures / f"{item.id}.json").read_text())
    assert set(main["claims"]) == set(item.claims)
    assert {v["verdict"] for v in main["verdicts"]} <= {claims.NOT_JUDGED} and set(
        main["claims"].values()
    ) <= {claims.NOT_JUDGED}
    assert all(math.isfinite(v["here"]) for v in main["verdicts"])
    assert results[item.id].claims == main["claims"]


@pytest.mark.parametrize("item", SOLUTIONS, ids=lambda i: i.id)
def test_solutions_are_right(first, item):
    """The notebook's own last cell insists on right answers, too."""
    results, _, build, _ = first
    assert results[item.id].ok, results[item.id].error
    done = nbformat.read(build / f"{item.id}.ipynb", as_version=4)
    outputs = [o for c in done.cells if c.id.startswith("answer-") for o in c.outputs]
    said = [o.data["text/plain"] for o in outputs if o.output_type == "execute_result"]
    assert len(said) >= 3 and all(s.startswith("Right.") for s in said)


@pytest.mark.parametrize("item", AGAIN, ids=lambda i: i.id)
def test_a_second_run_gives_the_same_bytes(first, second, item):
    assert second[0][item.id].ok, second[0][item.id].error
    for name in item.outputs:
        if not name.endswith("pdf"):
            assert (first[1] / name).read_bytes() == (second[1] / name).read_bytes(), name


def test_no_warning_reaches_the_reader(first, item):
    """But the one on lambda's edge, which is meant for them."""
    notebook = nbformat.read(first[2] / f"{item.id}.ipynb", as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                lines = [
                    line
                    for line in output.text.splitlines()
                    if "Warning" in line and "edge of the grid" not in line
                ]
                assert not lines, lines


def test_one_source_of_numbers(first):
    """Where two notebooks score the same (backbone, method, protocol, k, draw, seed, task), they
    print the same (methods.md H12)."""
    seen = {}
    for path in sorted(first[1].glob("*.csv")):
        frame = pd.read_csv(path)
        by = ["backbone", "task", "method", "protocol", "k", "draw", "seed"]
        if not {*by, "accuracy"} <= set(frame.columns):
            continue
        for row in frame.fillna("-").itertuples():
            key = tuple(getattr(row, c) for c in by)
            assert seen.setdefault(key, row.accuracy) == row.accuracy, (path.name, key)
    assert seen


def test_golden_outputs_change_only_with_their_steps_version(first, store):
    now = {"machine": golden.MACHINE, "versions": STEP_VERSIONS, "outputs": golden.outputs(store)}
    assert {n.split()[0] for n in now["outputs"]} == STEP_VERSIONS.keys() - FOUNDATIONS
    if os.environ.get("MERGELIB_GOLDEN") == "write":
        golden.write(now)
    written = json.loads(golden.FILE.read_text())
    assert now["versions"] == written["versions"], golden.__doc__
    if now["machine"] != written["machine"]:
        pytest.skip(f"written on {written['machine']}: other processors round otherwise")
    assert now["outputs"].keys() == written["outputs"].keys(), golden.__doc__
    for name, output in now["outputs"].items():
        assert output == pytest.approx(written["outputs"][name], rel=1e-4), (name, golden.__doc__)
