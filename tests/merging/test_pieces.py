"""Merging in pieces equals the formulas on whole tensors, whatever the size of a piece; Ties'
thresholds are exact, whatever the sample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from near import equal, seeded
from ties_reference import merged_vector, trim

from mergelib.merging import get_method, states
from mergelib.merging import ties as ties_module
from mergelib.merging.states import (
    add_scaled,
    flat_task_vectors,
    float_names,
    rounded,
    unflatten,
)
from mergelib.merging.streaming import stream
from mergelib.merging.ties import select, thresholds


def reference(name, base, experts, lam=0.3, keep=0.2, combine="sum"):
    """Eq. 1, 2 and 3 on whole tensors, as they stand."""
    names = float_names(base)
    if name == "weight_averaging":
        return rounded(base, {n: sum(e[n].float() for e in experts) / len(experts) for n in names})
    if name == "task_arithmetic":
        total = {n: sum(e[n].float() - base[n].float() for e in experts) for n in names}
    else:
        taus = list(flat_task_vectors(base, experts, names))
        total = unflatten(merged_vector(taus, keep, combine), base, names)
    return add_scaled(base, total, lam)


def make(kind, seed, dtype=torch.float32):
    """Random weights, or small integers: with equal magnitudes, zeros and cancellations
    everywhere."""
    g = seeded(seed)
    shapes = {"matrix": (40, 30), "bias": (7,), "scale": (), "none": (0, 3), "kernel": (3, 2, 5)}

    def draw(shape):
        if kind == "random":
            return torch.randn(shape, generator=g)
        return torch.randint(-3, 4, shape, generator=g)

    base, *experts = [{n: draw(s).to(dtype) for n, s in shapes.items()} for _ in range(6)]
    return base, experts


@pytest.mark.parametrize("kind", ["random", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "name, options",
    [
        ("weight_averaging", {}),
        ("task_arithmetic", {"lam": 0.7}),
        ("ties", {}),
        ("ties", {"keep": 0.6, "combine": "mean"}),
        ("ties", {"keep": 1.0}),
        ("ties", {"keep": 1e-4}),
    ],
)
def test_pieces_equal_the_formula_to_the_bit(monkeypatch, kind, dtype, name, options):
    base, experts = make(kind, 1, dtype)
    expected = reference(name, base, experts, **options)
    for piece, step in ((states.PIECE, ties_module.STEP), (64, ties_module.STEP), (64, 3)):
        monkeypatch.setattr(states, "PIECE", piece)
        monkeypatch.setattr(ties_module, "STEP", step)
        assert equal(get_method(name)(base, experts, **options), expected)


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 300),
    keep=st.floats(0.01, 1.0),
    kind=st.sampled_from(["normal", "whole", "zeros"]),
)
def test_a_threshold_is_the_value_of_a_sort(seed, size, keep, kind):
    g = seeded(seed)
    tau = torch.randn(2, size, generator=g)
    tau = {
        "normal": tau,
        "whole": tau.mul(2).round(),
        "zeros": tau * (torch.rand(2, size, generator=g) < 0.1),
    }[kind]
    n_keep = int(size * keep)
    if not n_keep:
        return
    base, expected = (
        torch.zeros(size),
        tau.abs().sort(1, descending=True).values[:, n_keep - 1].tolist(),
    )

    def pieces():
        return ((base[i : i + 37], [t[i : i + 37] for t in tau]) for i in range(0, size, 37))

    assert thresholds(pieces, keep) == expected
    assert select(pieces, n_keep, [-1.0] * 2, [float("inf")] * 2) == expected
    assert select(pieces, n_keep, expected, [float("inf")] * 2) is None  # not strictly between


@pytest.mark.parametrize("share, passes", [(1.0, 1), (0.1, 2)])
def test_a_sample_brackets_the_threshold_or_all_are_sorted(monkeypatch, share, passes):
    """With nine of ten entries equal to the base the threshold is 0, and no bracket lies strictly
    around it."""
    g, n, asked = seeded(0), 50_000, []
    base = torch.randn(n, generator=g)
    experts = [
        base + torch.randn(n, generator=g) * (torch.rand(n, generator=g) < share) for _ in range(3)
    ]
    monkeypatch.setattr(ties_module, "STEP", 50)
    monkeypatch.setattr(ties_module, "select", lambda *given: asked.append(1) or select(*given))
    found = thresholds(lambda: iter([(base, experts)]), 0.2)
    assert len(asked) == passes
    for tau, value in zip([e - base for e in experts], found, strict=True):
        assert torch.equal(torch.where(tau.abs() >= value, tau, 0.0), trim(tau, 0.2))


@pytest.mark.parametrize("towards", [1.0, -1.0])
@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_cancelled_columns_of_an_early_piece_wait_for_the_overall_sign(
    monkeypatch, towards, combine
):
    """The first pieces cancel; only the last one says which way the network points. In memory as
    from disk."""
    monkeypatch.setattr(states, "PIECE", 16)
    g = seeded(0)
    a = torch.randn(100, generator=g)
    b = torch.cat([-a[:70], a[70:]])
    a[70:], b[70:] = a[70:].abs() * towards, b[70:].abs() * towards
    base, experts = {"w": torch.zeros(100)}, [{"w": a}, {"w": b}]
    options = {"lam": 1.0, "keep": 0.8, "combine": combine}
    merged = get_method("ties")(base, experts, **options)["w"]
    assert torch.equal(merged, reference("ties", base, experts, **options)["w"])
    assert ((merged[:70] * towards) >= 0).all() and (merged[:70] != 0).any()
    rows = torch.stack([base["w"], a, b]).split(7, dim=1)
    streamed = stream(get_method("ties"), lambda: ((r[0], [r[1], r[2]]) for r in rows), **options)
    assert torch.equal(torch.cat(list(streamed)), merged)


@pytest.mark.parametrize("name", ["weight_averaging", "task_arithmetic", "ties"])
def test_strided_tensors_merge_like_plain_ones(name):
    base, experts = make("random", 3)
    strided = [
        {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in s.items()}
        for s in (base, *experts)
    ]
    plain, merged = get_method(name)(base, experts), get_method(name)(strided[0], strided[1:])
    assert equal(merged, plain)
