"""The report: what it reads, how it orders, and what the page looks like for other profiles than
ours."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from committed import committed

from mergelib import claims, figures, merging, tables
from mergelib.core.errors import DataError
from mergelib.run import publish
from mergelib.tables import readings, report, verdicts

R, N, U = claims.REPRODUCED, claims.NOT_REPRODUCED, claims.UNDECIDED


def judged(claim, verdict, threshold="> 0", **parts):
    """The same verdict on every part, and what was measured."""
    said = {"claim": claim, "threshold": threshold, "verdict": verdict, "note": ""}
    return [
        said | {"part": part, "here": here, "low": here, "high": here}
        for part, here in parts.items()
    ]


def leave(folder, profile, notebook, verdicts, other_bases=None, **settings):
    """A sidecar as a notebook leaves it."""
    (folder / profile).mkdir(parents=True, exist_ok=True)
    sidecar = {
        "profile": {"name": profile, "judged": True, "backbone": "a base model"} | settings,
        "sources": {"ag": "miniature world 1"},
        "overrides": {},
        "claims_file": claims.claims_hash(),
        "verdicts": verdicts,
        "other_bases": other_bases or {},
    }
    (folder / profile / f"{notebook}.json").write_text(json.dumps(sidecar))


BASE_GAINS = judged("P6.4-no-gain", N, "<= 5", f_b=9.0)


@pytest.fixture
def folder(tmp_path):
    one = judged("P5-over-knn", R, WA=3.0, TA=2.0) + judged("P3.2-knn", R, WA=4.0)
    two = judged("P5-over-knn", U, WA=1.0) + judged("P5-over-knn", N, TA=-8.0, Ties=-3.0)
    leave(tmp_path, "one", "tab02_main", one)
    leave(tmp_path, "one", "tab03_base_model", BASE_GAINS)
    leave(tmp_path, "two", "tab02_main", two)
    return tmp_path


def test_claims_with_another_base_stand_side_by_side(folder):
    assert not report.other_bases(report.read_runs(folder))
    others = {"a masked LM": judged("P6.4-no-gain", R, "<= 5", f_b=1.5)}
    leave(folder, "one", "tab03_base_model", BASE_GAINS, others)
    (folder / "one" / "tab03_base_model_bases.csv").write_text(
        "base,Protocol,f_b,WA,TA\n"
        "a base model,Current Eval,20,50,60\n"
        "a base model,KNN Eval,0,0,0\n"
        "a base model,FT-Classifier Eval,51.25,62,64\n"
        "a masked LM,Current Eval,20,50,60\n"
        "a masked LM,FT-Classifier Eval,21.5,50.5,68\n"
    )
    page = "\n".join(report.other_bases(report.read_runs(folder)))
    assert "`one`, a base model: FT-Classifier gives f_b 31.2 points, merges 4.0 to 12.0." in page
    assert "`one`, a masked LM: FT-Classifier gives f_b 1.5 points, merges 0.5 to 8.0." in page
    assert "Claims whose verdict differs, in `one`: `P6.4-no-gain`." in page
    assert "| `one`: a base model | `one`: a masked LM |" in page
    assert f"| **{N}** (f_b: 9.00) | {R} (f_b: 1.50) |" in page


def test_a_profile_that_checks_another_stands_beside_it_and_nowhere_else(folder):
    before = report.report_markdown(folder)
    verdicts, settings = judged("P5-over-knn", N, WA=-1.5), {"backbone": "a larger base"}
    leave(folder, "check", "tab02_main", verdicts, compared_with="one", **settings)
    above, title, section = report.report_markdown(folder).partition("## Another size of base")
    assert title and before.startswith(above)
    assert "`check` repeats `one` on a larger base in place of a base model." in section
    assert "Claims whose verdict differs: `P5-over-knn`." in section
    assert f"| {R} (TA: 2.00) | **{N}** (WA: -1.50) |" in section
    assert "`P3.2-knn`" not in section


def test_a_claim_that_fails_anywhere_stands_first(folder):
    grid = report.claim_grid(report.verdict_rows(report.read_runs(folder)))
    assert list(grid) == ["one", "two"]
    assert list(grid.itertuples(name=None)) == [
        ("P5-over-knn", R, N),
        ("P6.4-no-gain", N, verdicts.NOT_RUN),
        ("P3.2-knn", R, verdicts.NOT_RUN),
    ]


@pytest.mark.parametrize(
    "rows, part",
    [
        (judged("P5-over-knn", R, WA=3.0, TA=2.0), "TA"),  # holds for both, narrowly for TA
        (judged("P5-over-knn", U, WA=-9.0) + judged("P5-over-knn", N, Ties=-3.0, TA=-8.0), "TA"),
        (judged("P6.4-no-gain", N, "<= 5", a=7.0, b=9.0), "b"),  # an upper bound fails above
        (judged("P5-over-knn", U, all=None), "all"),
    ],
)
def test_the_deciding_part_is_the_worst_of_those_that_decide(rows, part):
    assert verdicts.deciding(pd.DataFrame(rows)).part == part


def test_quick_is_told_of_only_when_nothing_was_judged(folder):
    leave(folder, "quick", "tab02_main", [], judged=False)
    assert [r.profile for r in report.read_runs(folder)] == ["one", "two"]
    for name in ("one", "two"):
        shutil.rmtree(folder / name)
    assert [r.profile for r in report.read_runs(folder)] == ["quick"]


def test_nothing_and_damage_are_refused_by_name(tmp_path, folder):
    with pytest.raises(DataError, match="run_all"):
        report.read_runs(tmp_path / "empty")
    (folder / "two" / "tab02_main.json").write_text("{")
    with pytest.raises(DataError, match=r"tab02_main\.json"):
        report.read_runs(folder)


def test_the_markdown_judges_every_claim_and_says_whose_claims_file(folder):
    path = folder / "two" / "tab02_main.json"
    path.write_text(path.read_text().replace(claims.claims_hash(), "0" * 64))
    text = report.report_markdown(folder)
    for said in (
        f"| {R} (TA: 2.00) | **{N}** (TA: -8.00) |",
        f"| **{N}** (f_b: 9.00) |",
        "`two`, **not reproduced**: 1.0, -8.0 and -3.0 points.",
        "`one`, **reproduced**. ",  # Ties was not measured, so no number is told
        "another: run it again",
        claims.claims_hash(),
        "miniature world is version 1",
    ):
        assert said in text
    part = report.readme_part(text)
    assert part.startswith("## What reproduces") and "](figures/REPORT.md)" in part
    assert "Claim by claim" not in part
    with pytest.raises(DataError, match="marks"):
        report.readme_part("# nothing")


def drawn(folder):
    """Averages, verdicts and the page of them."""
    runs = report.read_runs(folder)
    means, rows = report.averages(runs), report.verdict_rows(runs)
    return means, rows, figures.plot_report(means, rows)


def test_the_page_names_every_claim_and_verdict(folder):
    means, rows, fig = drawn(folder)
    assert set(means.profile) == {report.PAPER}  # no Table 2 beside these sidecars
    upper, lower = fig.subfigs
    names = [t.get_text() for ax in lower.axes for t in ax.get_yticklabels()]
    assert sorted(names) == ["P3.2-knn", "P5-over-knn", "P6.4-no-gain"]
    signs = Counter(t.get_text() for ax in lower.axes for t in ax.texts)
    assert signs == {"✗": 2, "–": 2, "✓": 2} and N in lower.get_supxlabel()
    title = upper.legends[0].get_title().get_text()
    assert "62 to 70" in title and "k = 5" in title
    plt.close(fig)
    alt = report.alt(means, rows)
    assert "two: 1 not reproduced" in alt and "55.8 to 69.2" in alt


@pytest.mark.parametrize(
    "notebook, verdicts",
    [
        ("fig03_protocols", []),  # a drawing judges nothing
        ("tab02_main", judged("P5-over-knn", claims.NOT_JUDGED, WA=1.0)),
    ],
)
def test_a_first_notebook_alone_gives_a_report(tmp_path, notebook, verdicts):
    leave(tmp_path, "quick", notebook, verdicts, judged=False)
    means, rows, fig = drawn(tmp_path)
    plt.close(fig)
    text = report.report_markdown(tmp_path)
    assert ("No claim has been judged yet." in text) == (not verdicts) and report.readme_part(text)
    assert report.alt(means, rows).endswith(".")
    assert len(report.runs_table(report.read_runs(tmp_path))) == 1
    assert len(tables.verdict_table(rows)) == len(verdicts)


def test_verdict_cells_differ_without_colour():
    from matplotlib.colors import to_rgb

    from mergelib.figures.report import CELL_STYLE

    signs = [sign for _, sign in CELL_STYLE.values()]
    assert len(set(signs)) == len(signs)
    for face, _ in CELL_STYLE.values():
        assert np.dot((0.2126, 0.7152, 0.0722), to_rgb(face)) > 0.6, face


# ---- what is said about each claim ---------------------------------------------------------------

READINGS = readings.readings()


def shown():
    """The committed runs and their report."""
    folder = committed() / "figures"
    return report.read_runs(folder), report.report_markdown(folder)


def test_every_claim_stands_in_one_group():
    listed = [r["claim"] for g in readings.load_readings()["groups"] for r in g["claims"]]
    assert sorted(listed) == sorted(claims.load_claims())


def test_every_claim_of_the_committed_runs_is_told_with_its_numbers():
    runs, text = shown()
    for claim, parts in report.verdict_rows(runs).groupby("claim"):
        [paragraph] = [line for line in text.splitlines() if line.startswith(f"`{claim}`, **")]
        for profile in dict.fromkeys(parts.profile):
            assert re.search(rf"`{profile}`, \*\*[a-z ]+\*\*[^:]*: [^.]*\d", paragraph), claim
        assert "{" not in paragraph and " Why: " in paragraph


def test_the_report_can_be_read():
    """First what `mini` is; about 2,150 words, since `real` has all claims but one; nothing said
    over and over."""
    _, text = shown()
    lines = [line for line in text.splitlines() if not re.match(r"\||!\[|<!--|#|$", line)]
    assert lines[0] == report.LABORATORY
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", " ".join(lines))
    assert len(re.findall(r"[^\W\d_][\w'’-]*", prose)) < 2200
    assert max(Counter(re.split(r"(?<=[.:?]) ", prose)).values()) <= len(READINGS)  # "Why:"
    sentences = [s for s in re.split(r"(?<=[.:?]) ", prose) if len(s.split()) > 4]
    assert max(Counter(sentences).values()) <= 2


def test_no_table_of_claims_uses_a_name_that_was_not_explained_above_it():
    report_above, table = shown()[1].split("**The core claims**")
    by_hand = (committed() / "README.md").read_text().partition(publish.marks("results")[0])[0]
    readme_above = by_hand + report_above.partition(report.README_PART[0])[2]
    for symbol in ("f_b", "f_t", "f_m", "KNN Eval", "Current Eval", "FT-Classifier", "orthogonal"):
        for above in (report_above, readme_above):
            assert symbol in table and symbol in above, symbol
    for method in merging.METHODS.values():
        used = re.search(rf"(?<!\w){re.escape(method.short)}[:,]", table)
        assert not used or f"{method.short}: " in report_above.splitlines()[-2], method.short


def paragraph_of(claim, verdict, parts, **sidecars):
    """What is said of one profile whose parts have these numbers, all with this verdict."""
    run = replace(report.read_runs(committed() / "figures")[0], sidecars=sidecars)
    rows = pd.DataFrame(judged(claim, verdict, **parts))
    return readings.seen(READINGS[claim], run, rows, verdict)


def test_words_follow_the_verdict_and_name_a_trivial_reason():
    low = paragraph_of("P6.4-no-gain", R, {"f_b": 1.0})
    assert "**reproduced**: f_b gains 1.0 points." in low and "trivial reason" in low
    assert "trivial reason" not in paragraph_of("P6.4-no-gain", N, {"f_b": 31.0})
    parts = {"text TA": 0.7, "images TA": 0.2}
    for kept, trivial in ((0.26, True), (0.9, False)):
        local = {"verdicts": judged("N-local", R, **{"images TA": kept})}
        said = paragraph_of("N-fails", R, parts, ext03_nonlocal=local)
        assert "70 % to 70 % are kept on texts" in said
        assert ("proves nothing: with one base TA keeps no more than 26 %" in said) == trivial


def test_what_the_paper_prints_is_computed_from_its_tables():
    assert readings.in_the_paper("P6.4-no-gain")["f_b"] == pytest.approx(4.5)
    assert readings.in_the_paper("P5-gap-closed")["WA"] == pytest.approx(13.4 / 20.5)
