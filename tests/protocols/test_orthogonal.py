"""The orthogonal classifier turns W_t and does nothing else to it."""

from functools import partial

import pytest
import torch
from near import normal, seeded
from torch.testing import assert_close

from mergelib.core.types import Head
from mergelib.protocols import PRESETS, FTPreset, kl_to_teacher
from mergelib.protocols.alignment import polar
from mergelib.protocols.orthogonal import nested_orthogonal, orthogonal_classifier, procrustes_head

PRESET = PRESETS["default"]
FITS = {"kl": partial(orthogonal_classifier, preset=PRESET), "procrustes": procrustes_head}
fits = pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
shapes = pytest.mark.parametrize("C, d", [(3, 8), (8, 8), (11, 8)])  # C below, at and above d


def head(C=3, d=8):
    return Head(normal(C, d, seed=10), normal(C, seed=11))


def rotation(d, size=0.15):
    skew = size * normal(d, d, seed=3)
    return torch.matrix_exp(skew - skew.mT)


def loss(found, X, Y, start):
    return kl_to_teacher(found.logits(X), start.logits(Y)).mean(-1)


@fits
@shapes
@pytest.mark.parametrize("n", [2, 50])
def test_lengths_angles_and_bias_are_kept(fit, C, d, n):
    start = head(C, d)
    found = fit(normal(2, n, d, seed=1), normal(2, n, d, seed=2), start)
    assert found.weight.shape == (2, C, d) and found.bias.shape == (2, C)
    assert (found.weight - start.weight).abs().max() > 1e-2
    gram = start.weight @ start.weight.mT
    assert_close(found.weight @ found.weight.mT, gram.expand(2, C, C), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.bias, start.bias.expand(2, C))
    assert not found.weight.requires_grad


@fits
def test_a_head_of_lower_rank_is_no_exception(fit):
    start = head(4)
    start.weight[3] = start.weight[0] + start.weight[1]
    found = fit(normal(1, 30, 8, seed=1), normal(1, 30, 8, seed=2), start).weight[0]
    assert torch.isfinite(found).all()
    assert_close(found[3], found[0] + found[1], atol=1e-4, rtol=0)


@fits
@pytest.mark.parametrize("n", [4, 60])
def test_equal_features_leave_the_head(fit, n):
    X, start = normal(2, n, 8, seed=1), head()
    found = fit(X, X.clone(), start)
    # Adam divides by the gradient's size: rounding alone steps by the rate, to either side, so that
    # T steps move an entry by about sqrt(T) of them, by chance.
    walk = PRESET.lr * PRESET.epochs**0.5
    assert_close(found.weight, start.weight.expand(2, 3, 8), atol=walk, rtol=0)
    assert loss(found, X, X, start).max() < 1e-5


@shapes
def test_a_planted_rotation_is_found(C, d):
    """f_t = R f_m with R far from symmetric: on new inputs W' x gives f_t's logits, W_t x does
    not."""
    R, start, new = rotation(d), head(C, d), normal(2, 300, d, seed=5)
    X = normal(2, 100, d, seed=1)
    target = start.logits(new @ R.mT)
    assert (start.logits(new) - target).abs().max() > 1
    closed = procrustes_head(X, X @ R.mT, start)
    assert_close(closed.logits(new), target, atol=1e-4, rtol=0)
    assert_close(closed.weight, (start.weight @ R).expand(2, C, d), atol=1e-4, rtol=0)
    # KL cannot see a vector added to all rows of W', and hardly a class that is improbable for
    # both:
    # so probabilities are compared, not logits or their logarithms.
    found = orthogonal_classifier(X, X @ R.mT, start, FTPreset(lr=1e-2, epochs=800))
    assert_close(found.logits(new).softmax(-1), target.softmax(-1), atol=0.025, rtol=0)


@fits
def test_few_inputs_still_help(fit):
    """n < d: closer to f_t's predictions on new inputs than the untouched head."""
    d, R, start = 40, rotation(40, 0.05), head(4, 40)
    X, new = normal(1, 20, d, seed=1), normal(1, 500, d, seed=5)
    found = fit(X, X @ R.mT, start)
    assert loss(found, new, new @ R.mT, start) < 0.9 * loss(start, new, new @ R.mT, start)


def slow_fit(X, Y, start, preset, seed):
    """One fit by autograd: W' = L Q A, the gradient's tangent part, back by an SVD's polar
    factor."""
    columns, upper = torch.linalg.qr(start.weight.mT)
    factor, frame = upper.mT, columns.mT.clone().requires_grad_()
    adam = torch.optim.Adam([frame], lr=preset.lr)
    orders = seeded(seed)
    size = min(preset.batch_size or len(X), len(X))
    for _ in range(preset.epochs):
        order = torch.randperm(len(X), generator=orders) if size < len(X) else torch.arange(len(X))
        for rows in order.split(size):
            student = X[rows] @ (factor @ frame).mT + start.bias
            (gradient,) = torch.autograd.grad(
                kl_to_teacher(student, start.logits(Y[rows])).mean(), frame
            )
            with torch.no_grad():
                pull = gradient @ frame.mT
                frame.grad = gradient - (pull + pull.mT) / 2 @ frame
                adam.step()
                frame.copy_(polar(frame))
    return Head(factor @ frame.detach(), start.bias)


@pytest.mark.parametrize("C", [3, 11])
@pytest.mark.parametrize("preset", [FTPreset(1e-2, 40), FTPreset(1e-2, 3, batch_size=4)])
def test_nested_fits_are_the_slow_ones(C, preset):
    """All elements and shots in one loop; also more classes than dimensions, and minibatches."""
    X, Y = normal(2, 2, 12, 8).double(), normal(2, 2, 12, 8, seed=1).double()
    start, ks = Head(head(C).weight.double(), head(C).bias.double()), [2, 12, 1, 2, 5]
    for k, found in zip(ks, nested_orthogonal(X, Y, start, preset, ks, seed=5), strict=True):
        for i in range(2):
            rows = X[i, :, :k].flatten(0, 1), Y[i, :, :k].flatten(0, 1)
            alone = slow_fit(*rows, start, preset, seed=5)
            assert_close(found.weight[i], alone.weight, atol=1e-8, rtol=1e-6)
            assert_close(found.bias[i], alone.bias, atol=0, rtol=0)
