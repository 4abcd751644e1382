"""Unlabelled shares of the test set: as many inputs as said, no labels but the anchors' names, and
classes that chance leaves out."""

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from near import seeded

from mergelib import claims, figures, tables
from mergelib.claims import REPRODUCED, UNDECIDED
from mergelib.core.errors import ConfigError, MissingShotsError
from mergelib.core.types import Split
from mergelib.profiles import SHARES, load_profile
from mergelib.protocols import knn_of_share
from mergelib.tables import unlabelled

pytestmark = pytest.mark.filterwarnings("ignore:.*edge of the grid")


def slow_knn(features, anchors, classes, n_classes, n):
    """Loops over inputs and classes, in float64."""
    z, a = features.double(), anchors.double()
    found = []
    for s in range(len(a)):
        rows = []
        for x in z:
            far = [
                torch.linalg.norm(a[s, :n][classes[s, :n] == c] - x, dim=1)
                for c in range(n_classes)
            ]
            means = [float(d.mean()) if len(d) else float("inf") for d in far]
            rows.append(min(range(n_classes), key=lambda c, m=means: (m[c], c)))
        found.append(rows)
    return found


@given(
    seed=st.integers(0, 10_000),
    s=st.integers(1, 3),
    c=st.integers(1, 6),
    n=st.integers(1, 12),
    d=st.integers(1, 5),
)
def test_knn_of_a_share_equals_slow_loops_and_never_names_an_absent_class(seed, s, c, n, d):
    g = seeded(seed)
    features, anchors = torch.randn(7, d, generator=g), torch.randn(s, n, d, generator=g)
    classes = torch.randint(c, (s, n), generator=g)
    counts = sorted({1, (n + 1) // 2, n})
    found = knn_of_share(features, anchors, classes, c, counts)
    assert found.shape == (len(counts), s, 7)
    for i, count in enumerate(counts):
        assert found[i].tolist() == slow_knn(features, anchors, classes, c, count)
        assert all(set(found[i, j].tolist()) <= set(classes[j, :count].tolist()) for j in range(s))


def test_counts_and_draws(study):
    """Shares of 60 test inputs: 0.3, 0.6, 1.5, 3 and 6, at least one each; nested; as many train
    inputs; distinct rows."""
    for task in study.tasks:
        assert study.share_counts(task) == dict(zip(SHARES, (1, 1, 2, 3, 6), strict=True))
        for fit_on in ("test", "train"):
            rows = study.draws(task, "share", fit_on)
            assert rows.shape == (len(study.profile.protocols.seeds), 1, 6)
            assert torch.equal(rows[:, :, :3], study.draws(task, "share", fit_on, ks=(1, 3)))
            assert all(len(set(r[0].tolist())) == 6 for r in rows)


def test_a_fit_sees_no_label_and_anchors_see_only_their_own(study, make_study):
    """With other labels FT-Classifier's predictions stay; KNN Eval's change only where an anchor's
    label did."""
    moved = {
        n: dataclasses.replace(t, test=Split(t.test.inputs, (t.test.labels + 1) % t.n_classes))
        for n, t in study.tasks.items()
    }
    other = make_study(None, moved)
    other.__dict__["_foundation"] = study._foundation
    for task in study.tasks:
        ft, knn, unscored = (
            [s.predictions("ties", task, protocol, draw="share", fit_on=on) for s in (study, other)]
            for protocol, on in (("ft_classifier", "test"), ("knn", "test"), ("knn", "train"))
        )
        assert torch.equal(*ft)
        assert study.evidence("ties", task, draw="share", fit_on="test").classes is None
        assert torch.equal((knn[0] + 1) % study.task(task).n_classes, knn[1])
        assert torch.equal(*unscored), "train anchors keep their labels"


def test_scores_have_a_row_per_share_and_seed_and_agree_with_predictions(study):
    rows = unlabelled.scores(study, ["ties"], ["current", "knn", "ft_classifier"])
    seeds, tasks = study.profile.protocols.seeds, list(study.tasks)
    assert len(rows) == len(tasks) * (1 + 2 * len(SHARES) * len(seeds))
    cell = rows.query("task == 'ag' and protocol == 'ft_classifier' and share == 2.5 and seed == 1")
    predicted = study.predictions("ties", "ag", "ft_classifier", draw="share", fit_on="test")
    predicted = predicted[SHARES.index(2.5), seeds.index(1)]
    expected = 100 * (predicted == study.task("ag").test.labels).double().mean()
    assert cell.accuracy.item() == pytest.approx(float(expected)) and cell.drawn.item() == 2
    summary = tables.averages(tables.mean_and_std(rows))
    mine = "protocol == 'knn' and share == 10"
    per_seed = rows.query(mine).groupby("seed").accuracy.mean()
    found = summary.query(mine)[["mean", "std"]].iloc[0]
    assert found.tolist() == pytest.approx([per_seed.mean(), per_seed.std()])
    with pytest.raises(ConfigError, match="unlabelled"):
        study.scores(["ties"], ["knn"], draw="share")
    with pytest.raises(MissingShotsError, match=r"share in percent \(protocols\.shares\) '7'"):
        study.correct("ties", "ag", "knn", k=7, draw="share")


def test_coverage_counts_classes_with_an_anchor(study):
    frame = unlabelled.coverage(study)
    row = frame[(frame.task == "yelp") & (frame.share == 10)].iloc[0]
    labels = study.task("yelp").test.labels
    seen = [set(labels[r[0, :6]].tolist()) for r in study.draws("yelp", "share", "test")]
    assert row.covered == pytest.approx(100 * sum(map(len, seen)) / len(seen) / 5)
    reach = [sum(int(y) in s for y in labels) / len(labels) for s in seen]
    assert row.reachable == pytest.approx(100 * sum(reach) / len(reach))
    assert unlabelled.too_few(frame) == 5.0, (
        "three inputs are fewer than four classes, six are not fewer than five"
    )
    assert unlabelled.counted(frame)[2.5] == "2"
    row = unlabelled.coverage_table(frame).loc[("Yelp", 5)]
    assert row["2.5 %"].endswith("*") and not row["10 %"].endswith("*")


def test_the_claim_is_left_open_where_a_share_is_fewer_inputs_than_classes():
    """Eight points gained in every resample; 50 inputs for 43 classes are judged, for 51 they are
    not."""

    def verdict(n_classes):
        tasks = {"signs": SimpleNamespace(name="signs", n_classes=n_classes)}
        study = SimpleNamespace(
            tasks=tasks, share_counts=lambda t: {2.5: 50}, profile=SimpleNamespace(judged=True)
        )

        def accuracy(m, p, k=None, **_):
            return torch.full((11,), 60.0 if p == "current" else 68.0)

        bootstrap = claims.Bootstrap.__new__(claims.Bootstrap)
        bootstrap.study, bootstrap.accuracy = study, accuracy
        return claims.judge(study, ["PA.2-share"], bootstrap=bootstrap)[0]

    assert verdict(43).verdict == verdict(50).verdict == REPRODUCED
    assert verdict(51).verdict == UNDECIDED and "number of classes" in verdict(51).note


@pytest.mark.parametrize("given_shares", [[], [0, 5], [5, 1], [1, 1], [50, 101]])
def test_bad_shares_are_refused(given_shares):
    with pytest.raises(ConfigError, match="shares"):
        load_profile("quick", {"protocols.shares": given_shares})


def test_the_figure_has_a_panel_per_size_and_method(study):
    rows = [
        unlabelled.scores(study, ["f_t", *study.methods], ["current"]),
        unlabelled.scores(study, study.methods, ["knn", "ft_classifier"]),
        unlabelled.scores(study, study.methods, ["ft_classifier"], fit_on="train"),
    ]
    scores, covered = pd.concat(rows), unlabelled.coverage(study)
    panels = {"(a)": scores, "(b)": scores}
    fig = figures.plot_shares(
        panels, study.methods, unlabelled.counted(covered), too_few=unlabelled.too_few(covered)
    )
    assert len(fig.axes) == 2 * len(study.methods)
    assert fig.axes[-1].get_xticklabels()[0].get_text() == "0.5"
    summary = tables.mean_and_std(scores)
    assert list(unlabelled.table(summary).columns) == ["0.5 %", "1 %", "2.5 %", "5 %", "10 %"]
