"""The report: what it reads, how it orders, and what the page looks like for other profiles than
ours."""

import json
import re
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


def verdict(claim, part, here, verdict, threshold="> 0", note=""):
    return {
        "claim": claim,
        "part": part,
        "here": here,
        "low": None if here is None else here - 1,
        "high": None if here is None else here + 1,
        "threshold": threshold,
        "verdict": verdict,
        "note": note,
    }


def leave(folder, profile, notebook, verdicts, *, judged=True):
    """A sidecar as a notebook leaves it."""
    (folder / profile).mkdir(parents=True, exist_ok=True)
    sidecar = {
        "profile": {"name": profile, "judged": judged, "backbone": "a base model"},
        "sources": {"ag": "miniature world 1"},
        "overrides": {},
        "claims_file": claims.claims_hash(),
        "verdicts": verdicts,
    }
    (folder / profile / f"{notebook}.json").write_text(json.dumps(sidecar))


R, N, U = claims.REPRODUCED, claims.NOT_REPRODUCED, claims.UNDECIDED


@pytest.fixture
def folder(tmp_path):
    leave(
        tmp_path,
        "one",
        "tab02_main",
        [
            verdict("P5-over-knn", "WA", 3.0, R),
            verdict("P5-over-knn", "TA", 2.0, R),
            verdict("P3.2-knn", "WA", 4.0, R),
        ],
    )
    leave(tmp_path, "one", "tab03_base_model", [verdict("P6.4-no-gain", "f_b", 9.0, N, "<= 5")])
    leave(
        tmp_path,
        "two",
        "tab02_main",
        [
            verdict("P5-over-knn", "WA", 1.0, U),
            verdict("P5-over-knn", "TA", -8.0, N),
            verdict("P5-over-knn", "Ties", -3.0, N),
        ],
    )
    return tmp_path


def test_claims_with_another_base_stand_side_by_side(folder):
    assert not report.other_bases(report.read_runs(folder))
    file = folder / "one" / "tab03_base_model.json"
    sidecar = json.loads(file.read_text())
    sidecar["other_bases"] = {"a masked LM": [verdict("P6.4-no-gain", "f_b", 1.5, R, "<= 5")]}
    file.write_text(json.dumps(sidecar))
    rows = [("a base model", "Current Eval", 20, 50, 60), ("a base model", "KNN Eval", 0, 0, 0)]
    rows += [("a base model", "FT-Classifier Eval", 51.25, 62, 64)]
    rows += [("a masked LM", "Current Eval", 20, 50, 60)]
    rows += [("a masked LM", "FT-Classifier Eval", 21.5, 50.5, 68)]
    frame = pd.DataFrame(rows, columns=["base", "Protocol", "f_b", "WA", "TA"])
    frame.to_csv(folder / "one" / "tab03_base_model_bases.csv", index=False)
    page = "\n".join(report.other_bases(report.read_runs(folder)))
    assert "`one`, a base model: FT-Classifier gives f_b 31.2 points" in page
    assert "`one`, a masked LM: FT-Classifier gives f_b 1.5 points" in page
    assert "merges 0.5 to 8.0" in page
    assert "Claims whose verdict differs, in `one`: `P6.4-no-gain`." in page
    head = next(line for line in page.splitlines() if line.startswith("| claim"))
    row = next(line for line in page.splitlines() if "`P6.4-no-gain`" in line and "|" in line)
    assert "`one`: a base model" in head and "`one`: a masked LM" in head
    assert f"**{N}** (f_b: 9.00)" in row and f"{R} (f_b: 1.50)" in row


def test_a_profile_that_checks_another_stands_beside_it_and_nowhere_else(folder):
    before = report.report_markdown(folder)
    leave(folder, "check", "tab02_main", [verdict("P5-over-knn", "WA", -1.5, N)])
    file = folder / "check" / "tab02_main.json"
    sidecar = json.loads(file.read_text())
    sidecar["profile"] |= {"compared_with": "one", "backbone": "a larger base"}
    file.write_text(json.dumps(sidecar))
    above, title, section = report.report_markdown(folder).partition("## Another size of base")
    assert title and before.startswith(above) and "`check` repeats `one`" in section
    assert "Claims whose verdict differs: `P5-over-knn`." in section
    row = next(s for s in section.splitlines() if s.startswith("| `P5-over-knn`"))
    assert f"{R} (TA: 2.00) | **{N}** (WA: -1.50)" in row and "`P3.2-knn`" not in section


def test_a_claim_that_fails_anywhere_stands_first(folder):
    grid = report.claim_grid(report.verdict_rows(report.read_runs(folder)))
    assert list(grid.index) == ["P5-over-knn", "P6.4-no-gain", "P3.2-knn"]
    assert grid.loc["P5-over-knn"].tolist() == [R, N]
    assert grid.loc["P6.4-no-gain"].tolist() == [N, verdicts.NOT_RUN]


def test_the_deciding_part_is_the_worst_of_those_that_decide(folder):
    rows = report.verdict_rows(report.read_runs(folder))

    def decides(claim, profile):
        return verdicts.deciding(rows[(rows.claim == claim) & (rows.profile == profile)]).part

    assert decides("P5-over-knn", "one") == "TA"  # holds for both, more narrowly for TA
    assert decides("P5-over-knn", "two") == "TA"  # fails for two, most for TA
    high = pd.DataFrame(
        [verdict("P6.4-no-gain", "a", 7.0, N, "<= 5"), verdict("P6.4-no-gain", "b", 9.0, N, "<= 5")]
    )
    assert verdicts.deciding(high).part == "b"  # an upper bound fails above
    undefined = verdict("P5-over-knn", "a", 1.0, U) | {"low": float("nan"), "high": float("nan")}
    assert pd.isna(verdicts.deciding(pd.DataFrame([undefined])).low)
    unmeasured = pd.DataFrame([verdict("P5-over-knn", "all", None, U)])
    assert verdicts.deciding(unmeasured).part == "all"


def test_quick_is_told_of_only_when_nothing_was_judged(folder):
    leave(
        folder,
        "quick",
        "tab02_main",
        [verdict("P5-over-knn", "WA", 1.0, claims.NOT_JUDGED)],
        judged=False,
    )
    assert [r.profile for r in report.read_runs(folder)] == ["one", "two"]
    for name in ("one", "two"):
        for path in (folder / name).glob("*"):
            path.unlink()
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
    for cell in ("reproduced (TA: 2.00)", "**not reproduced** (TA: -8.00)", "(f_b: 9.00)"):
        assert f"| {cell} |" in text or f"**not reproduced** {cell} |" in text
    assert "`two`, **not reproduced**: 1.0, -8.0 and -3.0 points." in text
    assert "`one`, **reproduced**. " in text, "Ties was not measured, so no number is told"
    assert (
        "another: run it again" in text
        and claims.claims_hash() in text
        and "miniature world is version 1" in text
    )
    part = report.readme_part(text)
    assert (
        part.startswith("## What reproduces")
        and "](figures/REPORT.md)" in part
        and "Claim by claim" not in part
    )
    with pytest.raises(DataError, match="marks"):
        report.readme_part("# nothing")


def test_the_page_names_every_claim_and_verdict(folder):
    rows = report.verdict_rows(report.read_runs(folder))
    means = report.averages(report.read_runs(folder))
    assert set(means.profile) == {report.PAPER}  # no Table 2 beside these sidecars
    fig = figures.plot_report(means, rows)
    board = fig.subfigs[1].axes
    names = [t.get_text() for ax in board for t in ax.get_yticklabels()]
    assert sorted(names) == ["P3.2-knn", "P5-over-knn", "P6.4-no-gain"]
    signs = [t.get_text() for ax in board for t in ax.texts]
    assert signs.count("✗") == 2 and signs.count("–") == 2 and signs.count("✓") == 2
    assert "not reproduced" in fig.subfigs[1].get_supxlabel()
    title = fig.subfigs[0].legends[0].get_title().get_text()
    assert "62 to 70" in title and "k = 5" in title
    plt.close(fig)
    alt = report.alt(means, rows)
    assert "two: 1 not reproduced" in alt and "55.8 to 69.2" in alt


@pytest.mark.parametrize("notebook", ["fig03_protocols", "tab02_main"])
def test_a_first_notebook_alone_gives_a_report(tmp_path, notebook):
    """A drawing judges nothing, and ``quick`` prints its claims without a verdict."""
    verdicts = (
        []
        if notebook == "fig03_protocols"
        else [verdict("P5-over-knn", "WA", 1.0, claims.NOT_JUDGED)]
    )
    leave(tmp_path, "quick", notebook, verdicts, judged=False)
    runs = report.read_runs(tmp_path)
    rows = report.verdict_rows(runs)
    plt.close(figures.plot_report(report.averages(runs), rows))
    text = report.report_markdown(tmp_path)
    assert ("No claim has been judged yet." in text) == (not verdicts) and report.readme_part(text)
    assert (
        report.alt(report.averages(runs), rows).endswith(".") and len(report.runs_table(runs)) == 1
    )
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


def paragraph_of(claim, verdict, parts, **lookups):
    """What is said of one profile whose parts have these numbers, all with this verdict."""
    run = replace(report.read_runs(committed() / "figures")[0], sidecars=lookups)
    threshold = claims.load_claims()[claim].threshold
    rows = pd.DataFrame(
        [
            dict(
                zip(
                    report.ROWS,
                    ("", claim, "", p, h, h, h, threshold, verdict, "", ""),
                    strict=True,
                )
            )
            for p, h in parts.items()
        ]
    )
    return readings.seen(READINGS[claim], run, rows, verdict)


def test_words_follow_the_verdict_and_name_a_trivial_reason():
    low = paragraph_of("P6.4-no-gain", R, {"f_b": 1.0})
    assert "**reproduced**: f_b gains 1.0 points." in low and "trivial reason" in low
    assert "trivial reason" not in paragraph_of("P6.4-no-gain", N, {"f_b": 31.0})
    parts = {"text TA": 0.7, "images TA": 0.2}
    for kept, trivial in ((0.26, True), (0.9, False)):
        local = {"verdicts": [{"claim": "N-local", "part": "images TA", "here": kept}]}
        said = paragraph_of("N-fails", R, parts, ext03_nonlocal=local)
        assert "70 % to 70 % are kept on texts" in said
        assert ("proves nothing: with one base TA keeps no more than 26 %" in said) == trivial


def test_what_the_paper_prints_is_computed_from_its_tables():
    assert readings.in_the_paper("P6.4-no-gain")["f_b"] == pytest.approx(4.5)
    assert readings.in_the_paper("P5-gap-closed")["WA"] == pytest.approx(13.4 / 20.5)
