"""The ladder on a study: one batch for everything, starts counted, maps scored where the figure
says."""

import math

import pytest
import torch
from torch.testing import assert_close

from mergelib import claims
from mergelib.core.errors import UnknownNameError
from mergelib.protocols.alignment import fit_closed_form, fit_l1
from mergelib.study import aligned
from mergelib.tables import labels, ladder

ENCODERS = ["weight_averaging", "task_arithmetic", "ties", "f_b"]


def test_a_cell_of_the_batch_is_the_fit_of_that_cell_alone(study):
    """Start s of (method, task) out of the batch over methods x tasks x starts, against one call
    with that seed."""
    cells = aligned.aligned(study, ENCODERS, "affine", fit_on="train")
    seeds = study.profile.protocols.seeds[: aligned.N_STARTS]
    for encoder, task, i in (("ties", "ag", 0), ("f_b", "yelp", len(seeds) - 1)):
        x, y = (study.features(e, task, "fit")[None] for e in (encoder, "f_t"))
        alone = fit_l1(x, y, "affine", seed=seeds[i])
        logits = study.head(encoder, task).logits(alone.apply(study.features(encoder, task)))[0]
        cell = cells[encoder, task]
        assert cell["predicted"].shape == (len(seeds), len(study.task(task).test))
        # The signs in an L1 gradient magnify rounding: near-ties between classes may fall the other
        # way.
        assert (logits.argmax(-1) == cell["predicted"][i]).float().mean() > 0.95
        distance = (alone.apply(x) - y).abs().mean()
        assert cell["l1_after"][i].item() == pytest.approx(distance.item(), rel=2e-3)


def test_starts_differ_and_only_the_penalised_fit_has_several(study):
    seeds = study.profile.protocols.seeds[: aligned.N_STARTS]
    found = aligned.aligned(study, ENCODERS, "orthogonal")["ties", "ag"]["l1_after"]
    assert len(found) == len(seeds) and len(set(found.tolist())) == len(seeds)
    for options in ({"fit": "closed_form"}, {"fit": "l1_exact"}, {"permuted_teacher": True}):
        assert (
            len(aligned.aligned(study, ENCODERS, "orthogonal", **options)["ties", "ag"]["l1_after"])
            == 1
        )


def test_the_table_is_the_mean_over_tasks_of_what_the_maps_score(study):
    """Closed form, recomputed from features alone; the identity rung is Current Eval."""
    table = ladder.table(study, ENCODERS, fit_on="train", fit="closed_form").set_index(
        ["method", "rung"]
    )
    for encoder in ENCODERS:
        by_hand, current = [], []
        for task in study.tasks:
            x, y = (study.features(e, task, "fit")[None] for e in (encoder, "f_t"))
            z, head, labels = (
                study.features(encoder, task),
                study.head(encoder, task),
                study.task(task).test.labels,
            )
            moved = fit_closed_form(x, y, "euclidean").apply(z)[0]
            by_hand.append(100 * (head.logits(moved).argmax(-1) == labels).double().mean().item())
            current.append(100 * (head.logits(z).argmax(-1) == labels).double().mean().item())
        assert table.accuracy[encoder, "euclidean"] == pytest.approx(sum(by_hand) / len(by_hand))
        assert table.accuracy[encoder, "identity"] == pytest.approx(sum(current) / len(current))
        assert table.accuracy[encoder, "invertible"] == table.accuracy[encoder, "linear"]


def test_the_table_says_how_far_starts_spread(study):
    table = ladder.table(study, ["ties"]).set_index("rung")
    cells = aligned.aligned(study, ["ties"], "linear")
    per_start = [
        sum(
            (cells["ties", t]["predicted"][s] == study.task(t).test.labels).double().mean().item()
            for t in study.tasks
        )
        / len(study.tasks)
        for s in range(aligned.N_STARTS)
    ]
    mean = sum(per_start) / len(per_start)
    std = math.sqrt(sum((a - mean) ** 2 for a in per_start) / (len(per_start) - 1))
    assert table.accuracy["linear"] == pytest.approx(100 * mean)
    assert table["std"]["linear"] == pytest.approx(100 * std, abs=1e-9)
    assert table.n_seeds.to_dict() == {
        r: 1 if r == "identity" else len(per_start) for r in labels.RUNG_LABELS
    }
    assert (table.loc[["euclidean", "orthogonal"], "max|A^T A - I|"] < 2e-2).all()


def test_the_bootstrap_resamples_starts(study):
    bootstrap = claims.Bootstrap(study)
    values = bootstrap.aligned("ties", "linear")
    table = (
        ladder.table(study, claims.Bootstrap(study).study.methods)
        .set_index(["method", "rung"])
        .accuracy
    )
    assert values[0].item() == pytest.approx(table["ties", "linear"], abs=0.01)
    one_start = 100 * bootstrap.average(
        {
            t: (
                aligned.aligned(study, ENCODERS, "linear")["ties", t]["predicted"]
                == study.task(t).test.labels
            )[:1]
            for t in study.tasks
        }
    )
    assert not torch.equal(values[1:], one_start[1:])


def test_seeds_are_resampled_whatever_their_number(study):
    """The bootstrap's weights against their law: mean 1/n, variance (n - 1) / n^3 of a multinomial
    share."""
    bootstrap = claims.Bootstrap(study)
    bootstrap.n = 20_000
    for n in (1, 2, 4):
        weights = bootstrap._seed_weights(n).double()
        assert_close(weights.sum(1), torch.ones(20_000, dtype=torch.float64), atol=1e-6, rtol=0)
        assert_close(
            weights.mean(0), torch.full((n,), 1 / n, dtype=torch.float64), atol=0.01, rtol=0
        )
        assert_close(
            weights.var(0), torch.full((n,), (n - 1) / n**3, dtype=torch.float64), atol=0.01, rtol=0
        )


def test_refusals(study):
    with pytest.raises(UnknownNameError, match="closed_form"):
        aligned.aligned(study, ["ties"], "linear", fit="l3")
    with pytest.raises(UnknownNameError, match="fit_on"):
        aligned.aligned(study, ["ties"], "linear", fit_on="validation")
