"""Weight Averaging, Task Arithmetic and Ties: closed forms, hand-worked columns, a slow reference,
broken input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergelib.core.errors import ConfigError, StateDictError, UnknownNameError
from mergelib.merging import METHODS, Method, get_method, method

NAMES = ["weight_averaging", "task_arithmetic", "ties"]


def wa(base, experts):
    return get_method("weight_averaging")(base, experts)


def ta(base, experts, **options):
    return get_method("task_arithmetic")(base, experts, **options)


def ties(base, experts, **options):
    return get_method("ties")(base, experts, **options)


def random_state(seed: int) -> dict[str, torch.Tensor]:
    """Matrix, vector, scalar, empty and integer tensors, and a tied pair."""
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(5, 3, generator=g)
    return {
        "b.weight": torch.randn(4, 3, generator=g),
        "a.bias": torch.randn(4, generator=g),
        "scale": torch.randn((), generator=g),
        "none": torch.empty(0, 3),
        "position_ids": torch.arange(4) + seed,
        "flag": torch.tensor([True, False]),
        "embed.weight": embedding,
        "z.decoder.weight": embedding,
    }


@pytest.fixture
def base():
    return random_state(0)


@pytest.fixture
def experts():
    return [random_state(s) for s in (1, 2, 3)]


def column(base_value, *values):
    """One base and T experts that hold a vector each."""
    return {"w": torch.tensor(base_value)}, [{"w": torch.tensor(v)} for v in values]


def assert_states_close(a, b, atol=1e-6):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], atol=atol, rtol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


# ---- closed forms (methods.md G1-G3, G14) --------------------------------------------------------


@pytest.mark.parametrize("t", [1, 2, 5])
def test_identical_experts_merge_to_themselves(base, experts, t):
    copies = [experts[0]] * t
    expected = experts[0] | {"position_ids": base["position_ids"]}
    assert_states_close(wa(base, copies), expected)
    assert_states_close(ta(base, copies, lam=1 / t), expected)
    assert_states_close(ties(base, copies, lam=1.0, keep=1.0, combine="mean"), expected)


def test_a_single_expert_comes_back(base, experts):
    expected = experts[0] | {"position_ids": base["position_ids"]}
    assert_states_close(ta(base, experts[:1], lam=1.0), expected)
    for combine in ("sum", "mean"):
        assert_states_close(ties(base, experts[:1], lam=1.0, keep=1.0, combine=combine), expected)


def test_ties_without_conflict_is_task_arithmetic_or_the_average(base):
    """All task vectors point the same way, nothing is trimmed: nothing is left for Ties to do."""
    experts = [
        {
            n: t + s * (1 + torch.rand_like(t)) if t.is_floating_point() else t
            for n, t in base.items()
        }
        for s in (1, 2)
    ]
    for e in experts:
        e["z.decoder.weight"] = e["embed.weight"]
    assert_states_close(
        ties(base, experts, lam=0.4, keep=1.0), ta(base, experts, lam=0.4), atol=1e-5
    )
    assert_states_close(
        ties(base, experts, lam=1.0, keep=1.0, combine="mean"), wa(base, experts), atol=1e-5
    )


def test_task_arithmetic_at_one_over_t_is_the_average(base, experts):
    assert_states_close(ta(base, experts, lam=1 / 3), wa(base, experts), atol=1e-5)


def test_task_arithmetic_by_hand():
    merged = ta(*column([1.0, 2.0], [2.0, 2.0], [1.0, 5.0], [0.0, 0.0]), lam=0.5)
    assert merged["w"].tolist() == [1.0, 2.5]


@given(shift=st.floats(-8, 8, width=16), lam=st.floats(0, 2, width=16))
def test_merging_commutes_with_a_common_shift(shift, lam):
    """Only differences count: the same shift of base and experts shifts the merge, so nothing is
    trimmed on raw weights."""
    base, experts = {"w": torch.randn(40)}, [{"w": torch.randn(40)} for _ in range(3)]
    moved = [{"w": e["w"] + shift} for e in experts]
    for merge in (ta, ties):
        torch.testing.assert_close(
            merge({"w": base["w"] + shift}, moved, lam=lam)["w"],
            merge(base, experts, lam=lam)["w"] + shift,
            atol=2e-4,
            rtol=0,
        )


@pytest.mark.parametrize("name", NAMES)
def test_shape_of_the_result(base, experts, name):
    """Keys, dtypes and shapes are the base's, integer tensors its values, ties stay tied, inputs
    stay as they were."""
    before = [{n: t.clone() for n, t in s.items()} for s in [base, *experts]]
    merged = get_method(name)(base, experts)
    assert list(merged) == list(base)
    for n, t in base.items():
        assert (merged[n].dtype, merged[n].shape) == (t.dtype, t.shape)
        assert merged[n].isfinite().all()
    for n in ("position_ids", "flag"):
        assert torch.equal(merged[n], base[n])
    assert merged["embed.weight"].data_ptr() == merged["z.decoder.weight"].data_ptr()
    assert merged["embed.weight"].data_ptr() != base["embed.weight"].data_ptr()
    for state, copy in zip([base, *experts], before, strict=True):
        for n in copy:
            assert torch.equal(state[n], copy[n])
    # Nor does a later change of the merge reach an input.
    for t in merged.values():
        if t.is_floating_point():
            t.add_(1)
        else:
            t.zero_()
    for n in before[0]:
        assert torch.equal(base[n], before[0][n])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_their_dtype_and_merge_in_float32(name, dtype):
    base, experts = {"w": torch.randn(50)}, [{"w": torch.randn(50)} for _ in range(4)]
    base, *experts = [{n: t.to(dtype) for n, t in s.items()} for s in [base, *experts]]
    low = get_method(name)(base, experts)["w"]
    full = get_method(name)({"w": base["w"].float()}, [{"w": e["w"].float()} for e in experts])["w"]
    assert low.dtype == dtype
    assert torch.equal(low, full.to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_experts_does_not_matter(base, experts, name):
    assert_states_close(
        get_method(name)(base, experts), get_method(name)(base, experts[::-1]), atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("task_arithmetic", {}), ("ties", {}), ("ties", {"keep": 0.5, "combine": "mean"})],
)
def test_a_scan_equals_separate_merges(base, experts, name, options):
    lams = [0.1, 0.5, 1.0]
    for lam, state in zip(lams, get_method(name).scan(base, experts, lams, **options), strict=True):
        alone = get_method(name)(base, experts, lam=lam, **options)
        assert all(torch.equal(state[n], alone[n]) for n in base)


# ---- Ties, by hand (methods.md H7) ---------------------------------------------------------------


def ties_columns(*taus, keep=1.0, combine="sum"):
    """The merged task vector of Ties for given task vectors (base 0, lambda 1)."""
    return ties(*column([0.0] * len(taus[0]), *taus), lam=1.0, keep=keep, combine=combine)[
        "w"
    ].tolist()


@pytest.mark.parametrize(
    ("combine", "expected"), [("sum", [3.0, 5.0, -3.0]), ("mean", [1.5, 5.0, -3.0])]
)
def test_agreement_and_conflict(combine, expected):
    """Column 0 agrees; in 1 and 2 the larger mass wins and only its entries count."""
    assert ties_columns([1.0, 5.0, 2.0], [2.0, -4.0, -3.0], combine=combine) == expected


def test_mass_decides_not_the_number_of_votes():
    assert ties_columns([5.0], [-1.0], [-2.0]) == [5.0]
    assert ties_columns([2.0], [-1.0], [-2.0]) == [-3.0]


@pytest.mark.parametrize(
    ("others", "expected"),
    [([1.0, 1.0, -1.0], 3.0), ([-1.0, -1.0, 1.0], -3.0), ([1.0, -1.0], -3.0)],
)
def test_exact_cancellation_takes_the_sign_of_the_network(others, expected):
    """+3 and -3 cancel: the sign of the sum of all elected signs decides; without one (last case)
    the negatives stay."""
    merged = ties_columns([3.0, *others], [-3.0, *others])
    assert merged[0] == expected


def test_the_global_sign_counts_columns_not_mass():
    """One column of +100 against two of -1: two elected signs are negative, so the cancelled column
    goes negative."""
    assert ties_columns([3.0, 100.0, -1.0, -1.0], [-3.0, 100.0, -1.0, -1.0])[0] == -3.0


def test_an_all_trimmed_column_stays_at_the_base():
    """keep = 1/2 of four entries: the two largest of each row survive, the last column nowhere."""
    merged = ties(
        *column([10.0] * 4, [14.0, 13.0, 11.0, 10.5], [15.0, 10.0, 13.0, 9.5]), lam=1.0, keep=0.5
    )["w"]
    assert merged.tolist() == [19.0, 13.0, 13.0, 10.0]


def test_a_tie_at_the_threshold_keeps_all_that_tie():
    """Two of five are to be kept; the second largest magnitude occurs three times, so four survive
    in any order."""
    assert ties_columns([2.0, -2.0, 5.0, 1.0, 2.0], keep=0.4) == [2.0, -2.0, 5.0, 0.0, 2.0]
    assert ties_columns([2.0, 5.0, 2.0, 1.0, -2.0], keep=0.4) == [2.0, 5.0, 2.0, 0.0, -2.0]


@pytest.mark.parametrize(
    ("n", "keep", "kept"), [(10, 0.2, 2), (1000, 0.2, 200), (3, 0.2, 0), (7, 1.0, 7), (5, 0.999, 4)]
)
def test_how_many_entries_survive(n, keep, kept):
    """int(D * keep), not one more as in the original code."""
    assert sum(v != 0 for v in ties_columns((torch.randperm(n) + 1.0).tolist(), keep=keep)) == kept


def test_top_k_is_global_over_the_encoder():
    base = {"big": torch.zeros(4), "small": torch.zeros(4)}
    merged = ties(
        base,
        [{"big": torch.tensor([4.0, 5.0, 6.0, 7.0]), "small": torch.tensor([0.1, 0.2, 0.3, 0.4])}],
        lam=1.0,
        keep=0.5,
    )
    assert merged["big"].tolist() == [4, 5, 6, 7]
    assert merged["small"].tolist() == [0, 0, 0, 0]


def test_tied_tensors_count_once_in_the_global_top_k():
    """Eight distinct entries, keep a quarter: two survive. Counted twice, the tied ones would leave
    room for three."""
    shared = torch.zeros(4)
    base = {"embed": shared, "other": torch.zeros(4), "tied": shared}
    tau = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expert = {"embed": tau, "other": torch.tensor([0.5, 0.6, 0.7, 3.5]), "tied": tau}
    merged = ties(base, [expert], lam=1.0, keep=0.25)
    assert merged["embed"].tolist() == [0, 0, 0, 4]
    assert merged["other"].tolist() == [0, 0, 0, 3.5]
    assert merged["tied"] is merged["embed"]


# ---- Ties against a slow reference ---------------------------------------------------------------


def slow_ties(taus: list[list[float]], keep: float, combine: str) -> list[float]:
    """Eq. 3 entry by entry, from methods.md A3, with exactly-int(D * keep) trimming and threshold
    ties kept."""
    d = len(taus[0])
    trimmed = []
    for row in taus:
        n_keep = math.floor(d * keep)
        ranked = sorted((abs(v) for v in row), reverse=True)
        trimmed.append([v if n_keep and abs(v) >= ranked[n_keep - 1] else 0.0 for v in row])
    sums = [sum(row[j] for row in trimmed) for j in range(d)]
    elected = [(s > 0) - (s < 0) for s in sums]
    votes = sum(elected)
    network = (votes > 0) - (votes < 0)
    merged = []
    for j in range(d):
        sign = elected[j] or network
        kept = [row[j] for row in trimmed if (row[j] > 0 if sign > 0 else row[j] < 0)]
        merged.append(sum(kept) if combine == "sum" else sum(kept) / max(1, len(kept)))
    return merged


@st.composite
def task_vectors(draw):
    """Small integers, so that threshold ties and exact cancellations are common."""
    t, d = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    return draw(
        st.lists(
            st.lists(st.integers(-3, 3).map(float), min_size=d, max_size=d), min_size=t, max_size=t
        )
    )


@given(
    taus=task_vectors(),
    keep=st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.75, 1.0]),
    combine=st.sampled_from(["sum", "mean"]),
)
def test_ties_equals_the_slow_reference(taus, keep, combine):
    cut = len(taus[0]) // 2  # two tensors, so that trimming must be global
    base = {"x": torch.ones(cut), "y": torch.ones(len(taus[0]) - cut)}
    experts = [{"x": 1 + torch.tensor(t[:cut]), "y": 1 + torch.tensor(t[cut:])} for t in taus]
    merged = ties(base, experts, lam=0.5, keep=keep, combine=combine)
    expected = [1 + 0.5 * v for v in slow_ties(taus, keep, combine)]
    assert torch.cat([merged["x"], merged["y"]]).tolist() == pytest.approx(expected, abs=1e-6)


# ---- broken input --------------------------------------------------------------------------------


def broken(kind, state):
    state = dict(state)
    if kind == "missing":
        for i in range(7):
            del state[f"layer{i}"]
    elif kind == "extra":
        state |= {f"head{i}": torch.zeros(2) for i in range(7)}
    elif kind == "shape":
        state |= {f"layer{i}": torch.zeros(2, 1) for i in range(7)}
    elif kind == "dtype":
        state |= {f"layer{i}": torch.zeros(2, dtype=torch.float16) for i in range(7)}
    else:
        state |= {f"layer{i}": torch.tensor([0.0, float(kind)]) for i in range(7)}
    return state


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["missing", "extra", "shape", "dtype", "nan", "inf"])
def test_weights_that_do_not_fit_are_refused_by_name(name, kind):
    good = {f"layer{i}": torch.zeros(2) for i in range(9)}
    prefix = "head" if kind == "extra" else "layer"
    with pytest.raises(StateDictError) as error:
        get_method(name)(good, [good, broken(kind, good)])
    said = str(error.value)
    assert "Expert 1" in said
    assert (
        all(f"{prefix}{i}" in said for i in range(5))
        and f"{prefix}5" not in said
        and "2 more" in said
    )


def test_a_base_with_nan_and_no_experts_are_refused():
    good = {"w": torch.zeros(2)}
    with pytest.raises(StateDictError, match="base holds NaN or inf in w"):
        wa({"w": torch.tensor([float("nan"), 0.0])}, [good])
    with pytest.raises(StateDictError, match="at least one expert"):
        wa(good, [])


def test_a_scan_checks_its_weights_too():
    good, bad = {"w": torch.zeros(2)}, {"w": torch.tensor([float("inf"), 0.0])}
    with pytest.raises(StateDictError):
        next(get_method("ties").scan(good, [bad], [0.1]))


def test_unknown_names_name_the_nearest():
    with pytest.raises(UnknownNameError, match="Nearest: 'task_arithmetic'"):
        get_method("task_arithmetics")
    with pytest.raises(UnknownNameError, match="Nearest: 'keep'"):
        ties(*column([0.0], [1.0]), kep=0.2)
    with pytest.raises(UnknownNameError, match="option of method 'weight_averaging'"):
        get_method("weight_averaging")(*column([0.0], [1.0]), lam=1.0)


@pytest.mark.parametrize("keep", [0, -0.1, 1.0001, 20, float("nan")])
def test_keep_outside_its_range_is_refused(keep):
    with pytest.raises(ConfigError, match="keep"):
        ties(*column([0.0], [1.0]), keep=keep)


def test_unknown_combination_is_refused():
    with pytest.raises(ConfigError, match="combine"):
        ties(*column([0.0], [1.0]), combine="max")


def test_a_method_of_ones_own_registers_itself():
    @method("only_first", label="First", short="1st")
    def only_first(base, experts, *, lam=0.5):
        return {n: base[n] + lam * (experts[0][n] - base[n]) for n in base}

    try:
        mine = get_method("only_first")
        assert mine.has_lam and mine.options == ("lam",) and mine.label == "First"
        states = list(mine.scan(*column([0.0], [2.0]), [0.25, 1.0]))
        assert [s["w"].item() for s in states] == [0.5, 2.0]
    finally:
        del METHODS["only_first"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda base, experts: {n: t / 0 for n, t in base.items()}, "NaN or inf"),
        (lambda base, experts: {n: t.double() for n, t in base.items()}, "dtype"),
        (
            lambda base, experts: {n: t for n, t in base.items() if n != min(base)},
            "keys that differ",
        ),
        (lambda base, experts: [dict(base)], "must return 1 state dict"),
        (lambda base, experts: None, "must return 1 state dict"),
    ],
)
def test_what_a_method_gives_is_checked(function, said):
    base = {"a": torch.ones(2), "b": torch.ones(1, 2)}
    with pytest.raises(StateDictError, match=said):
        Method("broken", "Broken", "Broken", function)(base, [base, base])


def test_one_encoder_per_task_means_as_many_as_experts():
    base = {"a": torch.ones(2)}
    with pytest.raises(StateDictError, match="must return 3 state dicts"):
        Method(
            "broken", "Broken", "Broken", lambda base, experts: experts[:2], gives="one per task"
        )(base, [base] * 3)
