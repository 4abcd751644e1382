"""Claims: the file is as given, verdicts follow its rule, intervals are paired and cover."""

import ast
import hashlib
import json
import math
import re
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

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


def test_every_claim_has_a_metric_and_every_need_is_measured():
    known = claims.load_claims()
    assert claims.METRICS.keys() == known.keys()
    assert {c for c in known if known[c].needs} == claims.NEEDS.keys()
    assert known.keys() >= {c for item in runner.manifest() for c in item.claims}


@pytest.mark.parametrize(
    "low, high, threshold, verdict",
    [
        (1, 2, "> 0", REPRODUCED),
        (-2, -1, "> 0", NOT_REPRODUCED),
        (-1, 1, "> 0", UNDECIDED),
        (0, 1, "> 0", UNDECIDED),
        (0, 1, ">= 0", REPRODUCED),
        (-1, 0, ">= 0", UNDECIDED),
        (1, 2, "<= 2", REPRODUCED),
        (2.1, 3, "<= 2", NOT_REPRODUCED),
        (1, 3, "<= 2", UNDECIDED),
        (-3, -1, "< 0", REPRODUCED),
        (-3, 0, "< 0", UNDECIDED),
        (math.nan, math.nan, ">= 0.5", UNDECIDED),  # 0/0 is no evidence against a claim
    ],
)
def test_verdicts_at_the_boundary(low, high, threshold, verdict):
    op, value = threshold.split()
    assert claims.verdict_of(low, high, Condition(op, float(value))) == verdict


def test_the_interval_leaves_two_and_a_half_percent_on_each_side():
    assert interval(torch.cat([torch.zeros(1), torch.arange(1001.0)])) == (25.0, 975.0)
    assert all(map(math.isnan, interval(torch.full((201,), math.nan))))


def test_means_are_resampled_over_inputs_and_seeds_and_in_pairs():
    g = seeded(2)
    one, draws = torch.rand(1, 400, generator=g), torch.rand(5, 400, generator=g)
    means, other = resampled_means(one), resampled_means(one, seed=1)
    assert means[0] == one.mean() and means.shape == (1001,)
    assert means[1:].std() * 20 / one.std() == pytest.approx(1, rel=0.1)
    alike = torch.corrcoef(torch.stack([means, other])[:, 1:])[0, 1]
    assert abs(alike) < 0.15, "tasks of equal size share their resamples"
    seeds = torch.arange(5.0)[:, None].expand(5, 400)  # nothing but the seeds differs
    assert resampled_means(seeds)[1:].std() == pytest.approx((2 / 5) ** 0.5, rel=0.1)
    gain = resampled_means(draws + 0.1) - resampled_means(draws)
    torch.testing.assert_close(gain, torch.full((1001,), 0.1))


def fake_study(n=(7, 5), seeds=3, resamples=400):
    protocols = SimpleNamespace(seeds=range(seeds))
    return SimpleNamespace(
        tasks={f"t{i}": SimpleNamespace(test=range(m)) for i, m in enumerate(n)},
        profile=SimpleNamespace(resamples=resamples, judged=True, protocols=protocols),
    )


@pytest.mark.parametrize("n_seeds", [3, 1])
def test_the_bootstrap_equals_a_slow_one_with_the_same_draws(n_seeds):
    g, draws = seeded(1), seeded(0)  # the documented order: seeds first, then the tasks' rows
    seeds = torch.randint(3, (400, 3), generator=draws) % n_seeds
    values, slow = {}, torch.zeros(401, dtype=torch.double)
    for task, n in (("t0", 7), ("t1", 5)):
        values[task] = v = (torch.rand(n_seeds, n, generator=g) < 0.6).double()
        rows = torch.randint(n, (400, n), generator=draws)
        picked = [v[s][:, r].mean() for s, r in zip(seeds, rows, strict=True)]
        slow += torch.stack([v.mean(), *picked]) / 2
    torch.testing.assert_close(Bootstrap(fake_study()).average(values), slow, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_seeds_are_resampled_whatever_their_number(n):
    """Values that differ between seeds alone: their mean, and their variance over n."""
    seeds = torch.arange(n)[:, None].expand(n, 7)
    found = Bootstrap(fake_study(resamples=20_000)).average({"t0": seeds})[1:]
    assert found.mean().item() == pytest.approx((n - 1) / 2, abs=0.02)
    assert found.var().item() == pytest.approx((n**2 - 1) / 12 / n, rel=0.05, abs=1e-9)


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
    """A bootstrap whose accuracies are given, by protocol and for f_t, without noise."""

    def __init__(self, **accuracy):
        self.given = accuracy

    def accuracy(self, encoder, protocol, k=None, *, draw="stratified", fit_on="train"):
        value = self.given["f_t" if encoder == "f_t" else protocol]
        return torch.full((101,), value, dtype=torch.double)


def judged(*ids, is_judged=True, **accuracy):
    """Verdicts of a profile with these accuracies."""
    study = SimpleNamespace(profile=SimpleNamespace(judged=is_judged))
    return claims.judge(study, ids, bootstrap=Fixed(**accuracy))


GIVEN = {"f_t": 90.0, "current": 60.0, "ft_classifier": 80.0, "knn": 70.0}


def test_metrics_by_hand():
    by_hand = {
        "P3.2-knn": 10,
        "P5-one-shot": 20,
        "P5-over-knn": 10,
        "P5-gap-closed": 2 / 3,
        "C5-uniform": 20,
        "P6.3-t5": 10,
    }
    found = {(v.claim, v.part): v.here for v in judged(*by_hand, **GIVEN)}
    methods = ("WA", "TA", "Ties")
    assert found == pytest.approx({(c, m): here for c, here in by_hand.items() for m in methods})


def test_a_failing_precondition_leaves_a_claim_undecided():
    close = {"f_t": 62.0, "current": 60.0, "ft_classifier": 61.9}
    for verdict in judged("P5-gap-closed", **close):
        assert verdict.verdict == UNDECIDED and verdict.here == pytest.approx(0.95)
        assert re.search(r"precondition fails: .* \(here 2\.0\)", verdict.note)
    assert {(v.verdict, v.note) for v in judged("P5-gap-closed", **GIVEN)} == {(REPRODUCED, "")}


def test_a_profile_that_is_not_judged_has_no_verdicts():
    assert overall(judged("P3.2-knn", is_judged=False, **GIVEN)) == {"P3.2-knn": NOT_JUDGED}


def test_unknown_claims_are_refused():
    with pytest.raises(UnknownNameError, match=r"Nearest: 'P3\.2-knn'"):
        judged("P3.2-kn")


def test_a_claim_holds_if_it_holds_for_all_and_failing_claims_come_first():
    parts = {
        "P3.2-knn": [REPRODUCED, REPRODUCED],
        "P5-over-knn": [REPRODUCED, NOT_REPRODUCED, UNDECIDED],
        "P5-one-shot": [REPRODUCED, UNDECIDED],
    }
    rows = [Verdict(c, "", 0, 0, 0, "> 0", v) for c, verdicts in parts.items() for v in verdicts]
    whole = dict(zip(parts, (REPRODUCED, NOT_REPRODUCED, UNDECIDED), strict=True))
    assert overall(rows) == whole
    table = tables.verdict_table(rows)
    assert list(table.claim.unique()) == ["P5-over-knn", "P5-one-shot", "P3.2-knn"]


# ---- on a study; poison (methods.md H13) ---------------------------------------------------------


PROTOCOLS = ("current", "knn", "ft_classifier")


def test_the_measured_value_is_that_of_the_table(study):
    """The "here" of a verdict and the cells of the table are one computation."""
    b = Bootstrap(study)
    summary = tables.mean_and_std(study.scores(study.methods, PROTOCOLS))
    for m, (protocol, k) in product(study.methods, (("current", None), ("knn", 1), ("knn", 5))):
        cell = tables.average_of(summary, m, protocol, k)
        assert float(b.accuracy(m, protocol, k)[0]) == pytest.approx(cell, abs=1e-4)
    for v in claims.judge(study, ["P3.2-knn"], bootstrap=b):
        assert v.low <= v.here <= v.high and v.verdict == NOT_JUDGED


def test_altered_thresholds_change_verdicts_and_nothing_else(monkeypatch):
    before = judged("P3.2-knn", "P5-over-knn", **GIVEN)
    poisoned = {c: replace(v, op=">", value=1000.0) for c, v in claims.load_claims().items()}
    monkeypatch.setattr(claims, "load_claims", lambda: poisoned)
    after = judged("P3.2-knn", "P5-over-knn", **GIVEN)
    assert {v.verdict for v in before} == {REPRODUCED}
    assert after == [replace(v, verdict=NOT_REPRODUCED) for v in before]


def test_poisoned_published_numbers_reach_no_cell_of_ours(study, monkeypatch, tmp_path):
    def cells():
        scores = study.scores(["f_t", *study.methods], PROTOCOLS)
        summary = tables.mean_and_std(tables.at_k(scores, 5))
        beside = tables.with_paper_numbers(summary)
        paper = beside.pop(next(c for c in beside if "paper" in c))
        verdicts = tables.verdict_table(claims.judge(study, ["P3.2-knn", "P5-gap-closed"]))
        return paper, tables.wide(summary), beside, verdicts

    before, poisoned = cells(), tmp_path / "published.yaml"
    poisoned.write_text(re.sub(r"\d+\.\d+", "0.1", paper_numbers.PUBLISHED_FILE.read_text()))
    monkeypatch.setattr(paper_numbers, "PUBLISHED_FILE", poisoned)
    changed = [not a.equals(b) for a, b in zip(before, cells(), strict=True)]
    assert changed == [True, False, False, False]


def test_our_code_holds_no_published_number():
    """Numbers of the paper live in one file."""
    numbers = {float(n) for n in re.findall(r"\d\d\.\d", yaml.dump(tables.published()))}
    for path in claims.CLAIMS_FILE.parents[1].rglob("*.py"):
        if path.stem in ("painters", "glyphs", "drawing"):  # full of coordinates
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        constants = {n.value for n in nodes if isinstance(n, ast.Constant)}
        assert not numbers & {c for c in constants if type(c) is float}, path
