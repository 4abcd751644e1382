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


def features(module, batches):
    with torch.no_grad():
        return torch.cat([module(**b) for b in batches])


def sites_of(kind):
    return sites_for(made(kind).config)


def fitted(kind):
    """A merged encoder, its sites and inputs, and an expert's statistics."""
    sites, batches = sites_of(kind), batches_of(kind)
    return module_of(kind, 1), sites, batches, measure(module_of(kind, 2), sites, batches)


# ---- where ---------------------------------------------------------------------------------------


def test_sites_stand_in_the_order_of_the_forward_pass(kind):
    module, sites, seen = module_of(kind, 0), sites_of(kind), []
    with watched(module.transformer, sites, lambda site, y: seen.append((site.name, y.shape[-1]))):
        features(module, batches_of(kind, sizes=(2,)))
    for site, (name, width) in zip(sites, seen, strict=True):
        heads = 18 if name.endswith("SelfAttention.o.input") else 24
        assert (name, width) == (site.name, 40 if site.kind == "hidden" else heads)
    assert len(sites) == 1 + KINDS[kind][0] * 2
    assert [s.block for s in sites] == sorted(s.block for s in sites) and sites[-1].kind == "block"


# ---- what is measured ----------------------------------------------------------------------------


def slow_rows(module, site, batches):
    """Every real token's activations at a site, ``[M, c]``, taken one input and one token at a
    time."""
    rows = []
    part = module.transformer.get_submodule(site.module)

    def keep(values, mask):
        for i in range(len(values)):
            rows.extend(values[i, j] for j in range(values.shape[1]) if mask is None or mask[i, j])

    for batch in batches:
        mask = batch.get("attention_mask")
        if site.side == "input":
            handle = part.register_forward_pre_hook(lambda m, args, mask=mask: keep(args[0], mask))
        else:
            handle = part.register_forward_hook(lambda m, args, out, mask=mask: keep(out, mask))
        features(module, [batch])
        handle.remove()
    return torch.stack(rows).double()


def test_statistics_equal_slow_ones_over_real_tokens(kind):
    module, sites, batches = module_of(kind, 3), sites_of(kind), batches_of(kind)
    found = measure(module, sites, batches)
    for site in sites:
        rows = slow_rows(module, site, batches)
        assert apart(found.mean[site.name], rows.mean(0)) < ROUNDING
        assert apart(found.std[site.name], rows.std(0, correction=0)) < ROUNDING


def test_a_large_mean_does_not_swamp_a_small_deviation():
    """Sums of squares in float32 would lose it."""
    module, site = linear_net([torch.eye(2)])
    x = 1000 + 0.01 * normal(4000, 1, 2)
    found = measure(module, site, [{"x": part} for part in x.split(700)])
    assert_close(found.std["first.output"], x.double().std((0, 1), correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mean, deviation", [(0, 1), (1e4, 1e-1), (-3e5, 2), (7, 0), (0, 1e-15)])
def test_float32_rows_give_the_float64_mean_and_deviation(mean, deviation):
    """Rounding of the given rows is in both; only that of the computation may differ."""
    rows = (mean + deviation * normal(5000, 3, dtype=torch.float64)).float()
    found = mean_and_deviation(rows)
    assert all(t.dtype == torch.float64 and torch.isfinite(t).all() for t in found)
    assert_close(found[0], rows.double().mean(0), rtol=1e-7, atol=1e-6 * deviation)
    assert_close(
        found[1],
        rows.double().std(0, correction=0),
        rtol=1e-5,
        atol=1e-6 * abs(mean) * (deviation == 0),
    )
    assert_close(
        mean_and_deviation(rows[:1])[1], torch.zeros(3, dtype=torch.float64), rtol=0, atol=0
    )


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
    apart_before = max(float((before.std[n] - s).abs().max()) for n, s in expert.std.items())
    assert apart_before > 0.1, "the encoders are too alike to test anything"


def test_the_ablation_corrects_the_last_site_alone():
    merged, sites, batches, expert = fitted("bert")
    found = match_statistics(merged, sites[-1:], batches, expert)
    assert list(found.scale) == [sites[-1].name]
    state, _ = fold(found, sites, encoder_state(merged))
    load_state(merged, state)
    after = measure(merged, sites, batches)
    assert_close(after.mean[sites[-1].name], expert.mean[sites[-1].name], rtol=0, atol=1e-3)


def test_dead_channels_stay_finite_and_keep_to_the_rule():
    """Dead in the merge: only shifted, even for inputs that wake it. Dead in the expert: constant
    at the expert's mean."""
    merged, sites, batches, expert = fitted("bert")
    with torch.no_grad():
        for site in (s for s in sites if s.kind == "hidden"):
            dense = merged.transformer.get_submodule(site.module)
            dense.weight[3] = 0
    target = Statistics(
        expert.mean,
        {n: torch.where(torch.arange(len(s)) == 1, 0.0, s) for n, s in expert.std.items()},
    )
    for given in ([joined(batches)], batches):
        found = match_statistics(merged, sites, given, target)
        for site in sites:
            scale, shift = found.scale[site.name], found.shift[site.name]
            assert torch.isfinite(scale).all() and torch.isfinite(shift).all() and scale[1] == 0
            assert shift[1] == pytest.approx(float(target.mean[site.name][1]), abs=1e-5)
            if site.kind == "hidden":
                bias = merged.transformer.get_submodule(site.module).bias[3].detach()
                assert scale[3] == 1 and shift[3] == pytest.approx(
                    float(target.mean[site.name][3] - bias), abs=1e-5
                )
        module = copy.deepcopy(merged)
        attach(module, sites, found)
        assert torch.isfinite(features(module, batches_of("bert", seed=9))).all()


# ---- folded, attached, saved ---------------------------------------------------------------------


def test_folded_equals_attached(kind):
    merged, sites, batches, expert = fitted(kind)
    found = match_statistics(merged, sites, [joined(batches)], expert)
    others = batches_of(kind, seed=5)
    raw = features(merged, others)
    state = encoder_state(merged)
    folded, rest = fold(found, sites, state)
    assert len(rest) == KINDS[kind][1] and folded.keys() == state.keys()
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
    merged, sites, batches, expert = fitted(kind)
    found = match_statistics(merged, sites, [joined(batches)], expert)
    save_file(found.tensors() | encoder_state(merged), tmp_path / "model.safetensors")
    read = load_file(tmp_path / "model.safetensors")
    again = Correction.of({n: t for n, t in read.items() if n in found.tensors()})
    other = module_of(kind, 7)
    load_state(other, {n: t for n, t in read.items() if n not in found.tensors()})
    attach(merged, sites, found)
    attach(other, sites, again)
    assert torch.equal(features(merged, batches), features(other, batches))


def test_attached_corrections_are_saved_and_moved_with_the_module_and_leave_the_encoder_alone():
    merged, sites, batches, expert = fitted("t5")
    names = encoder_state(merged).keys()
    attach(merged, sites, match_statistics(merged, sites, batches, expert))
    assert encoder_state(merged).keys() == names
    mine = [n for n in merged.state_dict() if n.startswith("corrections.")]
    assert len(mine) == 2 * len(sites) and not any(
        n.startswith("corrections.") for n, _ in merged.named_parameters()
    )


# ---- REPAIR --------------------------------------------------------------------------------------


class Linears(nn.Module):
    """``x [B, L, c_in]`` through one or two linear layers."""

    def __init__(self, weights):
        super().__init__()
        for name, w in zip(("first", "second"), weights, strict=False):
            layer = nn.Linear(w.shape[1], w.shape[0])
            layer.weight.data, layer.bias.data = w.clone(), torch.zeros(len(w))
            setattr(self, name, layer)

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class Outer(nn.Module):
    def __init__(self, transformer):
        super().__init__()
        self.transformer = transformer

    def forward(self, x):
        return self.transformer(x)


def linear_net(weights):
    names = ("first", "second")[: len(weights)]
    sites = tuple(
        Site(
            n, "output", "hidden", i, Fold(((f"{n}.weight", 0), (f"{n}.bias", 0)), (f"{n}.bias", 0))
        )
        for i, n in enumerate(names)
    )
    return Outer(Linears(weights)).eval(), sites


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
    found = match_statistics(
        merged,
        sites,
        [{"x": x}],
        mean_statistics([measure(linear_net(w)[0], sites, [{"x": x}]) for w in experts]),
    )
    state, rest = fold(found, sites, merged.transformer.state_dict())
    assert len(rest) == 0
    merged.transformer.load_state_dict(state)
    assert_close(features(merged, [{"x": x}]).double().flatten(0, 1), y, rtol=1e-4, atol=1e-4)


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
    nets = [linear_net([w]) for w in (*experts, torch.stack(experts).mean(0))]
    merged, seen = nets[-1][0], [measure(net, sites, [x]) for net, sites in nets]
    wanted = (1 + (copies - 1) * rho) / copies
    for expert in seen[:-1]:
        assert variance_ratio(seen[-1], expert)["first.output"] == pytest.approx(wanted, rel=1e-4)
    ones = torch.ones(1, 200)
    moments = [input_moments(net, nets[0][1], [x]) for net in (merged, nets[0][0])]
    assert float(resampled_ratio(*moments, ones)) == pytest.approx(wanted, rel=1e-4)


def test_resampling_inputs_equals_repeating_them(kind):
    merged, expert, sites = module_of(kind, 1), module_of(kind, 2), sites_of(kind)
    batch = joined(batches_of(kind))
    weights = torch.tensor([[1.0] * 14, [2.0, 0, 1, 3, 0, 0, 1, 1, 1, 1, 0, 2, 1, 1]])
    parts = [{n: t[:6] for n, t in batch.items()}, {n: t[6:] for n, t in batch.items()}]
    found = resampled_ratio(
        input_moments(merged, sites, parts), input_moments(expert, sites, parts), weights
    )
    for row, here in zip(weights, found, strict=True):
        again = {n: t.repeat_interleave(row.long(), 0) for n, t in batch.items()}
        ratios = variance_ratio(measure(merged, sites, [again]), measure(expert, sites, [again]))
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
    zero = {"a": torch.zeros(5).double()}
    expert = Statistics(zero, {"a": torch.tensor([2.0, 0.0, 1.0, 1.0, 0.02]).double()})
    merged = Statistics(zero, {"a": torch.tensor([1.0, 5.0, 1.0, 1.0, 9.0]).double()})
    assert variance_ratio(merged, expert) == {"a": pytest.approx((0.25 + 1 + 1) / 3)}
    heard = Statistics(zero, {"a": torch.tensor([2.0, 0.0, 1.0, 1.0, 0.04]).double()})
    assert variance_ratio(merged, heard)["a"] > 1e4
    dead = Statistics(zero, zero)
    with pytest.raises(DataError, match="a, so there is no variance"):
        variance_ratio(merged, dead)


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
    std = torch.tensor([0.0, math.sqrt(EPS) / 2, 1e-3, 2.0]).double()
    scale, shift = channel_affine(
        torch.ones(4).double(), std, torch.full((4,), 5.0).double(), torch.ones(4).double()
    )
    assert scale[:2].tolist() == [1, 1] and shift[:2].tolist() == [4, 4]
    assert_close(scale[2:], 1 / std[2:], rtol=1e-4, atol=0)
