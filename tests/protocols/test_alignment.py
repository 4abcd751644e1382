"""The ladder: planted maps come back, constraints hold, batches equal single fits, nothing depends
on conventions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import normal
from torch.testing import assert_close

from mergelib.core.errors import ConfigError, DataError, UnknownNameError
from mergelib.core.types import Head
from mergelib.protocols.alignment import (
    TABLE_1,
    AffineMap,
    aligned_predictions,
    diagnose,
    fit_closed_form,
    fit_l1,
    free_parameters,
    polar,
    variance_steps,
)

RUNGS = tuple(TABLE_1)
rungs = pytest.mark.parametrize("rung", RUNGS)
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

ORTHOGONAL = [r.name for r in TABLE_1.values() if r.constraint == "orthogonal"]


def rotation(d, seed=0, size=0.5):
    """A rotation that is far from symmetric, so that A and A^T cannot be confused."""
    skew = size * normal(d, d, seed=seed)
    return torch.matrix_exp(skew - skew.mT)


def planted(rung, n=200, d=8, n_fits=3):
    """X [B, n, d] with a mean, Y = A x + b written without matrix conventions, and the rung's map
    (A, b)."""
    spec = TABLE_1[rung]
    X = normal(n_fits, n, d, seed=1) + 1.5
    A = {
        "none": rotation(d) + 0.3 * normal(d, d, seed=2),
        "orthogonal": rotation(d),
        "diagonal": torch.diag(1 + 0.5 * normal(d, seed=3).tanh()),
    }[spec.constraint]
    b = normal(d, seed=4) * spec.shift
    Y = torch.stack([torch.stack([torch.mv(A, x) + b for x in rows]) for rows in X])
    return X, Y, A, b


@rungs
@precisions
def test_closed_form_recovers_a_planted_map(rung, dtype):
    X, Y, A, b = (t.to(dtype) for t in planted(rung))
    assert rung == "scaling" or (A - A.mT).abs().max() > 0.5
    found = fit_closed_form(X, Y, rung)
    assert found.A.dtype == dtype
    # What is left is the ridge's, in either precision: 1e-6 of X's mean square, times the condition
    # of its Gram matrix (about 30).
    assert_close(found.A, A.expand_as(found.A), atol=3e-5, rtol=0)
    assert_close(found.b, b.expand_as(found.b), atol=3e-5, rtol=0)
    assert_close(found.apply(X), Y, atol=3e-5 * float(X.abs().max()), rtol=0)


@pytest.mark.parametrize(
    "rung, exact", [(r, False) for r in RUNGS] + [(r, True) for r in ORTHOGONAL]
)
def test_l1_fit_recovers_a_planted_map_to_two_hundredths(rung, exact):
    X, Y, A, b = planted(rung)
    found = fit_l1(X, Y, rung, exact=exact)
    assert (found.A - A).abs().max() < 0.02
    assert (found.b - b).abs().max() < 0.02
    assert not exact or diagnose(found, X, Y)["orthogonality_max"].max() < 1e-5


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_either_sign_of_det_is_reached_from_every_start(sign):
    """Random starts have either sign; if the wrong one, a singular value has to pass through 0."""
    X, _, A, _ = planted("orthogonal", d=6, n_fits=1)
    A = A @ torch.diag(torch.tensor([sign, 1, 1, 1, 1, 1]))
    Y = X @ A.mT
    found = [fit_l1(X, Y, "orthogonal", seed=seed) for seed in range(4)]
    found += [fit_l1(X, Y, "orthogonal", exact=True), fit_closed_form(X, Y, "orthogonal")]
    for mapping in found:
        assert (mapping.A - A).abs().max() < 0.03
        assert diagnose(mapping, X, Y)["det_sign"] == sign


@settings(max_examples=20, deadline=None)
@given(
    rung=st.sampled_from(RUNGS),
    d=st.integers(1, 12),
    n=st.integers(1, 40),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_fits_keep_their_constraint_on_any_data(rung, d, n, seed, scale):
    X, Y = normal(2, n, d, seed=seed), scale * normal(2, n, d, seed=seed + 100) + 1
    spec = TABLE_1[rung]
    for found, tolerance in ((fit_closed_form(X, Y, rung), 1e-4), (fit_l1(X, Y, rung), 2e-2)):
        assert torch.isfinite(found.A).all() and torch.isfinite(found.b).all()
        assert spec.shift or not found.b.any()
        if spec.constraint == "orthogonal":
            assert diagnose(found, X, Y)["orthogonality_max"].max() < tolerance
        if spec.constraint == "diagonal":
            assert torch.equal(found.A, torch.diag_embed(found.A.diagonal(dim1=-2, dim2=-1)))


@pytest.mark.parametrize("n", [5, 24, 60])
def test_l1_penalty_holds_above_toy_size_and_with_a_dominant_direction(n):
    """Features share a large mean, as an encoder's do; n runs from far below d to above it."""
    d = 24
    X = normal(2, n, d, seed=1) * torch.linspace(0.05, 1, d) + 3 * normal(d, seed=2)
    Y = 0.7 * X @ rotation(d, size=0.1).mT + 0.1 * normal(2, n, d, seed=3)
    for rung in ORTHOGONAL:
        found = diagnose(fit_l1(X, Y, rung), X, Y)
        assert found["orthogonality_max"].max() < 2e-2
        assert (found["l1_after"] < found["l1_before"]).all()


def test_a_fixed_alpha_is_the_papers_knob():
    """Eq. 7 as printed: a larger constant alpha brings A^T A nearer to I."""
    X, Y = normal(2, 60, 6, seed=1), 2 * normal(2, 60, 6, seed=2)
    weak, strong = (
        diagnose(fit_l1(X, Y, "orthogonal", alpha=a), X, Y)["orthogonality"] for a in (1e-3, 10.0)
    )
    assert (strong < 0.1 * weak).all()


@rungs
@pytest.mark.parametrize("n", [4, 40])
def test_equal_features_give_the_identity_in_closed_form(rung, n):
    X = normal(2, n, 10) + 1
    found = fit_closed_form(X, X.clone(), rung)
    assert_close(found.A, torch.eye(10).expand(2, 10, 10), atol=1e-5, rtol=0)
    assert_close(found.b, torch.zeros(2, 10), atol=1e-5, rtol=0)


def test_fewer_inputs_than_dimensions_leave_unseen_directions_alone():
    """n = 3 in R^10, all in the first four axes: the other axes are neither turned nor shrunk."""
    X, Y = torch.zeros(2, 3, 10), torch.zeros(2, 3, 10)
    X[..., :4], Y[..., :4] = normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2)
    for rung in RUNGS:
        A = fit_closed_form(X, Y, rung).A
        assert_close(A[:, 4:, 4:], torch.eye(6).expand(2, 6, 6), atol=1e-5, rtol=0)
        assert_close(A[:, :4, 4:], torch.zeros(2, 4, 6), atol=1e-5, rtol=0)


@rungs
def test_closed_form_is_a_minimum_within_its_rung(rung):
    """No small admissible change of the map lowers the squared distance."""
    X, Y = normal(1, 50, 4, seed=1) + 1, normal(1, 50, 4, seed=2)
    best = fit_closed_form(X, Y, rung, ridge=1e-9)
    spec, loss = TABLE_1[rung], lambda m: (m.apply(X) - Y).square().sum()
    for seed in range(20):
        step = 0.01 * normal(1, 4, 4, seed=seed)
        A = {
            "none": best.A + step,
            "orthogonal": torch.matrix_exp(step - step.mT) @ best.A,
            "diagonal": best.A + torch.diag_embed(step.diagonal(dim1=-2, dim2=-1)),
        }[spec.constraint]
        b = best.b + 0.01 * normal(1, 4, seed=seed + 50) * spec.shift
        assert loss(AffineMap(A, b)) >= loss(best) * (1 - 1e-6)


def test_l1_fit_is_closer_in_l1_than_least_squares_on_heavy_tails():
    X = normal(2, 200, 5, seed=1)
    Y = X @ rotation(5).mT
    Y[:, ::8] += 20 * normal(2, 25, 5, seed=2)
    for rung in ("linear", "orthogonal"):
        l1, l2 = (
            diagnose(m, X, Y)["l1_after"] for m in (fit_l1(X, Y, rung), fit_closed_form(X, Y, rung))
        )
        assert (l1 < l2).all()


@rungs
def test_a_common_scale_changes_no_matrix(rung):
    X, Y, *_ = planted(rung, n=30)
    Y = Y + 0.1 * normal(*Y.shape, seed=9)
    for fit, scale, tolerance in ((fit_closed_form, 1000.0, 1e-5), (fit_l1, 8.0, 1e-4)):
        plain, scaled = fit(X, Y, rung), fit(scale * X, scale * Y, rung)
        assert_close(scaled.A, plain.A, atol=tolerance, rtol=0)
        assert_close(scaled.b / scale, plain.b, atol=tolerance, rtol=0)


def test_orthogonal_closed_form_ignores_either_scale():
    X, Y, *_ = planted("orthogonal", n=4)
    assert_close(
        fit_closed_form(X, 5 * Y, "orthogonal").A, fit_closed_form(3 * X, Y, "orthogonal").A
    )


@rungs
@precisions
def test_a_batch_equals_single_fits_each_with_its_own_seed(rung, dtype):
    """Unrelated features, the hardest case. In float32 the L1 fit's signs magnify rounding: the
    distance agrees."""
    X, Y = normal(4, 40, 5, seed=1, dtype=dtype) + 0.5, normal(4, 40, 5, seed=2, dtype=dtype)
    seeds = [4, 0, 4, 1]
    fits = [(fit_closed_form, {}), (fit_l1, {"steps": 200, "batch_size": 16})]
    # Step by step the exact fit magnifies rounding by a sixth: from 1e-17 to 1e-12 in these 80, to
    # 1e-4 in 200.
    fits += [(fit_l1, {"steps": 80, "exact": True})] if rung in ORTHOGONAL else []
    for fit, options in fits:
        whole = fit(X, Y, rung, **options, **({"seed": seeds} if fit is fit_l1 else {}))
        distance = diagnose(whole, X, Y)["l1_after"]
        tolerance = 0.05 if fit is fit_l1 and dtype == torch.float32 else 1e-5
        for i in (0, 1, 3):
            own = X[i : i + 1], Y[i : i + 1]
            alone = fit(*own, rung, **options, **({"seed": seeds[i]} if fit is fit_l1 else {}))
            assert_close(alone.A[0], whole.A[i], atol=tolerance, rtol=0)
            assert_close(alone.b[0], whole.b[i], atol=tolerance, rtol=0)
            single = diagnose(alone, *own)["l1_after"][0]
            assert_close(single, distance[i], atol=0, rtol=2e-3)


def test_l1_fit_depends_on_its_seed_alone():
    X, Y = normal(1, 4, 6, seed=1), normal(1, 4, 6, seed=2)
    torch.manual_seed(1)
    first = fit_l1(X, Y, "linear", steps=50)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(first.A, fit_l1(X, Y, "linear", steps=50).A)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first.A, fit_l1(X, Y, "linear", steps=50, seed=1).A)


def test_the_polar_factor_survives_an_svd_that_gives_up_in_float32(monkeypatch):
    M = rotation(6) @ torch.diag(1 + 1e-7 * normal(6))
    expected, svd = polar(M), torch.linalg.svd

    def gives_up(matrix, **options):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return svd(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", gives_up)
    assert_close(polar(M), expected)


def test_fits_leave_their_inputs_alone():
    X, Y = normal(2, 20, 4, seed=1), normal(2, 20, 4, seed=2)
    before = X.clone(), Y.clone()
    for rung in RUNGS:
        fit_closed_form(X, Y, rung)
        found = fit_l1(X, Y, rung, steps=5)
        assert not found.A.requires_grad and not found.b.requires_grad
    assert torch.equal(X, before[0]) and torch.equal(Y, before[1])


def test_folding_into_the_head_gives_the_same_logits():
    X, Y, *_ = planted("affine")
    found = fit_closed_form(X, Y, "affine")
    head = Head(normal(4, 8, seed=5), normal(4, seed=6))
    folded = found.fold(head)
    assert folded.weight.shape == (3, 4, 8) and folded.bias.shape == (3, 4)
    assert_close(folded.logits(X), head.logits(found.apply(X)), atol=1e-4, rtol=1e-4)
    batched = found.fold(Head(head.weight.expand(3, -1, -1), head.bias.expand(3, -1)))
    assert_close(batched.weight, folded.weight)
    assert_close(batched.bias, folded.bias)
    assert torch.equal(aligned_predictions(X, head, found), head.logits(Y).argmax(-1))
    shared = found.apply(X[0])
    assert_close(shared[0], found.apply(X)[0])
    assert shared.shape == X.shape


def test_diagnosis_of_known_maps():
    A = torch.stack([torch.eye(2), torch.diag(torch.tensor([2.0, -1.0]))])
    X = torch.ones(2, 3, 2)
    found = diagnose(AffineMap(A, torch.zeros(2, 2)), X, torch.zeros(2, 3, 2))
    expected = {
        "orthogonality": [0, 3 / 2**0.5],
        "orthogonality_max": [0, 3],
        "condition": [1, 2],
        "det_sign": [1, -1],
        "l1_before": [1, 1],
        "l1_after": [1, 1.5],
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert_close(found[name], torch.tensor(values, dtype=torch.float32))


def test_free_parameters():
    assert [free_parameters(r, 4) for r in RUNGS] == [20, 16, 16, 10, 6, 4]
    assert all(isinstance(free_parameters(r, 4), int) for r in RUNGS)


def test_variance_steps_name_what_was_planted():
    """Each planted change is explained at its own step and by none before it."""
    d = 6
    X = normal(2, 400, d, seed=1) + 1
    A, b = rotation(d), normal(d, seed=2)
    split = lambda Y: (X[:, :200], Y[:, :200], X[:, 200:], Y[:, 200:])  # noqa: E731
    for step, Y in {
        "identity": X,
        "translation": X + b,
        "rotation": X @ A.mT + b,
        "scaling": 1.7 * X @ A.mT + b,
        "general": X @ (A + normal(d, d, seed=3)).mT + b,
    }.items():
        found = variance_steps(*split(Y))
        names = list(found)
        assert names == ["identity", "translation", "rotation", "scaling", "general"]
        for name in names[: names.index(step)]:
            assert (found[name] < 0.97).all(), (step, name)
        for name in names[names.index(step) :]:
            assert_close(found[name], torch.ones(2), atol=1e-4, rtol=0)


def test_variance_steps_on_held_out_inputs_may_fall():
    """Noise fitted to noise with as many inputs as dimensions: the general map explains less than
    the mean does."""
    X, Y = normal(1, 220, 20, seed=1), normal(1, 220, 20, seed=2)
    found = variance_steps(X[:, :20], Y[:, :20], X[:, 20:], Y[:, 20:])
    assert found["general"] < 0


Z = normal(2, 5, 3)


@pytest.mark.parametrize(
    "error, said, refused",
    [
        (UnknownNameError, "Nearest: 'orthogonal'", lambda: fit_closed_form(Z, Z, "orthognal")),
        (UnknownNameError, "rigid", lambda: fit_l1(Z, Z, "rigid")),
        (UnknownNameError, "rigid", lambda: free_parameters("rigid", 3)),
        (ConfigError, "euclidean", lambda: fit_l1(Z, Z, "linear", exact=True)),
        (ConfigError, "ridge", lambda: fit_closed_form(Z, Z, "linear", ridge=0.0)),
        (ConfigError, "3 seeds for 2 fits", lambda: fit_l1(Z, Z, "linear", seed=[0, 1, 2])),
        (DataError, "same inputs", lambda: fit_closed_form(Z, Z[:, :4], "linear")),
        (DataError, "same inputs", lambda: fit_closed_form(Z, Z[0], "linear")),
        (DataError, "same inputs", lambda: fit_closed_form(Z, Z[:, :, :2], "linear")),
        (DataError, "0 inputs", lambda: fit_l1(Z[:, :0], Z[:, :0], "linear")),
    ],
)
def test_refusals_name_offender_and_remedy(error, said, refused):
    with pytest.raises(error, match=said):
        refused()
