"""Claims: the file is as given, verdicts follow its rule, intervals are paired and cover."""

import ast
import hashlib
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from near import seeded

from mergelib import claims, tables
from mergelib.claims import (
    NOT_JUDGED,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    Bootstrap,
    Condition,
    Verdict,
    interval,
    overall,
)
from mergelib.core.bootstrap import resampled_means
from mergelib.core.errors import UnknownNameError
from mergelib.run import runner
from mergelib.tables import paper as paper_numbers

WORDS = "85c2af24eee0dd2986e4d45ef44041f6f384383a78becdac64f236629d6368d8"
pytestmark = pytest.mark.filterwarnings("ignore:.*edge of the grid")


def test_the_claims_are_the_ones_fixed_beforehand():
    """Every word and number of them; a change is a new version with a reason."""
    words = ("id", "source", "says", "metric", "threshold", "needs")
    entries = yaml.safe_load(claims.CLAIMS_FILE.read_text())["claims"]
    texts = [[entry.get(word, "") for word in words] for entry in entries]
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest() == WORDS


def test_what_the_program_compares_with_is_what_the_words_say():
    for claim in claims.load_claims().values():
        op, value = claim.threshold.split()
        assert (claim.op, claim.value) == (op, float(value))
        assert bool(claim.needs) == bool(claim.precondition)
        if claim.needs:
            _, op, *value = re.split("(>=|<=)", claim.needs)
            sides = value == [" number of classes"]  # of two sides in words, the ratio
            expected = (op, 1.0 if sides else float(value[0]))
            assert (claim.precondition.op, claim.precondition.value) == expected


def test_every_metric_belongs_to_a_claim_and_every_need_is_measured():
    known = claims.load_claims()
    assert claims.METRICS.keys() <= known.keys()
    assert {c for c in claims.METRICS if known[c].needs} == claims.NEEDS.keys()
    assert claims.METRICS.keys() >= {c for item in runner.manifest() for c in item.claims}


@pytest.mark.parametrize(
    "low, high, threshold, verdict",
    [
        (1, 2, "> 0", REPRODUCED),
        (-2, -1, "> 0", NOT_REPRODUCED),
        (-1, 1, "> 0", UNDECIDED),
        (0, 1, "> 0", UNDECIDED),
        (0, 1, ">= 0", REPRODUCED),
        (-1, 0, ">= 0", UNDECIDED),
        (0.91, 0.99, ">= 0.90", REPRODUCED),
        (0.85, 0.95, ">= 0.90", UNDECIDED),
        (0.5, 0.8, ">= 0.90", NOT_REPRODUCED),
        (1, 2, "<= 2", REPRODUCED),
        (2.1, 3, "<= 2", NOT_REPRODUCED),
        (1, 3, "<= 2", UNDECIDED),
        (-3, -1, "< 0", REPRODUCED),
        (-3, 0, "< 0", UNDECIDED),
    ],
)
def test_verdicts_at_the_boundary(low, high, threshold, verdict):
    """Half of the resamples at each end, so that the interval is exactly (low, high)."""
    values = torch.tensor(
        [(low + high) / 2] + 100 * [float(low)] + 100 * [float(high)], dtype=torch.double
    )
    assert interval(values) == pytest.approx((low, high))
    assert claims.verdict_of(*interval(values), condition(threshold)) == verdict


def condition(words):
    op, value = words.split()
    return Condition(op=op, value=float(value))


def test_the_interval_leaves_two_and_a_half_percent_on_each_side():
    assert interval(torch.cat([torch.zeros(1), torch.arange(1001.0)])) == (25.0, 975.0)


def test_means_are_resampled_over_inputs_and_seeds_and_in_pairs():
    g = seeded(2)
    one, draws = torch.rand(1, 400, generator=g), torch.rand(5, 400, generator=g)
    means = resampled_means(one)
    assert means[0] == one.mean() and means.shape == (1001,)
    assert means[1:].std() * 20 / one.std() == pytest.approx(1, rel=0.1)
    seeds = torch.arange(5.0)[:, None].expand(5, 400)  # nothing but the seeds differs
    assert resampled_means(seeds)[1:].std() == pytest.approx((2 / 5) ** 0.5, rel=0.1)
    gain = resampled_means(draws + 0.1) - resampled_means(draws)
    torch.testing.assert_close(gain, torch.full((1001,), 0.1))
    two = torch.stack([resampled_means(one)[1:], resampled_means(one, seed=1)[1:]])
    assert abs(torch.corrcoef(two)[0, 1]) < 0.15, "tasks of equal size share their resamples"


def test_an_undefined_ratio_is_undecided():
    """Resamples without a gap give 0/0; that is no evidence against a claim."""
    ends = interval(torch.full((201,), float("nan")))
    assert claims.verdict_of(*ends, condition(">= 0.5")) == UNDECIDED


def fake_study(n=(7, 5), seeds=3, resamples=400):
    tasks = {f"t{i}": SimpleNamespace(name=f"t{i}", test=range(m)) for i, m in enumerate(n)}
    return SimpleNamespace(
        tasks=tasks,
        profile=SimpleNamespace(
            resamples=resamples, judged=True, protocols=SimpleNamespace(seeds=range(seeds))
        ),
    )


def test_the_bootstrap_equals_a_slow_one_with_the_same_draws():
    study = fake_study()
    b = Bootstrap(study)
    g = seeded(1)
    values = {
        t: (torch.rand(3, len(task.test), generator=g) < 0.6).float()
        for t, task in study.tasks.items()
    }
    flat = {t: v[:1] for t, v in values.items()}
    draws = seeded(0)  # the documented order: seeds first, then the tasks' rows
    seeds = torch.randint(3, (400, 3), generator=draws).numpy()
    rows = {
        t: torch.randint(len(task.test), (400, len(task.test)), generator=draws).numpy()
        for t, task in study.tasks.items()
    }
    for given, found in ((values, b.average(values)), (flat, b.average(flat))):
        assert float(found[0]) == pytest.approx(
            np.mean([v.double().numpy().mean() for v in given.values()])
        )
        for i in range(400):
            picked = [
                v.double().numpy()[np.ix_(seeds[i] if len(v) > 1 else [0], rows[t][i])].mean()
                for t, v in given.items()
            ]
            assert float(found[1 + i]) == pytest.approx(np.mean(picked), abs=1e-6)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """200 samples of 150 coin flips at 0.7: a 95 % interval may miss about 10 times."""
    b = Bootstrap(fake_study(n=(150,), seeds=1, resamples=500))
    g = seeded(3)
    hits = 0
    for _ in range(200):
        low, high = interval(b.average({"t0": (torch.rand(1, 150, generator=g) < 0.7).float()}))
        hits += low <= 0.7 <= high
    assert 178 <= hits <= 199


class Fixed(Bootstrap):
    """A bootstrap whose accuracies are given: (encoder, protocol, k, draw) -> value, without
    noise."""

    def __init__(self, **accuracy):
        self.given = accuracy

    def accuracy(self, encoder, protocol, k=None, *, draw="stratified", fit_on="train"):
        return torch.full(
            (101,), float(self.given["f_t" if encoder == "f_t" else protocol]), dtype=torch.double
        )


JUDGED = SimpleNamespace(profile=SimpleNamespace(judged=True))


def test_a_failing_precondition_leaves_a_claim_undecided():
    close = Fixed(f_t=62.0, current=60.0, ft_classifier=61.9, knn=61.0)
    for verdict in claims.judge(JUDGED, ["P5-gap-closed"], bootstrap=close):
        assert (
            verdict.verdict == UNDECIDED
            and "precondition fails" in verdict.note
            and "2.0" in verdict.note
        )
        assert verdict.here == pytest.approx(0.95)
    wide = Fixed(f_t=90.0, current=60.0, ft_classifier=80.0, knn=70.0)
    assert {
        (v.part, v.verdict, v.note) for v in claims.judge(JUDGED, ["P5-gap-closed"], bootstrap=wide)
    } == {(m, REPRODUCED, "") for m in ("WA", "TA", "Ties")}


@pytest.mark.parametrize(
    "claim, expected",
    [
        ("P3.2-knn", 10),
        ("P5-one-shot", 20),
        ("P5-over-knn", 10),
        ("C5-uniform", 20),
        ("P5-gap-closed", 2 / 3),
    ],
)
def test_metrics_by_hand(claim, expected):
    fixed = Fixed(f_t=90.0, current=60.0, ft_classifier=80.0, knn=70.0)
    assert [v.here for v in claims.judge(JUDGED, [claim], bootstrap=fixed)] == pytest.approx(
        3 * [expected]
    )


def test_a_profile_that_is_not_judged_has_no_verdicts():
    quick = SimpleNamespace(profile=SimpleNamespace(judged=False))
    found = claims.judge(
        quick, ["P3.2-knn"], bootstrap=Fixed(f_t=9, current=6, ft_classifier=8, knn=7)
    )
    assert {v.verdict for v in found} == {NOT_JUDGED} and overall(found) == {"P3.2-knn": NOT_JUDGED}


def test_unknown_claims_and_claims_without_a_metric_are_refused(monkeypatch):
    monkeypatch.delitem(claims.METRICS, "N-tact")
    with pytest.raises(UnknownNameError, match=r"Nearest: 'P3\.2-knn'"):
        claims.judge(JUDGED, ["P3.2-kn"], bootstrap=Fixed())
    with pytest.raises(UnknownNameError):
        claims.judge(JUDGED, ["N-tact"], bootstrap=Fixed())


@pytest.mark.parametrize(
    "parts, expected",
    [
        ([REPRODUCED, REPRODUCED], REPRODUCED),
        ([REPRODUCED, NOT_REPRODUCED, UNDECIDED], NOT_REPRODUCED),
        ([REPRODUCED, UNDECIDED], UNDECIDED),
        ([NOT_JUDGED, NOT_JUDGED], NOT_JUDGED),
    ],
)
def test_a_claim_holds_if_it_holds_for_all(parts, expected):
    rows = [Verdict("c", str(i), 0, 0, 0, "> 0", v) for i, v in enumerate(parts)] + [
        Verdict("d", "x", 0, 0, 0, "> 0", REPRODUCED)
    ]
    assert overall(rows) == {"c": expected, "d": REPRODUCED}


def test_failing_claims_come_first():
    rows = [
        Verdict("P3.2-knn", "WA", 1, 1, 1, "> 0", REPRODUCED),
        Verdict("P5-over-knn", "WA", -1, -1, -1, "> 0", NOT_REPRODUCED),
    ]
    assert list(tables.verdict_table(rows).claim) == ["P5-over-knn", "P3.2-knn"]


# ---- on a study; poison (methods.md H13) ---------------------------------------------------------


def test_the_measured_value_is_that_of_the_table(study):
    """The "here" of a verdict and the cells of the table are one computation."""
    b = Bootstrap(study)
    summary = tables.mean_and_std(
        study.scores(["f_t", *study.methods], ["current", "knn", "ft_classifier"])
    )
    for m in study.methods:
        assert float(b.accuracy(m, "current")[0]) == pytest.approx(
            tables.average_of(summary, m), abs=1e-4
        )
        for k in (1, 5):
            assert float(b.accuracy(m, "knn", k)[0]) == pytest.approx(
                tables.average_of(summary, m, "knn", k), abs=1e-4
            )
    for v in claims.judge(study, ["P3.2-knn"], bootstrap=b):
        assert v.low <= v.here <= v.high and v.verdict == NOT_JUDGED


def test_altered_thresholds_change_verdicts_and_nothing_else(study, monkeypatch):
    names = ["P3.2-knn", "P5-over-knn"]
    b = Bootstrap(study)
    before = claims.judge(JUDGED, names, bootstrap=b)
    poisoned = {c: replace(v, op=">", value=1000.0) for c, v in claims.load_claims().items()}
    monkeypatch.setattr(claims, "load_claims", lambda: poisoned)
    after = claims.judge(JUDGED, names, bootstrap=b)
    assert {v.verdict for v in after} == {NOT_REPRODUCED}
    assert [(v.claim, v.part, v.here, v.low, v.high) for v in after] == [
        (v.claim, v.part, v.here, v.low, v.high) for v in before
    ]


def test_poisoned_published_numbers_reach_no_cell_of_ours(study, monkeypatch, tmp_path):
    def cells():
        scores = study.scores(["f_t", *study.methods], ["current", "knn", "ft_classifier"])
        summary = tables.mean_and_std(tables.at_k(scores, 5))
        beside = tables.with_paper_numbers(summary)
        verdicts = tables.verdict_table(claims.judge(study, ["P3.2-knn", "P5-gap-closed"]))
        paper = [c for c in beside.columns if "paper" in c]
        assert len(paper) == 1 and "here" in beside.columns
        return tables.wide(summary), beside.drop(columns=paper), verdicts, beside[paper]

    before = cells()
    poisoned = tmp_path / "published.yaml"
    poisoned.write_text(re.sub(r"\d+\.\d+", "0.1", paper_numbers.PUBLISHED_FILE.read_text()))
    monkeypatch.setattr(paper_numbers, "PUBLISHED_FILE", poisoned)
    after = cells()
    for a, b in zip(before[:3], after[:3], strict=True):
        pd.testing.assert_frame_equal(a, b)
    assert not before[3].equals(after[3])


def test_our_code_holds_no_published_number():
    """Numbers of the paper live in one file."""
    numbers = {float(n) for n in re.findall(r"\d\d\.\d", yaml.dump(tables.published()))}
    for path in claims.CLAIMS_FILE.parent.rglob("*.py"):
        if path.stem in ("painters", "glyphs", "drawing"):  # full of coordinates
            continue
        constants = {
            n.value
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Constant) and type(n.value) is float
        }
        assert not numbers & constants, path
