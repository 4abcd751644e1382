"""The ladder on a study: one batch for everything, starts counted, maps scored where the figure
says."""

import pytest
import torch

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
        cell, z = cells[encoder, task], study.features(encoder, task)
        assert cell["predicted"].shape == (len(seeds), len(z))
        x, y = (study.features(e, task, "fit")[None] for e in (encoder, "f_t"))
        alone = fit_l1(x, y, "affine", seed=seeds[i])
        predicted = study.head(encoder, task).logits(alone.apply(z))[0].argmax(-1)
        # The signs in an L1 gradient magnify rounding: near-ties between classes may fall the other
        # way.
        assert (predicted == cell["predicted"][i]).float().mean() > 0.95
        distance = (alone.apply(x) - y).abs().mean()
        assert cell["l1_after"][i].item() == pytest.approx(distance.item(), rel=2e-3)


def test_starts_differ_and_only_the_penalised_fit_has_several(study):
    def distances(**options):
        return aligned.aligned(study, ENCODERS, "orthogonal", **options)["ties", "ag"]["l1_after"]

    assert len(set(distances().tolist())) == aligned.N_STARTS
    for options in ({"fit": "closed_form"}, {"fit": "l1_exact"}, {"permuted_teacher": True}):
        assert len(distances(**options)) == 1


def test_the_table_is_the_mean_over_tasks_of_what_the_maps_score(study):
    """Closed form, recomputed from features alone; the identity rung is Current Eval."""
    table = ladder.table(study, ENCODERS, fit_on="train", fit="closed_form")
    accuracy = table.set_index(["method", "rung"]).accuracy
    for encoder in ENCODERS:
        by_hand = {"euclidean": [], "identity": []}
        for task in study.tasks:
            x, y = (study.features(e, task, "fit")[None] for e in (encoder, "f_t"))
            z, labels = study.features(encoder, task), study.task(task).test.labels
            moved = {"euclidean": fit_closed_form(x, y, "euclidean").apply(z)[0], "identity": z}
            for rung, features in moved.items():
                right = study.head(encoder, task).logits(features).argmax(-1) == labels
                by_hand[rung].append(100 * right.double().mean().item())
        for rung, found in by_hand.items():
            assert accuracy[encoder, rung] == pytest.approx(sum(found) / len(found))
        assert accuracy[encoder, "invertible"] == accuracy[encoder, "linear"]


def right(study, encoder, rung):
    """Which test inputs of each task are classified correctly, a row per start."""
    cells = aligned.aligned(study, [encoder], rung)
    return {
        t: (cells[encoder, t]["predicted"] == task.test.labels).double()
        for t, task in study.tasks.items()
    }


def test_table_and_bootstrap_know_how_far_starts_spread(study):
    table = ladder.table(study, ["ties"]).set_index("rung")
    found = right(study, "ties", "linear")
    per_start = 100 * sum(r.mean(1) for r in found.values()) / len(found)
    assert table.accuracy["linear"] == pytest.approx(per_start.mean().item())
    assert table["std"]["linear"] == pytest.approx(per_start.std().item(), abs=1e-9)
    assert table.n_seeds.to_dict() == dict.fromkeys(labels.RUNG_LABELS, 3) | {"identity": 1}
    assert (table.loc[["euclidean", "orthogonal"], "max|A^T A - I|"] < 2e-2).all()
    bootstrap = claims.Bootstrap(study)
    values = bootstrap.aligned("ties", "linear")
    assert values[0].item() == pytest.approx(table.accuracy["linear"], abs=0.01)
    one_start = 100 * bootstrap.average({t: r[:1] for t, r in found.items()})
    assert not torch.equal(values[1:], one_start[1:])


@pytest.mark.parametrize(
    "options, message", [({"fit": "l3"}, "closed_form"), ({"fit_on": "validation"}, "fit_on")]
)
def test_refusals(study, options, message):
    with pytest.raises(UnknownNameError, match=message):
        aligned.aligned(study, ["ties"], "linear", **options)
