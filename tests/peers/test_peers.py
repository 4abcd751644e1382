"""Merging methods against two public implementations on random weights; where they are known to
differ, the difference itself.

Runs where FusionBench and mergekit are installed: ``pip install -e ".[test,peers]"``. Neither has
PCB-Merging, Model Tailor or LM-Cocktail; Iso-CTS, TSV-Merge, EMR-Merging, MagMax, TALL-masks,
Fisher Merging, RegMean and AdaMerging are FusionBench's alone, Model Breadcrumbs and DELLA
mergekit's.
"""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("fusion_bench", reason="needs the extra 'peers'")
pytest.importorskip("mergekit", reason="needs the extra 'peers'")

import fusion_bench
import lightning
from fusion_bench.method.adamerging.entropy_loss import entropy_loss
from fusion_bench.method.adamerging.layer_wise_adamerging import LayerWiseAdaMergingAlgorithm
from fusion_bench.method.adamerging.task_wise_adamerging import TaskWiseAdaMergingAlgorithm
from fusion_bench.method.dare import DareSimpleAverage, DareTaskArithmetic, DareTiesMerging
from fusion_bench.method.emr_merging.utils import emr_merge
from fusion_bench.method.fisher_merging import fisher_merging as fb_fisher
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.magmax.magmax import magmax_merge
from fusion_bench.method.model_stock.model_stock import (
    ModelStock,
    compute_angle,
    compute_ratio,
    merge_weights,
)
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights, regmean_merging
from fusion_bench.method.simple_average import simple_average
from fusion_bench.method.tall_mask import TallMaskTaskArithmeticAlgorithm
from fusion_bench.method.tall_mask import utils as fb_tall
from fusion_bench.method.task_arithmetic import TaskArithmeticAlgorithm, task_arithmetic_merge
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import (
    compute_and_sum_svd_mem_reduction,
)
from fusion_bench.method.ties_merging.ties_merging_utils import (
    state_dict_to_vector,
    ties_merging,
    ties_merging_split,
)
from mergekit import sparsify
from mergekit.merge_methods import merge_state_dicts
from omegaconf import OmegaConf

from mergelib.core.errors import ConfigError
from mergelib.core.types import Head
from mergelib.merging import Context, TaskData, get_method
from mergelib.merging.adamerging import combine, mean_entropy, ties_vectors
from mergelib.merging.dropping import breadcrumbs, dare, magprune
from mergelib.merging.fisher import fisher_diagonal
from mergelib.merging.masks import tall_mask
from mergelib.merging.regmean import regmean_weight
from mergelib.merging.states import flatten, float_names

SEEDS = range(3)
MATRICES = ("b_square", "c_wide", "d_tall")


def random_state(seed, scale=1.0):
    """A vector, three matrices, a 4-d tensor and a scalar. Names are sorted, so that all draw
    random numbers in one order."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "a_vector": (11,),
        "b_square": (6, 6),
        "c_wide": (5, 9),
        "d_tall": (8, 4),
        "e_kernel": (3, 2, 2, 2),
        "f_scalar": (),
    }
    return {n: scale * torch.randn(s, generator=g) for n, s in shapes.items()}


def make_states(seed, n_experts=3, likeness=0.0):
    """A base and experts; with ``likeness`` their task vectors share a direction."""
    base, common = random_state(1000 + seed), random_state(2000 + seed, likeness)
    taus = [random_state(3000 + 10 * seed + t) for t in range(n_experts)]
    return base, [{n: base[n] + common[n] + tau[n] for n in base} for tau in taus]


def whole_states(seed, n_experts=3, size=24):
    """Small integers: equal magnitudes, zeros and exact cancellations abound, and float arithmetic
    is exact."""
    g = torch.Generator().manual_seed(seed)
    base, *experts = [
        {"w": torch.randint(-3, 4, (size,), generator=g).float()} for _ in range(n_experts + 1)
    ]
    return base, experts


def merge(name, base, experts, *context, **options):
    return get_method(name)(base, experts, *context, **options)


def minus(a, b):
    return {n: a[n] - b[n] for n in a}


def vectors(base, experts):
    return [minus(e, base) for e in experts]


def zeros(state):
    return {n: torch.zeros_like(t) for n, t in state.items()}


def module(state):
    """The state as a module whose state dict has the same names."""
    return nn.ParameterDict({n: nn.Parameter(t.clone()) for n, t in state.items()})


def buffers(state):
    """The same without parameters: some of FusionBench's code adds parameters to plain tensors,
    which its own checks refuse."""
    made = nn.Module()
    for name, tensor in state.items():
        made.register_buffer(name, tensor.clone())
    return made


def pool(base, experts, as_module=module):
    return fusion_bench.BaseModelPool(
        {"_pretrained_": as_module(base)} | {f"e{t}": as_module(e) for t, e in enumerate(experts)}
    )


def mergekit(name, base, experts, **parameters):
    states = {"base": base} | {f"e{t}": e for t, e in enumerate(experts)}
    return merge_state_dicts(states, name, base="base", parameters={"weight": 1.0} | parameters)


def one_by_one(name, base, experts, **options):
    """Our method on each tensor by itself, as mergekit always does."""
    return {n: merge(name, {n: base[n]}, [{n: e[n]} for e in experts], **options)[n] for n in base}


def close(a, b, atol=1e-5):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], atol=atol, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def detached(model):
    return {n: t.detach() for n, t in model.state_dict().items()}


def furthest(a, b):
    """The largest difference of two states."""
    return max(float((a[n] - b[n]).abs().max()) for n in a)


# ---- averages and sums (methods.md A0, A1, A2) ---------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n_experts", [1, 2, 5])
def test_average(seed, n_experts):
    base, experts = make_states(seed, n_experts)
    ours = merge("weight_averaging", base, experts)
    close(ours, simple_average(experts))
    close(ours, merge_state_dicts(experts, "linear", parameters={"weight": 1.0}))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lam", [0.3, 0.7])
def test_task_arithmetic(seed, lam):
    base, experts = make_states(seed)
    ours = merge("task_arithmetic", base, experts, lam=lam)
    close(ours, detached(task_arithmetic_merge(buffers(base), [buffers(e) for e in experts], lam)))
    close(ours, detached(TaskArithmeticAlgorithm(scaling_factor=lam).run(pool(base, experts))))
    close(ours, mergekit("task_arithmetic", base, experts, **{"lambda": lam}))


def test_half_precision_deviates():
    """FusionBench adds up in the weights' own precision and leaves the range of float16; ours is
    float32 inside."""
    states = [{"w": torch.full((3,), 60000.0, dtype=torch.float16)} for _ in range(3)]
    assert simple_average(states)["w"].isinf().all()
    assert torch.equal(merge("weight_averaging", states[0], states)["w"], states[0]["w"])


def test_integer_tensors_deviate():
    """Ours copies the base's; FusionBench's average cannot take them, mergekit refuses those that
    differ."""
    states = [{"position_ids": torch.arange(3) + t, "w": torch.randn(3)} for t in range(2)]
    assert torch.equal(
        merge("weight_averaging", states[0], states)["position_ids"], torch.arange(3)
    )
    with pytest.raises(RuntimeError, match="Float"):
        simple_average(states)
    with pytest.raises(ValueError, match="position_ids"):
        merge_state_dicts(states, "linear", parameters={"weight": 1.0})


# ---- Ties (A3) -----------------------------------------------------------------------------------


def fb_ties(base, experts, keep, combine):
    """FusionBench's routine on the flat encoder, as a flat task vector."""
    names = float_names(base)
    return ties_merging(
        torch.stack([flatten(e, names) - flatten(base, names) for e in experts]),
        reset_thresh=keep,
        merge_func=combine,
    )


def one_more(base, keep):
    """The kept fraction at which ours keeps int(D * keep) + 1 entries, as the original code
    does."""
    size = flatten(base, float_names(base)).numel()
    return (int(size * keep) + 1.5) / size


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("combine", ["sum", "mean"])
@pytest.mark.parametrize("keep", [0.2, 0.5])
def test_ties_keeps_one_entry_more_upstream_and_is_the_same_otherwise(seed, keep, combine):
    base, experts = make_states(seed)
    names, theirs = float_names(base), fb_ties(base, experts, keep, combine)
    torch.testing.assert_close(
        flatten(
            minus(
                merge(
                    "ties",
                    zeros(base),
                    vectors(base, experts),
                    lam=1.0,
                    keep=one_more(base, keep),
                    combine=combine,
                ),
                zeros(base),
            ),
            names,
        ),
        theirs,
        atol=1e-6,
        rtol=1e-6,
    )
    torch.testing.assert_close(
        flatten(
            merge("ties", base, experts, lam=0.3, keep=one_more(base, keep), combine=combine), names
        ),
        flatten(base, names) + 0.3 * theirs,
        atol=1e-5,
        rtol=1e-5,
    )
    # Deviation: at the same keep the largest dropped entry of each task makes a difference.
    assert (
        flatten(merge("ties", base, experts, lam=1.0, keep=keep, combine=combine), names)
        - flatten(base, names)
        - theirs
    ).abs().max() > 1e-2


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_ties_resolves_ties_and_cancellations_as_upstream(seed, combine):
    base, experts = whole_states(seed)
    ours = merge("ties", base, experts, lam=1.0, keep=one_more(base, 0.4), combine=combine)
    assert torch.equal(ours["w"], base["w"] + fb_ties(base, experts, 0.4, combine))


def test_ties_counts_deviate():
    """int(D * keep) entries here, one more upstream; "keep all" breaks upstream, as 1 and as 100
    %."""
    base, experts = {"w": torch.zeros(1000)}, [{"w": torch.randperm(1000) + 1.0}]
    assert int((merge("ties", base, experts, lam=1.0, keep=0.2)["w"] != 0).sum()) == 200
    assert int((fb_ties(base, experts, 20, "sum") != 0).sum()) == 201
    assert torch.equal(merge("ties", base, experts, lam=1.0, keep=1.0)["w"], experts[0]["w"])
    for everything in (1, 100):
        with pytest.raises((RuntimeError, IndexError)):
            fb_ties(base, experts, everything, "sum")


def test_tied_tensors_deviate():
    """FusionBench flattens a tied tensor once per name, so it counts double in the top k; ours
    takes each storage once."""
    shared = torch.randn(4)
    state = {"embed": shared, "other": torch.randn(3), "tied": shared}
    assert flatten(state, float_names(state)).numel() == 7
    assert state_dict_to_vector(state).numel() == 11


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_ties_of_mergekit_is_ours_tensor_by_tensor(seed, combine):
    base, experts = make_states(seed)
    del base["f_scalar"]  # mergekit keeps at least one entry, ours int(1 * keep) = 0
    experts = [{n: e[n] for n in base} for e in experts]
    theirs = mergekit(
        "ties", base, experts, density=0.4, normalize=combine == "mean", **{"lambda": 0.7}
    )
    close(one_by_one("ties", base, experts, lam=0.7, keep=0.4, combine=combine), theirs)
    # Deviation: ours ranks the whole encoder at once.
    assert furthest(merge("ties", base, experts, lam=0.7, keep=0.4, combine=combine), theirs) > 0.1


def test_ties_of_mergekit_deviates_on_cancellation_and_at_the_threshold():
    base, experts = (
        {"w": torch.zeros(3)},
        [{"w": torch.tensor([3.0, -1.0, -1.0])}, {"w": torch.tensor([-3.0, -1.0, -1.0])}],
    )
    assert merge("ties", base, experts, lam=1.0, keep=1.0)["w"].tolist() == [
        -3,
        -2,
        -2,
    ]  # the network's sign decides
    assert mergekit("ties", base, experts, normalize=False)["w"].tolist() == [
        3,
        -2,
        -2,
    ]  # 0 counts as positive
    base, experts = {"w": torch.zeros(4)}, [{"w": torch.tensor([2.0, 2.0, 2.0, 1.0])}]
    assert (
        int((merge("ties", base, experts, lam=1.0, keep=0.5)["w"] != 0).sum()) == 3
    )  # all that tie
    assert (
        int((mergekit("ties", base, experts, density=0.5)["w"] != 0).sum()) == 2
    )  # the first of them


# ---- DARE (A7) -----------------------------------------------------------------------------------

# Both draw uniform numbers of one shape after another: a common seed is a common mask.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("drop", [0.1, 0.5, 0.9])
def test_dare_with_a_shared_mask(seed, drop):
    base, experts = make_states(seed)
    options = {"sparsity_ratio": drop, "only_on_linear_weights": False, "rescale": True}
    for ours, theirs in [
        (
            merge("dare_task_arithmetic", base, experts, lam=0.4, drop=drop, seed=seed),
            DareTaskArithmetic(scaling_factor=0.4, **options),
        ),
        (merge("dare_average", base, experts, drop=drop, seed=seed), DareSimpleAverage(**options)),
        (
            merge(
                "dare_ties", base, experts, lam=0.4, keep=one_more(base, 0.2), drop=drop, seed=seed
            ),
            DareTiesMerging(
                scaling_factor=0.4, threshold=0.2, remove_keys=[], merge_func="sum", **options
            ),
        ),
    ]:
        torch.manual_seed(seed)
        close(ours, detached(theirs.run(pool(base, experts))))


def shared_bernoulli(monkeypatch, seed):
    """mergekit draws its masks with torch.bernoulli: let it use the numbers that our generator
    gives for this seed."""
    generator = torch.Generator().manual_seed(seed)
    asked = []

    def draw(probability):
        asked.append(probability.clone())
        return (torch.rand(probability.shape, generator=generator) < probability).to(
            probability.dtype
        )

    monkeypatch.setattr(torch, "bernoulli", draw)
    return asked


@pytest.mark.parametrize("seed", SEEDS)
def test_dare_of_mergekit_deviates_by_a_factor_per_tensor(monkeypatch, seed):
    """mergekit gives each tensor its former L1 norm back; 1 / (1 - drop) keeps the norm on average
    only."""
    tau = torch.randn(400, generator=torch.Generator().manual_seed(seed))
    # Ours keeps where u >= drop, mergekit where u < 1 - drop: with 1 - u for u, the same entries.
    generator = torch.Generator().manual_seed(seed)
    monkeypatch.setattr(
        torch,
        "bernoulli",
        lambda p: (torch.rand(p.shape, generator=generator) >= 1 - p).to(p.dtype),
    )
    theirs = sparsify.bernoulli(tau, 0.25, sparsify.RescaleNorm.l1)
    ours = dare(tau, 0.75, torch.Generator().manual_seed(seed))
    assert torch.equal(ours != 0, theirs != 0)
    torch.testing.assert_close(theirs.abs().sum(), tau.abs().sum())
    factor = tau.abs().sum() / ours.abs().sum()
    assert abs(factor - 1) > 1e-3
    torch.testing.assert_close(theirs, ours * factor)
    # Without its rescaling, and with weights 1 / (1 - drop), the whole method agrees.
    base, experts = {"w": torch.zeros(400)}, [{"w": tau}, {"w": tau.flip(0)}]
    generator.manual_seed(seed)
    close(
        merge("dare_task_arithmetic", base, experts, lam=0.3, drop=0.75, seed=seed),
        mergekit(
            "dare_linear", base, experts, density=0.25, weight=4.0, rescale=False, **{"lambda": 0.3}
        ),
    )


def test_dare_that_drops_all_deviates():
    base, experts = make_states(0)
    theirs = DareTaskArithmetic(
        scaling_factor=0.3, sparsity_ratio=1.0, only_on_linear_weights=False
    ).run(pool(base, experts))
    assert detached(theirs)["b_square"].isnan().all()
    with pytest.raises(ConfigError, match="drop"):
        merge("dare_task_arithmetic", base, experts, drop=1.0)


# ---- MagMax, TALL-masks, Consensus, EMR-Merging (A8, A9, A10, A18) -------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_magmax(seed):
    for base, experts in (
        make_states(seed),
        whole_states(seed),
    ):  # of equal magnitudes both take the later
        close(
            merge("magmax", base, experts, lam=0.5),
            detached(magmax_merge(module(base), [module(e) for e in experts], 0.5)),
        )


def fb_masks(base, experts, lam):
    tau = torch.stack([e["w"] - base["w"] for e in experts])
    return fb_tall.generate_task_masks(
        tau, torch.stack([e["w"] for e in experts]), base["w"], tall_mask_lambda=lam
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lam", [0.25, 0.5, 1.0])
def test_tall_masks_and_consensus(monkeypatch, seed, lam):
    """Whole numbers, so that both sides of the comparison are exact; equality counts as outside."""
    base, experts = whole_states(seed, size=60)
    masks, total = fb_masks(base, experts, lam), sum(e["w"] - base["w"] for e in experts)
    for mask, expert, merged in zip(
        masks, experts, merge("tall_masks", base, experts, lam=lam), strict=True
    ):
        assert torch.equal(tall_mask(expert["w"] - base["w"], total, lam), mask)
        assert torch.equal(merged["w"], base["w"] + mask * total)
    monkeypatch.setattr(
        fb_tall,
        "load_tall_mask",
        lambda *a: {t: {"w": mask.float()} for t, mask in enumerate(masks)},
    )
    for agree in range(5):
        kept = fb_tall.construct_consensus_mask(base, agree, None)
        close(
            merge("consensus", base, experts, lam=0.3, threshold=lam, agree=agree),
            {"w": base["w"] + 0.3 * kept * total},
            atol=1e-6,
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_tall_masks_of_the_whole_algorithm_deviate(seed):
    """FusionBench hands its mask rule task vectors but the base's weights: right only when the base
    is 0."""
    base, experts = make_states(seed)
    for b, right in ((zeros(base), True), (base, False)):
        theirs = TallMaskTaskArithmeticAlgorithm(tall_mask_lambda=0.4).run(
            pool(b, experts, buffers)
        )["models"]
        for t, ours in enumerate(merge("tall_masks", b, experts, lam=0.4)):
            assert (furthest(ours, detached(theirs[f"e{t}"])) < 1e-5) == right


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_emr_merging(seed, n_experts):
    base, experts = make_states(seed, n_experts)
    unified, masks, rescale = emr_merge(vectors(base, experts))
    for t, merged in enumerate(merge("emr_merging", base, experts)):
        close(merged, {n: base[n] + rescale[t] * masks[n][t] * unified[n] for n in base})


def test_emr_merging_deviates_where_it_divides_zero_by_zero():
    """An expert that never moved, or an empty tensor, makes FusionBench's factor NaN."""
    base, experts = make_states(0)
    assert emr_merge([*vectors(base, experts), zeros(base)])[2][-1].isnan()
    close(merge("emr_merging", base, [*experts, base])[-1], base)
    empty = [s | {"none": torch.empty(0, 3)} for s in (base, *experts)]
    assert emr_merge(vectors(empty[0], empty[1:]))[2].isnan().all()
    close(
        {n: t for n, t in merge("emr_merging", empty[0], empty[1:])[0].items() if n != "none"},
        merge("emr_merging", base, experts)[0],
    )


# ---- singular values (A15, A16, A17) -------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n_experts", [1, 2, 3])
@pytest.mark.parametrize("excluded", [(), ("c_wide",)])
def test_tsv_merge(seed, n_experts, excluded):
    """Ranks 4, 5 and 6 by 1, 2 and 3 tasks: with and without a remainder."""
    base, experts = make_states(seed, n_experts)
    theirs = compute_and_sum_svd_mem_reduction(
        vectors(base, experts), exclude_keys=list(excluded), accelerator="cpu"
    )
    close(
        merge("tsv_merge", base, experts, lam=0.8, exclude=excluded),
        {n: base[n] + 0.8 * theirs[n] for n in base},
    )


def test_tsv_merge_with_more_tasks_than_rank_deviates():
    """FusionBench's matrix comes out as 0; ours is the mean."""
    base, experts = make_states(0, n_experts=5)
    theirs = compute_and_sum_svd_mem_reduction(vectors(base, experts), accelerator="cpu")
    ours = merge("tsv_merge", base, experts)
    assert not theirs["d_tall"].any()
    torch.testing.assert_close(ours["d_tall"], merge("weight_averaging", base, experts)["d_tall"])
    torch.testing.assert_close(
        ours["b_square"], base["b_square"] + theirs["b_square"], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n_experts", [1, 2, 3])
@pytest.mark.parametrize("excluded", [(), ("c_wide",)])
def test_isotropic_merging(seed, n_experts, excluded):
    base, experts = make_states(seed, n_experts)
    taus = vectors(base, experts)
    theirs = iso_c(taus, accelerator="cpu", exclude_keys=list(excluded))
    close(
        merge("iso_c", base, experts, lam=1.5, exclude=excluded),
        {n: base[n] + 1.5 * theirs[n] for n in base},
    )
    for common in (0.5, 0.8, 1.0):
        theirs = iso_cts(
            taus, common_space_fraction=common, accelerator="cpu", exclude_keys=list(excluded)
        )
        close(
            merge("iso_cts", base, experts, lam=1.5, common=common, exclude=excluded),
            {n: base[n] + 1.5 * theirs[n] for n in base},
        )


def test_iso_cts_with_more_directions_than_the_rank_deviates():
    """Rank 5, nothing common, 3 tasks: rounding asks for 3 * 2 directions. FusionBench fails; ours
    gives each task one."""
    taus = [{"w": torch.randn(5, 9, generator=torch.Generator().manual_seed(t))} for t in range(3)]
    with pytest.raises(RuntimeError, match="size"):
        iso_cts(taus, common_space_fraction=0.0, accelerator="cpu")
    singular = torch.linalg.svdvals(
        merge("iso_cts", {"w": torch.zeros(5, 9)}, taus, common=0.0)["w"]
    )
    torch.testing.assert_close(singular, singular.mean().expand(5))


# ---- Model Stock (A12) ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_model_stock(seed):
    base, experts = make_states(seed, n_experts=2, likeness=3.0)
    ours, theirs = merge("model_stock", base, experts), mergekit_stock(base, experts)
    forward = cosines(base, experts) > 0
    assert forward.sum() >= 3
    fb = merge_weights(*experts, base, compute_ratio(compute_angle(*experts, base)))
    for name in [n for n, f in zip(base, forward, strict=True) if f]:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            ours[name], fb[name], atol=1e-4, rtol=1e-4
        )  # degrees in between, in float32


def mergekit_stock(base, experts):
    return merge_state_dicts({"base": base} | dict(enumerate(experts)), "model_stock", base="base")


def cosines(base, experts):
    """The mean pairwise cosine of each tensor."""
    unit = [{n: t.flatten() / t.norm() for n, t in tau.items()} for tau in vectors(base, experts)]
    pairs = [(a, b) for i, a in enumerate(unit) for b in unit[i + 1 :]]
    return torch.stack([torch.stack([a[n] @ b[n] for a, b in pairs]).mean() for n in base])


@pytest.mark.parametrize("seed", SEEDS)
def test_model_stock_of_three(seed):
    """The authors leave open how angles combine: ours and mergekit average cosines, FusionBench
    angles."""
    base, experts = make_states(seed, likeness=2.0)
    experts[2] = {
        n: base[n] + 0.4 * (experts[2][n] - base[n]) + 2 * random_state(seed)[n] for n in base
    }
    ours, theirs = merge("model_stock", base, experts), mergekit_stock(base, experts)
    fb = detached(ModelStock().run(pool(base, experts)))
    forward = [n for n, c in zip(base, cosines(base, experts), strict=True) if c > 0.05]
    assert len(forward) >= 2
    for name in forward:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)
    assert max(float((ours[n] - fb[n]).abs().max()) for n in forward) > 1e-3


def test_model_stock_of_opposed_experts_deviates():
    """A negative cosine gives a ratio outside [0, 1]: both peers step away from the base, ours
    stays on it."""
    base, experts = (
        {"w": torch.zeros(2)},
        [{"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([1.0, -2.0])}],
    )
    assert torch.equal(merge("model_stock", base, experts)["w"], base["w"])
    assert mergekit_stock(base, experts)["w"].tolist()[0] < -0.5
    assert (
        merge_weights(*experts, base, compute_ratio(compute_angle(*experts, base)))["w"].tolist()[0]
        < -0.5
    )


# ---- Model Breadcrumbs and DELLA (A14, A19) ------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("keep", "drop_top"), [(0.15, 0.006), (0.5, 0.05), (0.3, 0.0)])
def test_breadcrumbs_of_vectors(seed, keep, drop_top):
    base, *experts = [
        {
            "v": random_state(seed + t)["a_vector"],
            "w": torch.randn(300, generator=torch.Generator().manual_seed(seed + t)),
        }
        for t in range(4)
    ]
    close(
        merge("model_breadcrumbs", base, experts, lam=0.3, keep=keep, drop_top=drop_top),
        mergekit("breadcrumbs", base, experts, density=keep, gamma=drop_top, **{"lambda": 0.3}),
    )


def test_breadcrumbs_deviate():
    g = torch.Generator().manual_seed(0)
    # mergekit flattens a matrix, ours ranks each row.
    tau = torch.randn(6, 50, generator=g) * torch.arange(1, 7)[:, None]
    theirs = sparsify.magnitude_outliers(tau, density=0.2, gamma=0.04)
    assert (breadcrumbs(tau, 0.2, 0.04) != 0).sum(1).tolist() == [10] * 6
    assert (theirs != 0).sum() == 60 and (theirs != 0).sum(1).tolist() != [10] * 6
    # int(keep * n) = 0: mergekit keeps nothing, ours one entry.
    short = torch.tensor([1.0, -3.0, 2.0])
    assert not sparsify.magnitude_outliers(short, density=0.15, gamma=0.006).any()
    assert breadcrumbs(short, 0.15, 0.006).tolist() == [0, -3, 0]
    # Fewer left than are to be kept: mergekit takes outliers back in, ours never does.
    tau = torch.arange(1.0, 11.0)
    assert sparsify.magnitude_outliers(tau, density=0.9, gamma=0.2).tolist() == [*range(1, 10), 0]
    assert breadcrumbs(tau, 0.9, 0.2).tolist() == [*range(1, 9), 0, 0]


def test_breadcrumbs_bug_of_older_mergekit_is_gone():
    """Where int(gamma * n) is 0 older releases kept nothing (methods.md A14); this one is right,
    and equal to ours."""
    tau = torch.randn(40, generator=torch.Generator().manual_seed(1))
    theirs = sparsify.magnitude_outliers(tau, density=0.25, gamma=0.01)
    assert (theirs != 0).sum() == 10
    assert torch.equal(breadcrumbs(tau, 0.25, 0.01), theirs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(40,), (5, 30)])
def test_della_with_a_shared_mask(monkeypatch, seed, shape):
    """Equal ranks, probabilities and kept entries; ours divides by the probability, mergekit
    restores the L1 norm or nothing."""
    tau = torch.randn(shape, generator=torch.Generator().manual_seed(10 + seed))
    asked = shared_bernoulli(monkeypatch, seed)
    plain = sparsify.della_magprune(tau, density=0.7, epsilon=0.1)
    shared_bernoulli(monkeypatch, seed)
    rescaled = sparsify.della_magprune(
        tau, density=0.7, epsilon=0.1, rescale_norm=sparsify.RescaleNorm.l1
    )
    ours = magprune(tau, drop=0.3, window=0.2, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(ours != 0, plain != 0)
    torch.testing.assert_close(ours * asked[0].view(shape), plain)
    torch.testing.assert_close(rescaled.abs().sum(), tau.abs().sum())
    factors = (rescaled / ours)[ours != 0]
    assert factors.max() / factors.min() > 1.1  # no common factor: small entries weigh too little


@pytest.mark.parametrize("seed", SEEDS)
def test_della_without_dropping_is_the_elected_mean(seed):
    for base, experts in (
        make_states(seed),
        whole_states(seed),
    ):  # exact cancellations count as positive in both
        close(
            merge("della", base, experts, lam=1.1, drop=0.0, window=0.0),
            mergekit("della", base, experts, density=1.0, **{"lambda": 1.1}),
        )


def test_della_deviates_on_single_entries_and_on_kernels(monkeypatch):
    asked = shared_bernoulli(monkeypatch, 0)
    sparsify.della_magprune(torch.ones(1), density=0.7, epsilon=0.07)
    assert asked[0].isnan().all()  # the rank over n - 1 is 0 / 0
    assert magprune(torch.ones(1), drop=0.0, window=0.0, generator=torch.Generator()).item() == 1
    kernel = torch.arange(1.0, 9.0).view(2, 2, 2)
    sparsify.della_magprune(kernel, density=0.5, epsilon=0.1)
    torch.testing.assert_close(
        asked[1], torch.tensor([0.4, 0.6]).view(1, 2, 1).expand(2, 2, 2)
    )  # ranked along the second axis
    ours = magprune(kernel, drop=0.5, window=0.2, generator=torch.Generator().manual_seed(0))
    probability = (kernel / ours)[ours != 0]  # ranked along the last
    assert len(probability) > 2
    torch.testing.assert_close(probability, torch.tensor([0.4, 0.6]).expand(2, 2, 2)[ours != 0])


# ---- what needs data: Fisher Merging, RegMean, AdaMerging (A4, A5, A6) ---------------------------


class Encoder(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Linear(4, width),
            nn.LayerNorm(width),
            nn.Linear(width, 3),
        )

    def forward(self, x):
        return self.second(self.norm(self.first(x)).tanh())


class WithDeadEntry(Encoder):
    """Has a parameter that no output depends on."""

    def __init__(self):
        super().__init__()
        self.dead = nn.Parameter(torch.zeros(2))


class Classifier(nn.Module):
    """The encoder and its head as FusionBench's trainers want them: logits in an attribute."""

    def __init__(self, encoder, state, head):
        super().__init__()
        self.encoder, self.head = deepcopy(encoder), head
        self.encoder.load_state_dict(state)

    def forward(self, x):
        return SimpleNamespace(logits=self.head.logits(self.encoder(x)))


class Loader:
    """Just enough of a Trainer: batches of one task."""

    def __init__(self, inputs, size):
        self._train_batch_size, self.batches = (
            size,
            [{"x": inputs[i : i + size]} for i in range(0, len(inputs), size)],
        )

    def get_train_dataloader(self):
        return self.batches

    def _prepare_inputs(self, batch):
        return batch


def make_task(seed, n_inputs=12, n_experts=2, n_classes=4, make=Encoder, more=0):
    """A base, experts near it, and a context with each expert's inputs (``more`` for each next
    task) and head."""
    torch.manual_seed(seed)
    encoder = make()
    base = {n: t.clone() for n, t in encoder.state_dict().items()}
    experts = [
        {n: t + 0.3 * torch.randn_like(t) if n != "dead" else t.clone() for n, t in base.items()}
        for _ in range(n_experts)
    ]
    tasks = tuple(
        TaskData(
            torch.randn(n_inputs + more * t, 4) + t,
            Head(2 * torch.randn(n_classes, 3), torch.randn(n_classes)),
        )
        for t in range(n_experts)
    )
    return (
        base,
        experts,
        Context(
            encoder,
            encoder,
            lambda rows: {"x": rows if isinstance(rows, torch.Tensor) else torch.stack(rows)},
            tasks,
        ),
    )


def as_trainers(experts, context, size):
    models = [
        Classifier(context.module, e, task.head)
        for e, task in zip(experts, context.tasks, strict=True)
    ]
    return models, [Loader(task.inputs, size) for task in context.tasks]


def stacked(experts):
    return {n: [e[n] for e in experts] for n in experts[0]}


def unprefixed(state):
    return {n.removeprefix("encoder."): t.detach() for n, t in state.items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_fisher_merging_of_the_same_fishers(seed):
    """Their weighted mean of our Fishers, divided by our norms, is ours."""
    base, experts, context = make_task(seed)
    fishers = [fisher_diagonal(context, t, e, 12) for t, e in enumerate(experts)]
    norms = [flatten(f, sorted(f)).norm() for f in fishers]
    theirs = fb_fisher.merging_with_fisher_weights(
        stacked(experts),
        [{n: v / norm for n, v in f.items()} for f, norm in zip(fishers, norms, strict=True)],
        torch.ones(2),
        normalize_fisher_weight=False,
        minimal_fisher_weight=1e-6,
    )
    close(merge("fisher_merging", base, experts, context, n_examples=12, floor=1e-6), theirs)
    torch.testing.assert_close(
        fb_fisher.get_models_fisher_norm(stacked(experts), fishers), torch.stack(norms)
    )


def test_fisher_merging_deviates_where_no_expert_has_a_gradient():
    """FusionBench divides floor and Fisher by the norm together, so a dead entry leans to the
    expert of the smaller norm."""
    base, experts, context = make_task(0, make=WithDeadEntry)
    experts[0]["dead"] += 1
    fishers = [fisher_diagonal(context, t, e, 12) for t, e in enumerate(experts)]
    fishers[0] = {n: 100 * f for n, f in fishers[0].items()}
    assert merge("fisher_merging", base, experts, context)["dead"].tolist() == [0.5, 0.5]
    assert (
        fb_fisher.merging_with_fisher_weights(stacked(experts), fishers, torch.ones(2))["dead"]
        < 0.1
    ).all()
    # Its estimator cannot even be asked: a parameter without a gradient has no square.
    models, trainers = as_trainers(experts, context, 4)
    with pytest.raises((AttributeError, TypeError)):
        fb_fisher.fisher_merging(models, trainers, [], [12, 12])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 4])
def test_fisher_shortcut_deviates(monkeypatch, seed, size):
    """FusionBench squares after summing over classes and batch; ours squares each gradient, which
    is the Fisher."""
    _, experts, context = make_task(seed)
    caught = {}
    monkeypatch.setattr(
        fb_fisher, "merging_with_fisher_weights", lambda **given: caught.update(given)
    )
    models, trainers = as_trainers(experts, context, size)
    fb_fisher.fisher_merging(models, trainers, [], [12, 12])
    for t, theirs in enumerate(caught["models_to_merge_fisher_weights_list"]):
        ours, theirs = fisher_diagonal(context, t, experts[t], 12), unprefixed(theirs)
        ratio = flatten(theirs, sorted(ours)) / flatten(ours, sorted(ours))
        assert ratio.max() / ratio.min() > 3  # nor are they proportional


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("off_diagonal", [0.9, 0.1])
def test_regmean(seed, off_diagonal):
    """The whole method, on the same inputs in the same order; the second task has more of them and
    weighs no more."""
    base, experts, context = make_task(seed, n_inputs=16, more=24)
    models, trainers = as_trainers(experts, context, 8)
    theirs = regmean_merging(models, trainers, [], [40, 40], reduce_non_diagonal_ratio=off_diagonal)
    close(
        merge("regmean", base, experts, context, off_diagonal=off_diagonal, n_examples=40),
        unprefixed(theirs),
        atol=1e-4,
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_regmean_on_fewer_rows_than_columns_deviates(seed):
    """The sum of Gram matrices is singular: FusionBench inverts it all the same, ours still solves
    the normal equations."""
    g = torch.Generator().manual_seed(seed)
    weights, rows = [
        [torch.randn(3 if what else 2, 8, generator=g) for _ in range(2)] for what in (1, 0)
    ]
    grams = [(x.T @ x / len(x)).double() for x in rows]

    def residual(w):
        right = sum(gram @ each.double().T for gram, each in zip(grams, weights, strict=True))
        return float((sum(grams) @ w.double().T - right).norm() / right.norm())

    def theirs():
        return merging_with_regmean_weights(
            {"m.weight": weights}, [{"m": gram.float()} for gram in grams]
        )["m.weight"]

    assert residual(regmean_weight(grams, weights)) < 1e-8
    try:
        assert residual(theirs()) > 1e-3
    except torch.linalg.LinAlgError as error:
        assert "singular" in str(error)
    grams = [
        gram * torch.outer(alive, alive)
        for alive in [(torch.arange(8) > 0).double()]
        for gram in grams
    ]  # a dead input
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        theirs()
    assert residual(regmean_weight(grams, weights)) < 1e-8


@pytest.mark.parametrize("seed", SEEDS)
def test_mean_entropy(seed):
    logits = 4 * torch.randn(20, 6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(mean_entropy(logits), entropy_loss(logits), atol=1e-6, rtol=1e-6)


def test_entropy_of_certainty_deviates():
    """FusionBench adds 1e-8 inside its logarithm: below 0 where ours is 0."""
    logits = torch.tensor([[200.0, 0.0]])
    assert mean_entropy(logits) == 0
    assert entropy_loss(logits) <= 0


class OneBatch:
    """A task's only batch, again and again, behind its head: nothing about the adaptation is
    random."""

    def get_shuffled_test_loader_iter(self, task):
        x = self.task_data[int(task[1:])].inputs
        return iter([(x, None)] * 1000)


class LayerWise(OneBatch, LayerWiseAdaMergingAlgorithm):
    def log_hyperparams(self, *args):
        """It would want a logger and a folder."""

    def compute_logits(self, model, images, task):
        return self.task_data[int(task[1:])].head.logits(model(images))


class TaskWise(OneBatch, TaskWiseAdaMergingAlgorithm):
    def compute_logits(self, model, batch, task):
        return self.task_data[int(task[1:])].head.logits(model(batch[0]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "theirs"), [("adamerging_layer", LayerWise), ("adamerging_task", TaskWise)]
)
def test_adamerging(seed, name, theirs):
    """The whole adaptation, on one input per task: 15 steps of Adam on the coefficients lead to the
    same encoder."""
    base, experts, context = make_task(seed, n_inputs=1)
    config = {
        "weights": None,
        "init_values": 0.3,
        "clamp_weights": False,
        "tie_weights": False,
        "strict": True,
        "optimizer": "adam",
        "lr": 1e-2,
        "max_steps": 15,
    }
    algorithm = theirs(OmegaConf.create(config))
    algorithm.task_data = context.tasks
    # Without a GPU its task-wise form makes no Fabric, and then calls it.
    algorithm._fabric = algorithm._fabric_instance = lightning.Fabric(accelerator="cpu", devices=1)
    models = {"_pretrained_": base} | {f"e{t}": e for t, e in enumerate(experts)}
    for model_name, state in models.items():
        models[model_name] = Encoder()
        models[model_name].load_state_dict(state)
    theirs = detached(algorithm.run(fusion_bench.BaseModelPool(models)))
    ours = merge(name, base, experts, context, steps=15, lr=1e-2, prior=0.3)
    close(ours, theirs, atol=1e-4)
    assert furthest(ours, merge("task_arithmetic", base, experts, lam=0.3)) > 1e-2  # it moved


@pytest.mark.parametrize("seed", SEEDS)
def test_the_task_vectors_of_adamerging_pp(seed):
    base, experts = make_states(seed)
    names = float_names(base)
    theirs, _ = ties_merging_split(
        torch.stack([flatten(e, names) - flatten(base, names) for e in experts]),
        reset_thresh=0.2,
        merge_func="sum",
    )
    for ours, row in zip(ties_vectors(base, experts, one_more(base, 0.2)), theirs, strict=True):
        torch.testing.assert_close(flatten(ours, names), row, atol=1e-6, rtol=0)
    state = combine(base, vectors(base, experts), torch.full((3, 1), 0.3))
    close({n: state[n] for n in base}, merge("task_arithmetic", base, experts, lam=0.3))
