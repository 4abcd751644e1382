"""Corrections: TACT and REPAIR against closed forms and measurements, folded against attached,
variance collapse, broken input."""

import copy
import functools
import math
from types import SimpleNamespace

import pytest
import torch
from near import ROUNDING, apart, equal, normal, seeded
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from mergelib.core.bootstrap import counts
from mergelib.core.errors import DataError, UnknownNameError
from mergelib.encoders import encoder_state, load_state
from mergelib.nonlocality.correction import Correction, attach, fold, watched
from mergelib.nonlocality.sites import Fold, Site, sites_for
from mergelib.nonlocality.statistics import (
    EPS,
    SILENT,
    InputMoments,
    Statistics,
    _Moments,
    input_moments,
    mean_and_deviation,
    measure,
    resampled_ratio,
    variance_ratio,
)
from mergelib.nonlocality.tact import channel_affine, match_statistics, mean_statistics

from .conftest import make

# Sites in a block, and how many of all are not folded into weights.
KINDS = {
    "bert": (4, 0),
    "roberta": (4, 0),
    "t5": (4, 8),
    "t5_gated": (5, 10),
    "clip": (4, 2),
    "vit_mean": (4, 2),
}
made = functools.cache(make)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def module_of(kind, seed):
    return made(kind).module(made(kind).state(seed))


def batches_of(kind, seed=0, sizes=(5, 3, 6)):
    """Texts of different lengths, padded, or images."""
    g, batch = seeded(seed), dict(made(kind).batch)
    if "pixel_values" in batch:
        batch["pixel_values"] = torch.randn(batch["pixel_values"].shape, generator=g)
    else:
        ids = torch.randint(5, 30, batch["input_ids"].shape, generator=g)
        batch["input_ids"] = ids * batch["attention_mask"]
    parts = zip(*(t[: sum(sizes)].split(sizes) for t in batch.values()), strict=True)
    return [dict(zip(batch, part, strict=True)) for part in parts]


def joined(batches):
    return {n: torch.cat([b[n] for b in batches]) for n in batches[0]}


@torch.no_grad()
def features(module, batches):
    return torch.cat([module(**b) for b in batches])


def fitted(kind):
    """A merged encoder, its sites and inputs, and an expert's statistics."""
    sites, batches = sites_for(made(kind).config), batches_of(kind)
    return module_of(kind, 1), sites, batches, measure(module_of(kind, 2), sites, batches)


def tact_of(kind):
    """The same, but last the correction that gives the merge these statistics."""
    merged, sites, batches, expert = fitted(kind)
    return merged, sites, batches, match_statistics(merged, sites, [joined(batches)], expert)


# ---- where ---------------------------------------------------------------------------------------


def test_sites_stand_in_the_order_of_the_forward_pass(kind):
    (module, sites, batches, _), seen = fitted(kind), []
    with watched(module.transformer, sites, lambda site, y: seen.append((site.name, y.shape[-1]))):
        features(module, batches[:1])
    for site, (name, width) in zip(sites, seen, strict=True):
        heads = 18 if name.endswith("SelfAttention.o.input") else 24
        assert (name, width) == (site.name, 40 if site.kind == "hidden" else heads)
    assert len(sites) == 1 + KINDS[kind][0] * 2
    assert [s.block for s in sites] == sorted(s.block for s in sites) and sites[-1].kind == "block"


# ---- what is measured ----------------------------------------------------------------------------


def slow_rows(module, site, batches):
    """Every real token's activations at a site, ``[M, c]``, taken one input and one token at a
    time."""
    part, rows = module.transformer.get_submodule(site.module), []
    for batch in batches:
        seen = []
        handles = [
            part.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0])),
            part.register_forward_hook(lambda m, args, out, seen=seen: seen.append(out)),
        ]
        features(module, [batch])
        for handle in handles:
            handle.remove()
        values = seen[site.side == "output"]
        mask = batch.get("attention_mask", torch.ones(values.shape[:2]))
        rows += [values[i, j] for i in range(len(values)) for j in mask[i].nonzero()[:, 0]]
    return torch.stack(rows).double()


def test_statistics_equal_slow_ones_over_real_tokens(kind):
    module, sites, batches, _ = fitted(kind)
    found = measure(module, sites, batches)
    for site in sites:
        rows = slow_rows(module, site, batches)
        assert apart(found.mean[site.name], rows.mean(0)) < ROUNDING
        assert apart(found.std[site.name], rows.std(0, correction=0)) < ROUNDING


@pytest.mark.parametrize("mean, deviation", [(0, 1), (1e4, 1e-1), (-3e5, 2), (7, 0), (0, 1e-15)])
def test_float32_rows_give_the_float64_mean_and_deviation(mean, deviation):
    """Rounding of the given rows is in both; only that of the computation may differ, in one batch
    as in several. Sums of squares in float32 would lose a small deviation."""
    rows = (mean + deviation * normal(5000, 3, dtype=torch.float64)).float()
    moments = _Moments()
    for part in rows.split(700):
        moments.add(part)
    several = moments.mean, (moments.m2 / moments.n).sqrt()
    for found in (mean_and_deviation(rows), several):
        assert all(t.dtype == torch.float64 and torch.isfinite(t).all() for t in found)
        assert_close(found[0], rows.double().mean(0), rtol=1e-7, atol=1e-6 * deviation)
        wanted, rounded = rows.double().std(0, correction=0), 1e-6 * abs(mean) * (deviation == 0)
        assert_close(found[1], wanted, rtol=1e-5, atol=rounded)
    assert not mean_and_deviation(rows[:1])[1].any()


# ---- TACT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_batch", [True, False])
def test_after_tact_every_site_has_the_experts_statistics(kind, one_batch):
    """In one forward pass as in one a site. Corrected at once instead of in sequence, later sites
    would miss them."""
    merged, sites, batches, expert = fitted(kind)
    batches = [joined(batches)] if one_batch else batches
    before, weights = measure(merged, sites, batches), copy.deepcopy(encoder_state(merged))
    found = match_statistics(merged, sites, batches, expert)
    assert equal(encoder_state(merged), weights)
    assert not hasattr(merged, "corrections")
    attach(merged, sites, found)
    # Hooks run in the order in which they were set: it sees what the correction gave.
    after = measure(merged, sites, batches)
    for n in (s.name for s in sites):
        assert_close(after.mean[n], expert.mean[n], rtol=1e-3, atol=1e-3)
        assert_close(after.std[n], expert.std[n], rtol=1e-3, atol=1e-3)
    differ = max(float((before.std[n] - s).abs().max()) for n, s in expert.std.items())
    assert differ > 0.1, "the encoders are too alike to test anything"


def test_dead_channels_stay_finite_and_keep_to_the_rule():
    """Dead in the merge: only shifted, even for inputs that wake it. Dead in the expert: constant
    at the expert's mean."""
    merged, sites, batches, expert = fitted("bert")
    transformer = merged.transformer
    hidden = {s.name: transformer.get_submodule(s.module) for s in sites if s.kind == "hidden"}
    for dense in hidden.values():
        dense.weight.data[3] = 0
    for std in expert.std.values():
        std[1] = 0
    for given in ([joined(batches)], batches):
        found = match_statistics(merged, sites, given, expert)
        for n, scale in found.scale.items():
            shift, mean = found.shift[n], expert.mean[n]
            assert torch.isfinite(scale).all() and torch.isfinite(shift).all() and scale[1] == 0
            assert float(shift[1]) == pytest.approx(float(mean[1]), abs=1e-5)
            if n in hidden:
                moved = float(mean[3] - hidden[n].bias.data[3])
                assert scale[3] == 1 and float(shift[3]) == pytest.approx(moved, abs=1e-5)
        module = copy.deepcopy(merged)
        attach(module, sites, found)
        assert torch.isfinite(features(module, batches_of("bert", seed=9))).all()


# ---- folded, attached, saved ---------------------------------------------------------------------


def test_folded_equals_attached(kind):
    merged, sites, _, found = tact_of(kind)
    others = batches_of(kind, seed=5)
    raw, state = features(merged, others), encoder_state(merged)
    folded, rest = fold(found, sites, state)
    assert len(rest.scale) == KINDS[kind][1] and folded.keys() == state.keys()
    assert equal(encoder_state(merged), state), "the state that was given is changed"
    attached = copy.deepcopy(merged)
    attach(attached, sites, found)
    wanted = features(attached, others)
    load_state(merged, folded)
    attach(merged, sites, rest)
    scale = max(1.0, float(wanted.abs().max()))
    assert_close(features(merged, others) / scale, wanted / scale, rtol=0, atol=1e-5)
    assert (wanted - raw).abs().max() > 1e-2


def test_saved_and_loaded_gives_equal_features(kind, tmp_path):
    merged, sites, batches, found = tact_of(kind)
    save_file(found.tensors(), tmp_path / "correction.safetensors")
    other = copy.deepcopy(merged)
    attach(merged, sites, found)
    attach(other, sites, Correction.of(load_file(tmp_path / "correction.safetensors")))
    assert torch.equal(features(merged, batches), features(other, batches))


def test_attached_corrections_are_saved_and_moved_with_the_module_and_leave_the_encoder_alone():
    merged, sites, _, found = tact_of("t5")
    names = encoder_state(merged).keys()
    attach(merged, sites, found)
    assert encoder_state(merged).keys() == names
    assert len(dict(merged.corrections.named_buffers())) == 2 * len(sites)
    assert not list(merged.corrections.parameters())


# ---- REPAIR --------------------------------------------------------------------------------------


class Linears(nn.Module):
    """``x [B, L, c_in]`` through linear layers without bias, its ``transformer``."""

    def __init__(self, weights):
        super().__init__()
        self.transformer = nn.Sequential(*(nn.Linear(*w.shape[::-1]) for w in weights))
        for layer, w in zip(self.transformer, weights, strict=True):
            layer.weight.data, layer.bias.data = w.clone(), torch.zeros(len(w))

    def forward(self, x):
        return self.transformer(x)


def linear_net(weights):
    def fold_of(n):
        return Fold(((f"{n}.weight", 0), (f"{n}.bias", 0)), (f"{n}.bias", 0))

    sites = [Site(str(n), "output", "hidden", n, fold_of(n)) for n in range(len(weights))]
    return Linears(weights).eval(), sites


def test_repair_in_closed_form_on_a_linear_net():
    """W' = diag(g / sigma_m) W_m and b' = beta - g mu_m / sigma_m with g, beta the means of the
    experts' deviations and means; with two layers the second sees the first's corrected outputs."""
    g = seeded(0)
    x = torch.randn(60, 2, 3, generator=g, dtype=torch.float64).float()
    experts = [[torch.randn(4, 3, generator=g), torch.randn(2, 4, generator=g)] for _ in range(3)]
    averaged = [torch.stack(w).mean(0) for w in zip(*experts, strict=True)]
    flat = x.double().flatten(0, 1)
    beta, gain, outputs = [], [], [flat] * 3
    for layer in range(2):
        outputs = [y @ w[layer].double().T for y, w in zip(outputs, experts, strict=True)]
        beta.append(torch.stack([y.mean(0) for y in outputs]).mean(0))
        gain.append(torch.stack([y.std(0, correction=0) for y in outputs]).mean(0))
    y = flat
    for w, g, b in zip(averaged, gain, beta, strict=True):
        y = y @ w.double().T
        y = (y - y.mean(0)) / y.std(0, correction=0) * g + b
    merged, sites = linear_net(averaged)
    batches = [{"x": x}]
    target = mean_statistics([measure(linear_net(w)[0], sites, batches) for w in experts])
    found = match_statistics(merged, sites, batches, target)
    state, rest = fold(found, sites, merged.transformer.state_dict())
    assert not rest.scale
    merged.transformer.load_state_dict(state)
    assert_close(features(merged, batches).double().flatten(0, 1), y, rtol=1e-4, atol=1e-4)


# ---- variance collapse ---------------------------------------------------------------------------


def white(n, c):
    """``[n, 1, c]``: exactly uncorrelated columns of mean 0 and variance 1."""
    x = normal(n, c, dtype=torch.float64)
    return (math.sqrt(n) * torch.linalg.qr(x - x.mean(0))[0]).float().unsqueeze(1)


@pytest.mark.parametrize("copies, rho", [(2, 0.0), (5, 0.0), (2, 0.6), (4, 0.6), (4, 1.0)])
def test_the_average_of_equal_activations_keeps_its_share_of_variance(copies, rho):
    """(1 + (T - 1) rho) / T: 1/T for uncorrelated copies, all of it for identical ones."""
    c = 3
    x = {"x": white(200, c * (copies + 1))}
    eye = torch.eye(c)
    experts = []
    for t in range(copies):
        own = [torch.zeros(c, c)] * copies
        own[t] = math.sqrt(1 - rho) * eye
        experts.append(torch.cat([math.sqrt(rho) * eye, *own], 1))
    nets = [linear_net([w]) for w in (torch.stack(experts).mean(0), *experts)]
    merged, *seen = (measure(net, sites, [x]) for net, sites in nets)
    wanted = pytest.approx((1 + (copies - 1) * rho) / copies, rel=1e-4)
    for expert in seen:
        assert variance_ratio(merged, expert)["0.output"] == wanted
    moments = [input_moments(net, sites, [x]) for net, sites in nets[:2]]
    assert float(resampled_ratio(*moments, torch.ones(1, 200))) == wanted


def test_resampling_inputs_equals_repeating_them(kind):
    merged, sites, batches, _ = fitted(kind)
    nets, batch = (merged, module_of(kind, 2)), joined(batches)
    weights = torch.tensor([[1.0] * 14, [2.0, 0, 1, 3, 0, 0, 1, 1, 1, 1, 0, 2, 1, 1]])
    found = resampled_ratio(*(input_moments(net, sites, batches) for net in nets), weights)
    for row, here in zip(weights, found, strict=True):
        again = {n: t.repeat_interleave(row.long(), 0) for n, t in batch.items()}
        ratios = variance_ratio(*(measure(net, sites, [again]) for net in nets))
        assert float(here) == pytest.approx(sum(ratios.values()) / len(ratios), rel=1e-4)


def test_a_channel_is_left_out_of_every_resample_or_of_none():
    """The first one's variance in the expert is near the bound: some resamples lie above it."""
    g = seeded(0)
    expert = torch.randn(40, 6, generator=g).double()
    expert[:, 0] *= math.sqrt(SILENT)
    merged = expert * torch.tensor([100.0, 2, 2, 2, 2, 2])
    weights = torch.cat([torch.ones(1, 40), counts(200, 40, g)]).double()
    moments = [
        InputMoments(torch.ones(40).double(), {"a": y}, {"a": y**2}) for y in (merged, expert)
    ]
    variances = moments[1].variance("a", weights)
    above = variances[:, 0] > SILENT * variances.median(1).values
    assert 0 < above.sum() < 201
    found = resampled_ratio(*moments, weights)
    assert torch.equal(found > 10, above[0].expand(201))


def test_channels_without_variance_in_the_expert_are_left_out():
    """Or with next to none, as units that LayerNorm switches off in released encoders."""

    def of(*std):
        return Statistics({}, {"a": torch.tensor(std).double()})

    merged = of(1.0, 5.0, 1.0, 1.0, 9.0)
    found = variance_ratio(merged, of(2.0, 0.0, 1.0, 1.0, 0.02))
    assert found == {"a": pytest.approx((0.25 + 1 + 1) / 3)}
    assert variance_ratio(merged, of(2.0, 0.0, 1.0, 1.0, 0.04))["a"] > 1e4
    with pytest.raises(DataError, match="a, so there is no variance"):
        variance_ratio(merged, of(0.0, 0.0, 0.0, 0.0, 0.0))


# ---- broken input --------------------------------------------------------------------------------


def test_damaged_weights_are_refused_and_no_hook_is_left_behind():
    merged, sites, batches, expert = fitted("bert")
    before, nan = features(merged, batches), copy.deepcopy(merged)
    next(nan.parameters()).data.fill_(torch.nan)
    with pytest.raises(UnknownNameError, match=r"gpt2.*Nearest"):
        sites_for(SimpleNamespace(model_type="gpt2"))
    with pytest.raises(DataError, match="not finite"):
        measure(nan, sites, batches)
    with pytest.raises(DataError, match="not finite"):
        match_statistics(nan, sites, [joined(batches)], expert)
    match_statistics(merged, sites, batches, expert)
    assert torch.equal(features(merged, batches), before)


def test_the_rule_for_dead_channels_meets_the_formula_at_its_edge():
    std, one = torch.tensor([0.0, math.sqrt(EPS) / 2, 1e-3, 2.0]).double(), torch.ones(4).double()
    scale, shift = channel_affine(one, std, 5 * one, one)
    assert scale[:2].tolist() == [1, 1] and shift[:2].tolist() == [4, 4]
    assert_close(scale[2:], 1 / std[2:], rtol=1e-4, atol=0)
