"""State dicts that are wrong in every way, into every method that takes weights alone."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from near import normal, seeded

from mergelib.core.errors import MergelibError
from mergelib.merging import METHODS, ONE, get_method
from mergelib.merging.states import check_like

from .support import typed

METHOD_NAMES = sorted(
    n for n, m in METHODS.items() if not m.needs and m.function.__module__.startswith("mergelib.")
)
NAMES = "float32 float32 float32 float16 bfloat16 float64 int64 bool"
DTYPES = [getattr(torch, name) for name in NAMES.split()]
SHAPES = [(), (0,), (1,), (3,), (2, 3), (4, 4), (0, 3), (2, 2, 2)]
NUMBERS = [0.0, 1.0, -1.0, 0.5, 1e-30, 6e4, -6e4, 3e38, -3e38]
REFUSED = "missing,no tensor,sparse,meta,no mapping,number as key,float8,quantised".split(",")
FAULTS = [*REFUSED, *"none none none extra shape dtype nan inf complex empty".split()]


def tensor(shape, dtype, seed, scale):
    t = torch.randn(shape, generator=seeded(seed), dtype=torch.float64) * scale
    limits = torch.finfo(dtype) if dtype.is_floating_point else None
    return t.clamp(limits.min, limits.max).to(dtype) if limits else t.clamp(-9, 9).to(dtype)


def broken(t, fault):
    """What stands in the place of a tensor."""
    return {
        "shape": torch.zeros(5, 1),
        "dtype": t.to(torch.int8),
        "nan": torch.full(t.shape, torch.nan),
        "inf": torch.full(t.shape, torch.inf),
        "no tensor": "weights",
        "sparse": torch.zeros(2, 2).to_sparse(),
        "complex": t.to(torch.complex64),
        "meta": torch.zeros(t.shape, device="meta"),
        "float8": t.float().to(torch.float8_e4m3fn),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    }[fault]


@st.composite
def states(draw):
    """base, experts, and the fault that was planted."""
    form = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES))
    forms = draw(st.lists(form, max_size=4))
    scale = draw(st.sampled_from(NUMBERS))
    base = {f"layer.{i}.weight": tensor(*form, i, scale) for i, form in enumerate(forms)}
    experts = [
        {
            k: tensor(v.shape, v.dtype, 10 * e + i, draw(st.sampled_from(NUMBERS)))
            for i, (k, v) in enumerate(base.items())
        }
        for e in range(draw(st.integers(0, 3)))
    ]
    everyone, fault = [base, *experts], draw(st.sampled_from(FAULTS))
    place = draw(st.integers(0, len(experts)))
    state = everyone[place]
    if fault == "none" or not state:
        return base, experts, "none"
    key = draw(st.sampled_from(sorted(state)))
    if fault == "missing":
        del state[key]
    elif fault == "number as key":
        state[7] = state[key]
    elif fault == "extra":
        state["head.weight"] = state[key]
    elif fault == "no mapping":
        everyone[place] = [state[key]]
    elif fault == "empty":
        state.clear()
    else:
        state[key] = broken(state[key], fault)
    return everyone[0], everyone[1:], fault


def whole(name, base, experts, result):
    """``result`` is what the method promises, or an error of ours."""
    if isinstance(result, MergelibError):
        return
    method = get_method(name)
    states = [result] if method.gives == ONE else result
    assert len(states) == (1 if method.gives == ONE else len(experts))
    for state in states:
        check_like(name, state, base, "")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@given(st.sampled_from(METHOD_NAMES), states())
@example("ties", ({}, [{}], "none"))
@example("ties", ({"n": torch.tensor([0])}, [{"n": torch.tensor([0])}], "none"))
def test_any_weights(name, given_):
    base, experts, fault = given_
    found = typed(lambda: get_method(name)(base, experts))
    whole(name, base, experts, found)
    if fault in REFUSED and experts:
        assert isinstance(found, MergelibError), fault


option_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["sum", "mean", 0, 1, 1.0, 0.5, [], {}, (), 10**30, 1e308, -1])
)


BASE = {"a": normal(4, 3), "b": normal(5)}
EXPERTS = [{k: v + 0.1 * normal(*v.shape, seed=i) for k, v in BASE.items()} for i in (1, 2)]


@given(st.sampled_from(METHOD_NAMES), st.data())
def test_any_options(name, data):
    method = get_method(name)
    options = data.draw(
        st.dictionaries(st.sampled_from([*method.options, "nonsense"]), option_values, max_size=3)
    )
    whole(name, BASE, EXPERTS, typed(lambda: method(BASE, EXPERTS, **options)))


@given(
    st.sampled_from([n for n in METHOD_NAMES if METHODS[n].has_lam]),
    st.lists(option_values, max_size=3),
)
def test_any_lambdas_of_a_scan(name, lams):
    method = get_method(name)
    found = typed(lambda: list(method.scan(BASE, EXPERTS, lams)))
    for result in [] if isinstance(found, MergelibError) else found:
        whole(name, BASE, EXPERTS, result)
