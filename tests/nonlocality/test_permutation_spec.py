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
    moved = spec.apply(permutations, state)
    assert not any(torch.equal(moved[n], state[n]) for n in state), "nothing moved shows nothing"
    before, after, W = network.features(state), network.features(moved), head(spec.width)
    assert before.std() > 1e-2
    assert apart(after, before[:, spec.feature_index(permutations)]) < ROUNDING
    assert apart(spec.permute_head(W, permutations).logits(after), W.logits(before)) < ROUNDING


def test_no_axis_of_a_spec_is_idle(network):
    """Whichever axis is left out, the function changes: only the bias of the keys adds the same to
    every score of a softmax."""
    spec, state = network.spec, network.state(0)
    permutations = drawn(spec, 1)
    before = network.features(state)[:, spec.feature_index(permutations)]
    for name, groups in spec.axes.items():
        for axis in (i for i, g in enumerate(groups) if g):
            fewer = (*groups[:axis], FIXED, *groups[axis + 1 :])
            less = replace(spec, axes={**spec.axes, name: fewer})
            changed = apart(network.features(less.apply(permutations, state)), before)
            idle = name.endswith(("self.key.bias", "k_proj.bias"))
            assert changed < ROUNDING if idle else changed > 5 * ROUNDING, (name, axis, changed)


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
    indices = {"in": [2, 0, 1], "order": [1, 0], "rows": [3, 2, 0, 1]}
    permutations = {n: torch.tensor(index) for n, index in indices.items()}
    moved = TINY.apply(permutations, state)
    for i, row in enumerate(indices["rows"]):
        assert moved["b"][i] == state["b"][row]
        for j, column in enumerate(indices["in"]):
            assert moved["w"][i, j] == state["w"][row, column]
    assert torch.equal(moved["bias"], state["bias"].flip(1))
    assert TINY.feature_index(permutations).tolist() == [2, 0, 1]


@seeds
def test_inverse_and_identity(network, seed):
    spec, state, p = network.spec, network.state(seed), drawn(network.spec, 10 * seed)
    assert equal(spec.apply(spec.identity(), state), state)
    assert equal(spec.apply(inverse(p), spec.apply(p, state)), state)


def test_random_permutations_reach_every_order_equally_often():
    generator = seeded(0)
    draws = [random_permutations(TINY, generator) for _ in range(1600)]
    rows = Counter(tuple(d["rows"].tolist()) for d in draws)
    assert len(rows) == 8, "two orders of two blocks, two orders inside each"
    # 200 expected, standard deviation 13
    assert min(rows.values()) > 140 and max(rows.values()) < 260
    assert len({tuple(d["in"].tolist()) for d in draws}) == 6


def test_the_state_given_stays_as_it_was_and_dtypes_are_kept(network):
    state = {n: t.half() for n, t in network.state(0).items()}
    copy = {n: t.clone() for n, t in state.items()}
    moved = network.spec.apply(drawn(network.spec, 0), state)
    assert {t.dtype for t in moved.values()} == {torch.float16}
    for t in moved.values():
        t.zero_()
    assert equal(state, copy)


def test_heads_may_be_stacked(networks):
    spec, W = networks["bert"].spec, head(24)
    permutations, two = drawn(spec, 0), Head(torch.stack([W.weight] * 2), torch.stack([W.bias] * 2))
    stacked = spec.permute_head(two, permutations)
    assert torch.equal(stacked.weight[1], spec.permute_head(W, permutations).weight)


# ---- broken input --------------------------------------------------------------------------------


def test_states_of_another_network_are_refused_by_name(networks):
    spec, state = networks["bert"].spec, networks["bert"].state(0)
    name, pooler = "encoder.layer.1.attention.self.key.weight", "pooler.dense.weight"
    for wrong, says in (
        ({n: t for n, t in state.items() if n != name}, f"differ in {name}.*encoder_state"),
        (state | {pooler: torch.zeros(24, 24)}, f"differ in {pooler}"),
        (networks["t5_gated"].state(0), "wi_0"),
    ):
        with pytest.raises(StateDictError, match=says):
            (networks["t5"].spec if says == "wi_0" else spec).apply({}, wrong)


def test_unknown_architectures_are_named():
    with pytest.raises(UnknownNameError, match=r"'gpt2'.*clip_vision_model"):
        spec_for(SimpleNamespace(model_type="gpt2"))
