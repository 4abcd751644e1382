"""Matching finds planted permutations, leaves local models alone, and reaches what trying
everything reaches."""

import itertools

import pytest
import torch
from near import normal

from benchmarks.permutation_matching import inverse
from mergelib.nonlocality.matching import assign, best_move, weight_matching
from mergelib.nonlocality.spec import FIXED, Group, PermutationSpec

from .conftest import drawn, seeds


def noisy(state, share):
    """Every tensor with noise of ``share`` of its own standard deviation."""
    return {
        n: t + share * t.std() * normal(*t.shape, seed=77 + i)
        for i, (n, t) in enumerate(state.items())
    }


def wrong_groups(found, wanted):
    return [g for g in wanted if not torch.equal(found[g], wanted[g])]


def rises(objective):
    steps = itertools.pairwise(objective)
    return all(later >= earlier - 1e-9 * abs(earlier) for earlier, later in steps)


def objective_by_distance(spec, permutations, a, b):
    """<A, P(B)> from |A|^2 + |B|^2 - |A - P(B)|^2, in float64."""

    def squared(state):
        return sum(float(t.square().sum()) for t in state.values())

    a, b = ({n: t.double() for n, t in state.items()} for state in (a, b))
    moved = spec.apply(permutations, b)
    return (squared(a) + squared(b) - squared({n: a[n] - moved[n] for n in a})) / 2


# ---- planted permutations ------------------------------------------------------------------------


@seeds
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_weight_matching_finds_a_planted_permutation(network, noise, seed):
    spec, a, planted = network.spec, network.state(seed), drawn(network.spec, 50 + seed)
    b = spec.apply(planted, noisy(a, noise))
    matching = weight_matching(spec, a, b, seed=seed)
    assert not wrong_groups(matching.permutations, inverse(planted))
    assert matching.converged and rises(matching.objective)
    first, last = (
        objective_by_distance(spec, p, a, b) for p in (spec.identity(), matching.permutations)
    )
    assert matching.objective[-1] == pytest.approx(last, rel=1e-5)
    assert matching.objective[0] == pytest.approx(first, rel=1e-5, abs=1e-2)


def test_local_models_stay_as_they_are(network):
    """Fine-tuned from one base: near weights, same order."""
    a, spec = network.state(0), network.spec
    b = noisy(a, 0.2)
    matching = weight_matching(spec, a, b)
    assert not wrong_groups(matching.permutations, spec.identity()) and matching.converged


def test_strangers_never_get_farther_apart(network):
    spec, a, b = network.spec, network.state(0), network.state(1)
    matching = weight_matching(spec, a, b)
    assert matching.converged and rises(matching.objective)
    assert matching.objective[-1] > matching.objective[0] + 1


def test_the_first_sweep_goes_from_what_is_anchored(networks):
    """The vocabulary ties the residual stream down before anything leans on it, whatever B's order
    elsewhere."""
    for name in ("bert", "t5", "clip"):
        seen = []

        def watch(families, seen=seen):
            seen.append(list(families))
            return families

        spec, a = networks[name].spec, networks[name].state(0)
        matching = weight_matching(spec, a, spec.apply(drawn(spec, 1), a), progress=watch)
        assert seen[0][0] == "residual" and sorted(seen[0]) == sorted(spec.families)
        assert len(seen) == matching.sweeps == 2, "one to find it, one to see that nothing gains"


# ---- against trying everything -------------------------------------------------------------------

HEADS = PermutationSpec(
    "three heads",
    {"heads": Group(3), "qk": Group(6, within="heads"), "vo": Group(6, within="heads")},
    {"q": ("qk", FIXED), "k": ("qk", FIXED), "v": ("vo", FIXED), "o": (FIXED, "vo")}
    | {"bias": (FIXED, "heads")},
    width=5,
)
LAYERS = PermutationSpec(
    "two layers",
    {"first": Group(4), "second": Group(3)},
    {"w1": ("first", FIXED), "b1": ("first",), "w2": ("second", "first"), "b2": ("second",)}
    | {"w3": (FIXED, "second")},
    width=2,
)


def small(spec, seed):
    """A state whose fixed axes have five entries."""
    sizes = {n: g.size for n, g in spec.groups.items()} | {FIXED: 5}
    return {
        n: normal(*(sizes[g] for g in groups), seed=seed * 100 + i)
        for i, (n, groups) in enumerate(spec.axes.items())
    }


def orders(n):
    return [torch.tensor(p) for p in itertools.permutations(range(n))]


def all_of_heads():
    """The 6 x 8 x 8 joint permutations of three heads with two rows each, built without the
    package."""
    for order in orders(3):
        inner = [
            torch.tensor(
                [
                    2 * h + (i ^ f)
                    for h, f in zip(order.tolist(), flips, strict=True)
                    for i in (0, 1)
                ]
            )
            for flips in itertools.product((0, 1), repeat=3)
        ]
        for qk, vo in itertools.product(inner, inner):
            yield {"heads": order, "qk": qk, "vo": vo}


@pytest.mark.parametrize("seed", range(4))
def test_one_family_reaches_the_best_of_all_joint_permutations(seed):
    a, b = small(HEADS, seed), small(HEADS, 30 + seed)
    values = [objective_by_distance(HEADS, p, a, b) for p in all_of_heads()]
    assert len(values) == 384
    matching = weight_matching(HEADS, a, b)
    found = objective_by_distance(HEADS, matching.permutations, a, b)
    assert found == pytest.approx(max(values), rel=1e-5)
    assert matching.objective[-1] == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_two_families_reach_a_point_that_neither_can_leave_alone(seed):
    a, b = small(LAYERS, seed), small(LAYERS, 30 + seed)
    found = weight_matching(LAYERS, a, b, seed=seed)
    here = objective_by_distance(LAYERS, found.permutations, a, b)
    for name, group in LAYERS.groups.items():
        moved = (found.permutations | {name: p} for p in orders(group.size))
        best = max(objective_by_distance(LAYERS, p, a, b) for p in moved)
        assert here == pytest.approx(best, rel=1e-5, abs=1e-5)
    assert here >= objective_by_distance(LAYERS, LAYERS.identity(), a, b) - 1e-5


def test_assignments_are_the_best_and_batched():
    profit = normal(5, 4, 4)
    for matrix, index in zip(profit, assign(profit), strict=True):
        best = max(float(matrix[torch.arange(4), p].sum()) for p in orders(4))
        assert float(matrix[torch.arange(4), index].sum()) == pytest.approx(best)


def test_heads_are_paired_by_what_they_can_earn_inside():
    """Head 0 has units that would match head 1 perfectly in the other order; sums over blocks do
    not see it."""
    spec = PermutationSpec(
        "two heads",
        {"heads": Group(2), "qk": Group(4, within="heads")},
        {"q": ("qk", FIXED)},
        width=1,
    )
    profit = torch.tensor([[2.0, 2, 0, 3], [2, 2, 3, 0], [0, 3, 2, 2], [3, 0, 2, 2]])
    moves, gain = best_move(spec, "heads", {"heads": torch.zeros(2, 2), "qk": profit})
    assert moves["heads"].tolist() == [1, 0] and moves["qk"].tolist() == [3, 2, 1, 0]
    assert gain == pytest.approx(12 - 8)


def test_what_cannot_gain_does_not_move():
    """Units that are equal may stand in any order: they stay, and nothing that is not there is
    moved."""
    flat = {n: torch.ones_like(t) for n, t in small(LAYERS, 0).items()}
    zero = {n: torch.zeros_like(t) for n, t in flat.items()}
    for a, b in ((flat, flat), (small(LAYERS, 0), flat), (zero, zero), (small(LAYERS, 0), zero)):
        matching = weight_matching(LAYERS, a, b)
        assert not wrong_groups(matching.permutations, LAYERS.identity()) and matching.converged


# ---- sweeps --------------------------------------------------------------------------------------


def test_sweeps_are_a_limit(networks):
    network = networks["bert"]
    a, b = network.state(0), network.state(1)
    cut, whole = (weight_matching(network.spec, a, b, sweeps=n) for n in (1, 100))
    assert cut.sweeps == 1 and not cut.converged
    assert whole.converged and whole.objective[:2] == cut.objective


@pytest.mark.cuda
def test_a_gpu_finds_the_same(networks):
    for name in ("bert", "t5_gated", "clip"):
        spec, a = networks[name].spec, networks[name].state(0)
        planted = drawn(spec, 1)
        gpu = [
            {n: t.cuda() for n, t in state.items()}
            for state in (a, spec.apply(planted, noisy(a, 0.1)))
        ]
        assert not wrong_groups(weight_matching(spec, *gpu).permutations, inverse(planted))
