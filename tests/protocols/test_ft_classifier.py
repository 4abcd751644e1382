"""FT-Classifier: gradient in closed form, a plain torch reference, and fits that share nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from near import normal, seeded
from torch import nn
from torch.testing import assert_close

from mergelib.core.errors import DataError, UnknownNameError
from mergelib.core.types import Head
from mergelib.protocols import (
    Evidence,
    FTPreset,
    fit_heads,
    ft_classifier,
    get_preset,
    get_protocol,
    kl_to_teacher,
    nested_fits,
)


def example(n_fits=3, n=12):
    head = Head(normal(4, 6), normal(4, seed=1))
    return normal(n_fits, n, 6, seed=2), normal(n_fits, n, 4, seed=3), head


@given(
    st.lists(
        st.tuples(st.floats(-30, 30, width=32), st.floats(-30, 30, width=32)),
        min_size=2,
        max_size=6,
    )
)
def test_kl_is_the_double_precision_sum_and_never_negative(pairs):
    student, teacher = torch.tensor(pairs).T
    p, q = teacher.double().softmax(0), student.double().softmax(0)
    slow = sum(
        float(a) * (float(a.log()) - float(b.log())) for a, b in zip(p, q, strict=True) if a > 0
    )
    found = float(kl_to_teacher(student, teacher))
    assert found == pytest.approx(slow, abs=1e-4, rel=1e-4)
    assert found >= -1e-6
    assert float(kl_to_teacher(teacher, teacher)) == 0


def test_the_teacher_gets_no_gradient():
    z, teacher, head = example()
    z.requires_grad_()
    teacher.requires_grad_()
    aligned = ft_classifier(z, teacher, head, FTPreset(lr=0.1, epochs=2))
    assert teacher.grad is None
    assert not aligned.weight.requires_grad and not aligned.bias.requires_grad


@pytest.mark.parametrize(
    "preset",
    [get_preset("default"), FTPreset(5e-3, 3, batch_size=5), FTPreset(5e-4, 5, batch_size=1)],
)
def test_equals_a_plain_training_loop(preset):
    """nn.Linear, torch.optim.Adam and torch's own kl_div for each fit of a batch, with the same
    order of minibatches."""
    z, teacher, head = example(n_fits=3, n=12)
    fitted = ft_classifier(z, teacher, head, preset, seed=9)
    for i in range(3):
        linear = nn.Linear(6, 4)
        linear.load_state_dict({"weight": head.weight, "bias": head.bias})
        adam = torch.optim.Adam(linear.parameters(), lr=preset.lr)
        orders = seeded(9)
        for _ in range(preset.epochs):
            order = torch.randperm(12, generator=orders) if preset.batch_size else torch.arange(12)
            for rows in order.split(preset.batch_size or 12):
                student, target = linear(z[i, rows]).log_softmax(-1), teacher[i, rows].softmax(-1)
                loss = nn.functional.kl_div(student, target, reduction="batchmean")
                adam.zero_grad()
                loss.backward()
                adam.step()
        assert_close(fitted.weight[i], linear.weight.detach(), atol=1e-4, rtol=1e-4)
        assert_close(fitted.bias[i], linear.bias.detach(), atol=1e-4, rtol=1e-4)


def test_it_fits_at_the_teachers_features_through_the_old_head():
    """The teacher of ``fit_heads`` is f_t through (W_t, b_t): with f_t = f_m on the fit rows
    nothing moves but by rounding (methods.md G10), whatever the test inputs look like; and only
    rows of the draw matter."""
    _, _, head = example()
    fit = torch.randn(20, 6)
    draws = torch.arange(16).view(1, 4, 4)
    seen = Evidence(torch.randn(7, 6), head, fit, fit.clone(), draws, (1, 4), FTPreset(1e-3, 30))
    for fitted in fit_heads(seen):
        assert kl_to_teacher(fitted.logits(fit)[0], head.logits(fit)).max() < 1e-3
    moved = Evidence(
        seen.student_test, head, fit.clone(), torch.randn(20, 6), draws, (1, 4), seen.preset
    )
    other = Evidence(
        seen.student_test, head, fit.clone(), moved.teacher_fit.clone(), draws, (1, 4), seen.preset
    )
    other.student_fit[16:] = 1e6
    other.teacher_fit[16:] = -1e6
    for a, b in zip(fit_heads(moved), fit_heads(other), strict=True):
        assert torch.equal(a.weight, b.weight)


def test_current_eval_has_its_bias():
    head = Head(torch.eye(3), torch.tensor([0.0, 0.0, 2.5]))
    seen = Evidence(torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), head)
    assert get_protocol("current").function(seen).tolist() == [[[0, 2]]]


def test_unknown_names_name_the_nearest():
    with pytest.raises(UnknownNameError, match="Nearest: 'released'"):
        get_preset("release")
    with pytest.raises(UnknownNameError, match="Nearest: 'ft_classifier'"):
        get_protocol("ft_clasifier")


@pytest.mark.parametrize(
    "preset", [get_preset("default"), FTPreset(5e-3, 3, batch_size=5), get_preset("released")]
)
def test_nested_fits_are_the_single_fits(preset):
    """One loop for all shots against a fit for each, also where a minibatch is cut short, a k
    repeats, ks come in any order, and a small one has no block of its own."""
    z, teacher, head = example(n_fits=3, n=24)
    z, teacher, head = z.double(), teacher.double(), Head(head.weight.double(), head.bias.double())
    groups, ks = (z.unflatten(1, (2, 12)), teacher.unflatten(1, (2, 12))), [2, 12, 1, 2, 5]
    for k, fitted in zip(ks, nested_fits(*groups, head, preset, ks, seed=5), strict=True):
        alone = ft_classifier(*(x[:, :, :k].flatten(1, 2) for x in groups), head, preset, seed=5)
        assert_close(fitted.weight, alone.weight, atol=1e-9, rtol=1e-7)
        assert_close(fitted.bias, alone.bias, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("ks", [[], [0, 3], [2, 7]])
def test_a_k_without_rows_is_refused(ks):
    z, teacher, head = example(n_fits=1, n=24)
    with pytest.raises(DataError, match="between 1 and the 6"):
        nested_fits(
            z.unflatten(1, (4, 6)), teacher.unflatten(1, (4, 6)), head, get_preset("default"), ks
        )


def test_the_heads_of_a_protocol_are_fits_with_its_preset_one_per_draw():
    head, preset = example()[2], get_preset("released")
    student, teacher = normal(20, 6, seed=5), normal(20, 6, seed=6)
    draws = torch.randperm(20, generator=seeded(7))[:16].view(2, 2, 4)
    seen = Evidence(student, head, student, teacher, draws, (1, 4), preset)
    for k, fitted in zip(seen.ks, fit_heads(seen), strict=True):
        for s, rows in enumerate(seen.rows(k)):
            logits = head.logits(teacher[rows])
            alone = ft_classifier(student[rows][None], logits[None], head, preset)
            assert_close(fitted.weight[s], alone.weight[0], atol=1e-5, rtol=1e-4)
            assert_close(fitted.bias[s], alone.bias[0], atol=1e-5, rtol=1e-4)
