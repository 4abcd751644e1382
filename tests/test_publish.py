"""What is committed agrees with itself: README, sidecars, tables and notebooks. Reads only what is committed."""

import ast
import json
import re
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import yaml
from IPython.lib.pretty import pretty

import mergelib
from mergelib import claims, paths, publish, runner, summary
from mergelib.errors import ConfigError

FIGURES = paths.root() / "figures"
PROFILES = [
    run.profile for run in summary.read_runs(FIGURES) if run.judged
]  # a quick run's leftovers are not committed


@pytest.mark.parametrize("part", ["results", "notebooks"])
def test_the_readme_shows_what_the_committed_figures_say(part):
    readme = (paths.root() / "README.md").read_text()
    first, last = publish.marks(part)
    assert readme.count(first) == readme.count(last) == 1
    shown = readme.split(first)[1].split(last)[0].strip()
    assert shown == publish.readme_parts(FIGURES)[part].strip(), "run ./run_all.sh --publish"


def test_the_report_says_what_the_committed_figures_say():
    assert (FIGURES / "REPORT.md").read_text() == summary.report_markdown(FIGURES), (
        "run ./run_all.sh --publish"
    )


@pytest.mark.parametrize(
    "path", sorted(FIGURES.glob("*/99_report.json")), ids=lambda p: p.parent.name
)
def test_the_page_was_drawn_from_the_committed_figures(path):
    runs = summary.read_runs(FIGURES)
    means, rows = summary.averages(runs), summary.verdict_rows(runs)
    assert json.loads(path.read_text())["alt"] == summary.alt_summary(means, rows), (
        "run ./run_all.sh --publish"
    )
    assert path.with_suffix(".csv").read_text() == means.to_csv(
        index=False, float_format="%.6g", lineterminator="\n"
    )
    assert path.with_name("99_report_claims.csv").read_text() == rows.to_csv(
        index=False, float_format="%.6g", lineterminator="\n"
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_notebooks_that_judge_the_same_claim_agree(profile):
    seen = {}
    for item in published(profile):
        for v in json.loads((FIGURES / profile / f"{item.id}.json").read_text())["verdicts"]:
            assert seen.setdefault((v["claim"], v["part"]), v) == v, item.id


def published(profile):
    """Items of the groups that are published for a profile; `mini` has all of them."""
    groups = {
        i.group
        for i in runner.manifest()
        if profile == "mini" or (FIGURES / profile / f"{i.id}.json").is_file()
    }
    return [i for i in runner.manifest() if i.group in groups]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_published_group_is_complete(profile):
    for item in published(profile):
        for name in item.outputs:
            assert (FIGURES / profile / name).is_file(), f"{profile}: {name}"


@pytest.mark.parametrize("profile", PROFILES)
def test_verdicts_belong_to_this_claims_file_and_cover_the_manifest(profile):
    for item in published(profile):
        sidecar = json.loads((FIGURES / profile / f"{item.id}.json").read_text())
        assert sidecar["claims_file"] == claims.claims_hash()
        assert set(sidecar["claims"]) == set(item.claims)
        assert sidecar["overrides"] == {} or sidecar["overrides"] == {"tasks.source": "local"}


@pytest.mark.parametrize("profile", PROFILES)
def test_items_agree_with_each_other(profile):
    """Table 3 = averages of Table 2; Figures 2 and 5 at k = 5 = Table 2; the identity rung = Current Eval (H12)."""

    def scores(name):
        return pd.read_csv(FIGURES / profile / f"{name}.csv")

    keys = ["task", "method", "protocol", "k", "draw", "seed"]
    table = scores("tab02_main_scores").set_index(keys).accuracy.to_dict()
    ladder_too = any(i.group == "ladder" for i in published(profile))
    for other in ["fig02_knn_eval", "fig05_ft_classifier", "tab03_base_model_scores"] + [
        "fig07_surgery"
    ] * ladder_too:
        shared = {
            k: v for k, v in scores(other).set_index(keys).accuracy.to_dict().items() if k in table
        }
        assert len(shared) > 20 and all(table[k] == v for k, v in shared.items()), other
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
    for row in clusters.to_dict("records"):
        assert row["Current Eval (%)"] == pytest.approx(
            by_cell[row["method"], row["task"]], abs=1e-3
        )


def test_normalise_keeps_results_and_drops_the_rest():
    notebook = nbformat.v4.new_notebook(
        metadata={"widgets": {"x": 1}, "papermill": {"duration": 3}},
        cells=[
            nbformat.v4.new_code_cell(
                "x = 1",
                id="parameters",
                metadata={"tags": ["parameters"], "papermill": {"duration": 1}},
            ),
            nbformat.v4.new_code_cell(
                "x = 2", id="injected", metadata={"tags": ["injected-parameters"]}
            ),
            nbformat.v4.new_code_cell(
                "x",
                id="show",
                execution_count=9,
                outputs=[
                    nbformat.v4.new_output("stream", name="stderr", text="noise"),
                    nbformat.v4.new_output(
                        "display_data",
                        data={publish.WIDGET: {"model_id": "x"}, "text/plain": "Loading: 0%"},
                    ),
                    nbformat.v4.new_output(
                        "execute_result", data={"text/plain": "1"}, execution_count=9
                    ),
                ],
            ),
        ],
    )
    clean = publish.normalise(notebook)
    assert [c.id for c in clean.cells] == ["parameters", "show"]
    assert [c.execution_count for c in clean.cells] == [1, 2]
    assert [o.output_type for o in clean.cells[1].outputs] == ["execute_result"] and clean.cells[
        1
    ].outputs[0].execution_count == 2
    assert "papermill" not in str(clean.metadata) and "widgets" not in clean.metadata
    assert publish.normalise(clean) == clean


@pytest.mark.parametrize("item", runner.manifest(), ids=lambda i: i.id)
def test_committed_notebooks_show_the_committed_verdicts(item):
    """A notebook that was not refreshed with its figure would show other verdicts than the sidecar."""
    text = item.path.read_text()
    if '"execution_count": 1' not in text:
        pytest.skip("no outputs committed")
    sidecar = json.loads((FIGURES / "mini" / f"{item.id}.json").read_text())
    for verdict in sidecar["verdicts"]:
        assert re.search(rf"{verdict['low']:.2f} \.\. {verdict['high']:.2f}", text), verdict[
            "claim"
        ]


# ---- solutions: they judge no claim and draw no figure, so their words are compared with what their code says now ----------

SOLUTIONS = runner.solutions(runner.manifest())


def stale(notebook, scores):
    """Cells of a solution whose committed words are not what they say when ``scores`` are all that the study knows."""

    def published(encoders, protocols):
        return scores[scores.method.isin(encoders) & scores.protocol.isin(protocols)]

    names, found = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mergelib, "Study", lambda *_, **__: SimpleNamespace(scores=published))
        for cell in (c for c in notebook.cells if c.cell_type == "code"):
            steps = ast.parse(cell.source).body
            shown = [steps.pop()] if isinstance(steps[-1], ast.Expr) else []
            exec(compile(ast.Module(steps, []), cell.id, "exec"), names)
            says = [
                pretty(eval(compile(ast.Expression(s.value), cell.id, "eval"), names))
                for s in shown
            ]
            if says != [o.data["text/plain"] for o in cell.outputs if "data" in o]:
                found.append(cell.id)
    return found


def published_scores(stem):
    return pd.read_csv(FIGURES / "mini" / f"{stem}_scores.csv").astype(
        {"k": "Int64", "seed": "Int64"}
    )


@pytest.mark.parametrize("item", SOLUTIONS, ids=lambda i: i.id)
def test_committed_solutions_say_what_the_committed_figures_say(item):
    assert stale(nbformat.read(item.path, as_version=4), published_scores(item.path.stem)) == [], (
        "run ./run_all.sh --publish"
    )


def test_a_stale_solution_is_noticed():
    item = next(i for i in SOLUTIONS if i.path.stem == "00_start_here")
    notebook, scores = nbformat.read(item.path, as_version=4), published_scores("00_start_here")
    moved = scores.assign(accuracy=scores.accuracy + 5 * (scores.protocol == "ft_classifier"))
    assert stale(notebook, moved) == ["answer-5"], "numbers of another run"
    cells = {c.id: c for c in notebook.cells}
    cells["answer-2"].outputs[0].data["text/plain"] = "Right. In other words."
    cells["answer-3"].outputs = []
    assert stale(notebook, scores) == ["answer-2", "answer-3"], "words of an older check; no output"


@pytest.mark.parametrize(
    ("profile", "refreshed"),
    [
        ("mini", ["fig02_knn_eval", "00_start_here", "solutions/00_start_here", "99_report"]),
        ("real", ["99_report"]),
    ],
)
def test_solutions_are_refreshed_with_their_notebook(profile, refreshed, tmp_path, monkeypatch):
    """By the profile whose outputs are committed, and only where their notebook was run."""
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path))
    (tmp_path / "build" / profile).mkdir(parents=True)
    (tmp_path / "build" / profile / "timings.json").write_text("{}")
    ran, written = [], []
    monkeypatch.setattr(publish, "run_again", lambda _, items: ran.extend(i.id for i in items))
    monkeypatch.setattr(
        publish, "publish_notebooks", lambda _, items: written.extend(i.id for i in items)
    )
    monkeypatch.setattr(publish, "record_minutes", lambda *_: None)
    monkeypatch.setattr(publish, "refresh_readme", lambda: None)
    publish.publish(
        profile, [i for name in ("fig02", "00_start_here") for i in runner.select([name])]
    )
    assert written == refreshed and ran == [
        i for i in refreshed if i in ("solutions/00_start_here", "99_report")
    ]


@pytest.mark.slow
def test_a_solution_runs_like_any_notebook_and_leaves_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path / "out"))
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    (solution,) = runner.solutions(
        [write_solution(tmp_path, "2 * profile"), runner.Item("two", "Figure 2", "Another", "text")]
    )
    publish.run_again("mini", [solution])
    assert publish.publish_notebooks("mini", [solution]) == [
        tmp_path / "notebooks" / "solutions" / "one.ipynb"
    ]
    shown = nbformat.read(solution.path, as_version=4)
    assert [c.execution_count for c in shown.cells] == [1, 2] and shown.cells[1].outputs[0].data[
        "text/plain"
    ] == "'minimini'"
    assert not (tmp_path / "out" / "figures").exists()
    write_solution(tmp_path, "1 / 0")
    with pytest.raises(
        ConfigError, match=r"solutions/one failed for mini:(.|\n)*ZeroDivisionError"
    ):
        publish.run_again("mini", [solution])


def write_solution(root, source):
    """Solutions to notebook ``one``; returns that notebook's item."""
    cells = [
        nbformat.v4.new_code_cell(
            'profile: str = "mini"  # which profile', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(source),
    ]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells,
            metadata={"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}},
        ),
        root / "notebooks" / "solutions" / "one.ipynb",
    )
    return runner.Item("one", "Figure 1", "A title", "text")


MANIFEST = """# A comment that stays.
- id: one
  item: One
  minutes: {mini: 9.9, real: 2.5}
- id: two
  item: Two
"""


def test_minutes_come_from_cold_runs_only(tmp_path):
    file = tmp_path / "manifest.yaml"
    file.write_text(MANIFEST)
    assert not publish.record_minutes("mini", {"cold": False, "seconds": {"one": 60.0}}, file)
    assert file.read_text() == MANIFEST
    assert publish.record_minutes("mini", {"cold": True, "seconds": {"two": 90.0}}, file)
    # All minutes of a profile are of one run; another profile's stay.
    assert [e.get("minutes") for e in yaml.safe_load(file.read_text())] == [
        {"real": 2.5},
        {"mini": 1.5},
    ]
    assert file.read_text().startswith("# A comment that stays.\n- id: one\n")
    once = file.read_text()
    publish.record_minutes("mini", {"cold": True, "seconds": {"two": 90.0}}, file)
    assert file.read_text() == once


def test_the_table_of_notebooks_shows_pictures_and_measured_minutes_only(tmp_path):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "one.png").write_bytes(b"x")
    items = [
        runner.Item("one", "Figure 1", "A title", "text", minutes={"mini": 1.5}),
        runner.Item("two", "Figure 2", "Another", "text"),
    ]
    lines = publish.notebooks_markdown(items, tmp_path).splitlines()
    assert 'src="figures/mini/one.png"' in lines[2] and "| 1.5 |" in lines[2]
    assert "<img" not in lines[3] and lines[3].endswith("| – |")
    unmeasured = publish.notebooks_markdown(items[1:], tmp_path)
    assert "minutes" not in unmeasured


def test_a_readme_without_marks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "readme_parts", lambda: {"results": "x"})
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    (tmp_path / "README.md").write_text("# mine")
    with pytest.raises(ConfigError, match="lost its marks of 'results'"):
        publish.refresh_readme()
    assert (tmp_path / "README.md").read_text() == "# mine"


def test_large_pictures_are_kept_in_256_colours_and_small_ones_as_they_are():
    import base64
    import io

    import numpy as np
    from PIL import Image

    def png(side: int) -> str:
        ramp = np.arange(side, dtype=np.float64)[:, None] * 200 / side + np.random.default_rng(
            0
        ).uniform(0, 50, (side, side))
        file = io.BytesIO()
        Image.fromarray(np.stack([ramp, ramp.T, ramp], 2).astype(np.uint8)).save(file, "png")
        return base64.b64encode(file.getvalue()).decode()

    small, large = png(64), png(700)
    assert publish.in_256_colours(small) == small
    kept = publish.in_256_colours(large)
    assert len(kept) < len(large) / 2 and publish.in_256_colours(large) == kept
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(p))).convert("RGB"), dtype=float)
        for p in (large, kept)
    )
    assert before.shape == after.shape and np.abs(before - after).mean() < 12
