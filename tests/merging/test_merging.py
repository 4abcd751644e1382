"""Weight Averaging, Task Arithmetic and Ties: closed forms, hand-worked columns, a slow reference,
broken input."""

import pytest
import torch
from test_every_method import on_two_tensors, tau_of
from ties_reference import merged_vector

from mergelib.core.errors import StateDictError, UnknownNameError
from mergelib.merging import Method, get_method

NAMES = ["weight_averaging", "task_arithmetic", "ties"]


ties, wa = get_method("ties"), get_method("weight_averaging")


# ---- Ties, by hand (methods.md H7) ---------------------------------------------------------------


def ties_of(taus, **options):
    """The merged task vector of Ties for given task vectors (lambda 1)."""
    return tau_of(ties(*on_two_tensors(taus), lam=1.0, **options))


@pytest.mark.parametrize(
    "taus, options, expected",
    [
        # Column 0 agrees; in 1 and 2 the larger mass wins and only its entries count.
        ([[1, 5, 2], [2, -4, -3]], {}, [3, 5, -3]),
        ([[1, 5, 2], [2, -4, -3]], {"combine": "mean"}, [1.5, 5, -3]),
        # Mass decides, not the number of votes.
        ([[5, 2], [-1, -1], [-2, -2]], {}, [5, -3]),
        # +3 and -3 cancel: the sign of the sum of all elected signs decides; without one the
        # negatives stay. The signs count columns, not mass.
        ([[3, 1, 1, -1], [-3, 1, 1, -1]], {}, [3, 2, 2, -2]),
        ([[3, -1, -1, 1], [-3, -1, -1, 1]], {}, [-3, -2, -2, 2]),
        ([[3, 1, -1], [-3, 1, -1]], {}, [-3, 2, -2]),
        ([[3, 100, -1, -1], [-3, 100, -1, -1]], {}, [-3, 200, -2, -2]),
        # The two largest of each row survive, the last column nowhere.
        ([[4, 3, 1, 0.5], [5, 0, 3, -0.5]], {"keep": 0.5}, [9, 3, 3, 0]),
        # Two of five are to be kept; the second largest magnitude occurs three times.
        ([[2, -2, 5, 1, 2]], {"keep": 0.4}, [2, -2, 5, 0, 2]),
        ([[2, 5, 2, 1, -2]], {"keep": 0.4}, [2, 5, 2, 0, -2]),
    ],
)
def test_columns_by_hand(taus, options, expected):
    rows, options = torch.tensor(taus).float(), {"keep": 1.0, "combine": "sum"} | options
    assert ties_of(rows.tolist(), **options) == expected
    assert merged_vector(list(rows), **options).tolist() == expected


@pytest.mark.parametrize(
    "n, keep, kept", [(10, 0.2, 2), (1000, 0.2, 200), (3, 0.2, 0), (7, 1.0, 7), (5, 0.999, 4)]
)
def test_how_many_entries_survive(n, keep, kept):
    """int(D * keep), not one more as in the original code."""
    found = ties_of([(torch.randperm(n) + 1.0).tolist()], keep=keep)
    assert sum(v != 0 for v in found) == kept


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


# ---- broken input --------------------------------------------------------------------------------


BROKEN = {
    "missing": None,
    "extra": torch.zeros(2),
    "shape": torch.zeros(2, 1),
    "dtype": torch.zeros(2, dtype=torch.float16),
    "nan": torch.tensor([0.0, torch.nan]),
    "inf": torch.tensor([0.0, torch.inf]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", BROKEN)
def test_weights_that_do_not_fit_are_refused_by_name(name, kind):
    good = {f"layer{i}": torch.zeros(2) for i in range(9)}
    prefix = "head" if kind == "extra" else "layer"
    bad = good | {f"{prefix}{i}": BROKEN[kind] for i in range(7)}
    with pytest.raises(StateDictError) as error:
        get_method(name)(good, [good, {n: t for n, t in bad.items() if t is not None}])
    said = str(error.value)
    assert "Expert 1" in said and "2 more" in said
    assert [f"{prefix}{i}" in said for i in range(7)] == [True] * 5 + [False] * 2


def test_a_base_with_nan_and_no_experts_are_refused():
    good, bad = {"w": torch.zeros(2)}, {"w": torch.tensor([float("nan"), 0.0])}
    with pytest.raises(StateDictError, match="base holds NaN or inf in w"):
        wa(bad, [good])
    with pytest.raises(StateDictError, match="Expert 0 holds NaN or inf in w"):
        next(ties.scan(good, [bad], [0.1]))
    with pytest.raises(StateDictError, match="at least one expert"):
        wa(good, [])


def test_unknown_names_name_the_nearest():
    states = on_two_tensors([[1.0, 2.0]])
    with pytest.raises(UnknownNameError, match="Nearest: 'task_arithmetic'"):
        get_method("task_arithmetics")
    with pytest.raises(UnknownNameError, match="Nearest: 'keep'"):
        ties(*states, kep=0.2)
    with pytest.raises(UnknownNameError, match="option of method 'weight_averaging'"):
        wa(*states, lam=1.0)


def test_one_encoder_per_task_means_as_many_as_experts():
    base = {"a": torch.ones(2)}
    broken = Method("", "", "", lambda base, experts: experts[:2], gives="one per task")
    with pytest.raises(StateDictError, match="must return 3 state dicts"):
        broken(base, [base] * 3)
