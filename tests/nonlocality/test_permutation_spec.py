"""Every permutation of a spec leaves the function; a spec with one axis less does not."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from near import ROUNDING, apart, equal, normal, seeded

from benchmarks.permutation_matching import inverse, random_permutations
from mergelib.core.errors import StateDictError, UnknownNameError
from mergelib.core.types import Head
from mergelib.nonlocality.architectures import spec_for
from mergelib.nonlocality.permute import apply, feature_index, identity, permute_head
from mergelib.nonlocality.spec import FIXED, Group, PermutationSpec

from .conftest import drawn, seeds


def head(d, C=4):
    return Head(normal(C, d, seed=9), normal(C, seed=10))


# ---- the function stays --------------------------------------------------------------------------


@seeds
def test_any_composition_leaves_features_and_logits(network, seed):
    spec, state = network.spec, network.state(seed)
    first, then = drawn(spec, 100 + seed), drawn(spec, seed)
    permutations = {n: index[then[n]] for n, index in first.items()}
    moved = apply(spec, permutations, state)
    assert all(not torch.equal(moved[n], state[n]) for n in state), (
        "a permutation that moves nothing shows nothing"
    )
    before, after, W = network.features(state), network.features(moved), head(spec.width)
    assert before.std() > 1e-2
    assert apart(after, before[:, feature_index(spec, permutations)]) < ROUNDING
    assert apart(permute_head(W, spec, permutations).logits(after), W.logits(before)) < ROUNDING


def test_no_axis_of_a_spec_is_idle(network):
    """Whichever axis is left out, the function changes: only the bias of the keys adds the same to
    every score of a softmax."""
    spec, state = network.spec, network.state(0)
    permutations = drawn(spec, 1)
    before = network.features(state)[:, feature_index(spec, permutations)]
    for name, groups in spec.axes.items():
        for axis in (i for i, g in enumerate(groups) if g):
            less = replace(
                spec, axes={**spec.axes, name: (*groups[:axis], FIXED, *groups[axis + 1 :])}
            )
            changed = apart(network.features(apply(less, permutations, state)), before)
            idle = name.endswith(("self.key.bias", "k_proj.bias"))
            assert changed < ROUNDING if idle else changed > 5 * ROUNDING, (
                f"{name}, axis {axis}: {changed}"
            )


# ---- permutations as such ------------------------------------------------------------------------

TINY = PermutationSpec(
    "tiny",
    {"in": Group(3), "order": Group(2), "rows": Group(4, within="order")},
    {"w": ("rows", "in"), "b": ("rows",), "bias": (FIXED, "order"), "v": (FIXED, "in")},
    width=3,
    feature="in",
)


def tiny_state():
    shapes = {"w": (4, 3), "b": (4,), "bias": (5, 2), "v": (7, 3)}
    return {n: normal(*shape) for n, shape in shapes.items()}


def test_slots_take_the_unit_that_the_index_names():
    state = tiny_state()
    permutations = {
        "in": torch.tensor([2, 0, 1]),
        "order": torch.tensor([1, 0]),
        "rows": torch.tensor([3, 2, 0, 1]),
    }
    moved = apply(TINY, permutations, state)
    for i, row in enumerate([3, 2, 0, 1]):
        assert moved["b"][i] == state["b"][row]
        for j, column in enumerate([2, 0, 1]):
            assert moved["w"][i, j] == state["w"][row, column]
    assert torch.equal(moved["bias"], state["bias"].flip(1))
    assert feature_index(TINY, permutations).tolist() == [2, 0, 1]


@seeds
def test_inverse_and_identity(network, seed):
    spec, state, p = network.spec, network.state(seed), drawn(network.spec, 10 * seed)
    assert equal(apply(spec, identity(spec), state), state)
    assert equal(apply(spec, inverse(p), apply(spec, p, state)), state)


def test_random_permutations_reach_every_order_equally_often():
    generator = seeded(0)
    draws = [random_permutations(TINY, generator) for _ in range(1600)]
    rows = Counter(tuple(d["rows"].tolist()) for d in draws)
    assert len(rows) == 8, "two orders of two blocks, two orders inside each"
    assert (
        min(rows.values()) > 140 and max(rows.values()) < 260
    )  # 200 expected, standard deviation 13
    assert len({tuple(d["in"].tolist()) for d in draws}) == 6


def test_the_state_given_stays_as_it_was(network):
    state = network.state(0)
    copy = {n: t.clone() for n, t in state.items()}
    moved = apply(network.spec, drawn(network.spec, 0), state)
    for t in moved.values():
        t.zero_()
    assert equal(state, copy)


def test_dtypes_are_kept_and_heads_may_be_stacked(networks):
    network = networks["bert"]
    half = {n: t.half() for n, t in network.state(0).items()}
    assert {t.dtype for t in apply(network.spec, drawn(network.spec, 0), half).values()} == {
        torch.float16
    }
    permutations, W = drawn(network.spec, 0), head(24)
    stacked = permute_head(
        Head(W.weight.expand(2, -1, -1), W.bias.expand(2, -1)), network.spec, permutations
    )
    assert torch.equal(stacked.weight[1], permute_head(W, network.spec, permutations).weight)


# ---- broken input --------------------------------------------------------------------------------


def test_states_of_another_network_are_refused_by_name(networks):
    network = networks["bert"]
    spec, state, nothing = network.spec, network.state(0), identity(network.spec)
    name = "encoder.layer.1.attention.self.key.weight"
    with pytest.raises(StateDictError, match=f"differ in {name}.*encoder_state"):
        apply(spec, nothing, {n: t for n, t in state.items() if n != name})
    with pytest.raises(StateDictError, match=r"differ in pooler\.dense\.weight"):
        apply(spec, nothing, {**state, "pooler.dense.weight": torch.zeros(24, 24)})
    with pytest.raises(StateDictError, match="wi_0"):
        apply(networks["t5"].spec, identity(networks["t5"].spec), networks["t5_gated"].state(0))


def test_unknown_architectures_are_named():
    with pytest.raises(UnknownNameError, match=r"'gpt2'.*clip_vision_model"):
        spec_for(SimpleNamespace(model_type="gpt2"))
