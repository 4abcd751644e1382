"""Merging methods against two public implementations on random weights.

They differ from ours where they are wrong or leave a case open; what ours does there is tested in
``tests/merging``. FusionBench keeps one entry more in Ties, counts tied tensors twice, adds in the
weights' precision, squares sums in Fisher Merging, inverts singular Gram matrices, and gives NaN
for experts that did not move (EMR-Merging) and 0 for more tasks than the rank (TSV-Merge). mergekit
works tensor by tensor, restores L1 norms instead of dividing by a probability, and counts a
cancelled column as positive in Ties.

Runs where FusionBench and mergekit are installed: ``pip install -e ".[test,peers]"``. Neither has
PCB-Merging, Model Tailor, LM-Cocktail, Gradient Matching, Grafting or LiNeS; Iso-CTS, TSV-Merge,
EMR-Merging, MagMax, TALL-masks, WUDI-Merging, Fisher Merging, RegMean and AdaMerging are
FusionBench's alone, Model Breadcrumbs, DELLA and the Karcher mean mergekit's.
"""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

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
    compute_angle,
    compute_ratio,
    merge_weights,
)
from fusion_bench.method.regmean.regmean import regmean_merging
from fusion_bench.method.simple_average import simple_average
from fusion_bench.method.tall_mask import utils as fb_tall
from fusion_bench.method.task_arithmetic import TaskArithmeticAlgorithm, task_arithmetic_merge
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import (
    compute_and_sum_svd_mem_reduction,
)
from fusion_bench.method.ties_merging.ties_merging_utils import (
    ties_merging,
    ties_merging_split,
)
from fusion_bench.method.wudi.wudi import wudi_merging
from mergekit import sparsify
from mergekit.merge_methods import merge_state_dicts
from near import assert_states_close, normal, seeded
from omegaconf import OmegaConf

from mergelib.core.types import Head
from mergelib.merging import Context, TaskData, get_method
from mergelib.merging.adamerging import mean_entropy, ties_vectors
from mergelib.merging.dropping import magprune
from mergelib.merging.fisher import fisher_diagonal
from mergelib.merging.masks import tall_mask
from mergelib.merging.states import flatten, float_names

seeds = pytest.mark.parametrize("seed", range(3))


def random_state(seed, scale=1.0):
    """A vector, three matrices, a 4-d tensor and a scalar. Names are sorted, so that all draw
    random numbers in one order."""
    g = seeded(seed)
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


def whole_states(seed, size=24):
    """Small integers: equal magnitudes, zeros and exact cancellations abound, and float arithmetic
    is exact."""
    g = seeded(seed)
    base, *experts = [{"w": torch.randint(-3, 4, (size,), generator=g).float()} for _ in range(4)]
    return base, experts


def merge(name, base, experts, *context, **options):
    return get_method(name)(base, experts, *context, **options)


def minus(a, b):
    return {n: a[n] - b[n] for n in a}


def vectors(base, experts):
    return [minus(e, base) for e in experts]


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


def pool(base, experts):
    return fusion_bench.BaseModelPool(
        {"_pretrained_": module(base)} | {f"e{t}": module(e) for t, e in enumerate(experts)}
    )


def mergekit(name, base, experts, **parameters):
    states = {"base": base} | dict(enumerate(experts))
    return merge_state_dicts(states, name, base="base", parameters={"weight": 1.0} | parameters)


def one_by_one(name, base, experts, **options):
    """Our method on each tensor by itself, as mergekit always does."""
    return {n: merge(name, {n: base[n]}, [{n: e[n]} for e in experts], **options)[n] for n in base}


def detached(model):
    return {n: t.detach() for n, t in model.state_dict().items()}


def furthest(a, b):
    """The largest difference of two states."""
    return max(float((a[n] - b[n]).abs().max()) for n in a)


# ---- averages and sums (methods.md A0, A1, A2) ---------------------------------------------------


@seeds
@pytest.mark.parametrize("n_experts", [1, 2, 5])
def test_average(seed, n_experts):
    base, experts = make_states(seed, n_experts)
    ours = merge("weight_averaging", base, experts)
    assert_states_close(ours, simple_average(experts))
    assert_states_close(ours, merge_state_dicts(experts, "linear", parameters={"weight": 1.0}))


@seeds
@pytest.mark.parametrize("lam", [0.3, 0.7])
def test_task_arithmetic(seed, lam):
    base, experts = make_states(seed)
    ours = merge("task_arithmetic", base, experts, lam=lam)
    assert_states_close(
        ours, detached(task_arithmetic_merge(buffers(base), [buffers(e) for e in experts], lam))
    )
    assert_states_close(
        ours, detached(TaskArithmeticAlgorithm(scaling_factor=lam).run(pool(base, experts)))
    )
    assert_states_close(ours, mergekit("task_arithmetic", base, experts, **{"lambda": lam}))


# ---- Ties (A3) -----------------------------------------------------------------------------------


sums_and_means = pytest.mark.parametrize("combine", ["sum", "mean"])


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


@seeds
@sums_and_means
@pytest.mark.parametrize("keep", [0.2, 0.5])
def test_ties_keeps_one_entry_more_upstream_and_is_the_same_otherwise(seed, keep, combine):
    base, experts = make_states(seed)
    names, theirs = float_names(base), fb_ties(base, experts, keep, combine)
    for kept, same in ((one_more(base, keep), True), (keep, False)):
        ours = merge("ties", base, experts, lam=0.3, keep=kept, combine=combine)
        wanted = flatten(base, names) + 0.3 * theirs
        assert torch.allclose(flatten(ours, names), wanted, atol=1e-5, rtol=1e-5) == same


@pytest.mark.parametrize("seed", range(20))
@sums_and_means
def test_ties_resolves_ties_and_cancellations_as_upstream(seed, combine):
    base, experts = whole_states(seed)
    ours = merge("ties", base, experts, lam=1.0, keep=one_more(base, 0.4), combine=combine)
    assert torch.equal(ours["w"], base["w"] + fb_ties(base, experts, 0.4, combine))


@seeds
@sums_and_means
def test_ties_of_mergekit_is_ours_tensor_by_tensor(seed, combine):
    base, experts = make_states(seed)
    del base["f_scalar"]  # mergekit keeps at least one entry, ours int(1 * keep) = 0
    experts = [{n: e[n] for n in base} for e in experts]
    theirs = mergekit(
        "ties", base, experts, density=0.4, normalize=combine == "mean", **{"lambda": 0.7}
    )
    assert_states_close(
        one_by_one("ties", base, experts, lam=0.7, keep=0.4, combine=combine), theirs
    )
    # Deviation: ours ranks the whole encoder at once.
    assert furthest(merge("ties", base, experts, lam=0.7, keep=0.4, combine=combine), theirs) > 0.1


# ---- DARE (A7) -----------------------------------------------------------------------------------

# Both draw uniform numbers of one shape after another: a common seed is a common mask.


@seeds
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
        assert_states_close(ours, detached(theirs.run(pool(base, experts))))


def shared_bernoulli(monkeypatch, seed):
    """mergekit draws its masks with torch.bernoulli: let it use the numbers that our generator
    gives for this seed."""
    generator = seeded(seed)
    asked = []

    def draw(probability):
        asked.append(probability.clone())
        return (torch.rand(probability.shape, generator=generator) < probability).to(
            probability.dtype
        )

    monkeypatch.setattr(torch, "bernoulli", draw)
    return asked


# ---- MagMax, TALL-masks, Consensus, EMR-Merging (A8, A9, A10, A18) -------------------------------


@seeds
def test_magmax(seed):
    for base, experts in (
        make_states(seed),
        whole_states(seed),
    ):  # of equal magnitudes both take the later
        assert_states_close(
            merge("magmax", base, experts, lam=0.5),
            detached(magmax_merge(module(base), [module(e) for e in experts], 0.5)),
        )


def fb_masks(base, experts, lam):
    tau = torch.stack([e["w"] - base["w"] for e in experts])
    return fb_tall.generate_task_masks(
        tau, torch.stack([e["w"] for e in experts]), base["w"], tall_mask_lambda=lam
    )


@seeds
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
        assert_states_close(
            merge("consensus", base, experts, lam=0.3, threshold=lam, agree=agree),
            {"w": base["w"] + 0.3 * kept * total},
            atol=1e-6,
        )


@seeds
@pytest.mark.parametrize("n_experts", [1, 2, 4])
def test_emr_merging(seed, n_experts):
    base, experts = make_states(seed, n_experts)
    unified, masks, rescale = emr_merge(vectors(base, experts))
    for t, merged in enumerate(merge("emr_merging", base, experts)):
        assert_states_close(
            merged, {n: base[n] + rescale[t] * masks[n][t] * unified[n] for n in base}
        )


# ---- singular values (A15, A16, A17) -------------------------------------------------------------


@seeds
@pytest.mark.parametrize("n_experts", [1, 2, 3])
@pytest.mark.parametrize("excluded", [(), ("c_wide",)])
def test_tsv_merge(seed, n_experts, excluded):
    """Ranks 4, 5 and 6 by 1, 2 and 3 tasks: with and without a remainder."""
    base, experts = make_states(seed, n_experts)
    theirs = compute_and_sum_svd_mem_reduction(
        vectors(base, experts), exclude_keys=list(excluded), accelerator="cpu"
    )
    assert_states_close(
        merge("tsv_merge", base, experts, lam=0.8, exclude=excluded),
        {n: base[n] + 0.8 * theirs[n] for n in base},
    )


@seeds
@pytest.mark.parametrize("n_experts", [1, 2, 3])
@pytest.mark.parametrize("excluded", [(), ("c_wide",)])
def test_isotropic_merging(seed, n_experts, excluded):
    base, experts = make_states(seed, n_experts)
    taus = vectors(base, experts)
    theirs = iso_c(taus, accelerator="cpu", exclude_keys=list(excluded))
    assert_states_close(
        merge("iso_c", base, experts, lam=1.5, exclude=excluded),
        {n: base[n] + 1.5 * theirs[n] for n in base},
        atol=5e-5,  # singular vectors of close values turn with rounding: 2.7e-5 seen
    )
    for common in (0.5, 0.8, 1.0):
        theirs = iso_cts(
            taus, common_space_fraction=common, accelerator="cpu", exclude_keys=list(excluded)
        )
        assert_states_close(
            merge("iso_cts", base, experts, lam=1.5, common=common, exclude=excluded),
            {n: base[n] + 1.5 * theirs[n] for n in base},
            atol=5e-5,
        )


# ---- WUDI-Merging, Karcher mean ------------------------------------------------------------------


@seeds
def test_wudi(seed):
    base, experts = make_states(seed)
    theirs = wudi_merging(vectors(base, experts), accelerator="cpu", exclude_keys=["c_wide"])
    ours = merge("wudi", base, experts, exclude=("c_wide",))
    assert_states_close(ours, {n: base[n] + theirs[n].detach() for n in base}, atol=2e-5)
    assert furthest(ours, merge("task_arithmetic", base, experts, lam=1.0)) > 1e-3


@seeds
def test_karcher(seed):
    for likeness in (0.0, 5.0):
        base, experts = make_states(seed, likeness=likeness)
        assert_states_close(
            merge("karcher", base, experts),
            merge_state_dicts(experts, "karcher"),
            atol=1e-4,  # theirs takes the arccosine of numbers near 1
        )


# ---- Model Stock (A12) ---------------------------------------------------------------------------


@seeds
def test_model_stock(seed):
    base, experts = make_states(seed, n_experts=2, likeness=3.0)
    ours, theirs = merge("model_stock", base, experts), mergekit_stock(base, experts)
    forward = cosines(base, experts) > 0
    assert forward.sum() >= 3
    fb = merge_weights(*experts, base, compute_ratio(compute_angle(*experts, base)))
    for name in [n for n, f in zip(base, forward, strict=True) if f]:
        assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)
        assert_close(ours[name], fb[name], atol=1e-4, rtol=1e-4)  # degrees in between, in float32


def mergekit_stock(base, experts):
    return merge_state_dicts({"base": base} | dict(enumerate(experts)), "model_stock", base="base")


def cosines(base, experts):
    """The mean pairwise cosine of each tensor."""
    unit = [{n: t.flatten() / t.norm() for n, t in tau.items()} for tau in vectors(base, experts)]
    pairs = [(a, b) for i, a in enumerate(unit) for b in unit[i + 1 :]]
    return torch.stack([torch.stack([a[n] @ b[n] for a, b in pairs]).mean() for n in base])


@seeds
def test_model_stock_of_three(seed):
    """The authors leave open how angles combine: ours and mergekit average cosines, FusionBench
    angles."""
    base, experts = make_states(seed, likeness=2.0)
    experts[2] = {
        n: base[n] + 0.4 * (experts[2][n] - base[n]) + 2 * random_state(seed)[n] for n in base
    }
    ours, theirs = merge("model_stock", base, experts), mergekit_stock(base, experts)
    forward = [n for n, c in zip(base, cosines(base, experts), strict=True) if c > 0.05]
    assert len(forward) >= 2
    for name in forward:
        assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)


# ---- Model Breadcrumbs and DELLA (A14, A19) ------------------------------------------------------


@seeds
@pytest.mark.parametrize("keep, drop_top", [(0.15, 0.006), (0.5, 0.05), (0.3, 0.0)])
def test_breadcrumbs_of_vectors(seed, keep, drop_top):
    base, *experts = [
        {
            "v": random_state(seed + t)["a_vector"],
            "w": normal(300, seed=seed + t),
        }
        for t in range(4)
    ]
    assert_states_close(
        merge("model_breadcrumbs", base, experts, lam=0.3, keep=keep, drop_top=drop_top),
        mergekit("breadcrumbs", base, experts, density=keep, gamma=drop_top, **{"lambda": 0.3}),
    )


@seeds
@pytest.mark.parametrize("shape", [(40,), (5, 30)])
def test_della_with_a_shared_mask(monkeypatch, seed, shape):
    """Equal ranks, probabilities and kept entries; ours divides by the probability."""
    tau = normal(*shape, seed=10 + seed)
    asked = shared_bernoulli(monkeypatch, seed)
    theirs = sparsify.della_magprune(tau, density=0.7, epsilon=0.1)
    ours = magprune(tau, drop=0.3, window=0.2, generator=seeded(seed))
    assert torch.equal(ours != 0, theirs != 0)
    assert_close(ours * asked[0].view(shape), theirs)


@seeds
def test_della_without_dropping_is_the_elected_mean(seed):
    for base, experts in (
        make_states(seed),
        whole_states(seed),
    ):  # exact cancellations count as positive in both
        assert_states_close(
            merge("della", base, experts, lam=1.1, drop=0.0, window=0.0),
            mergekit("della", base, experts, density=1.0, **{"lambda": 1.1}),
        )


# ---- what needs data: Fisher Merging, RegMean, AdaMerging (A4, A5, A6) ---------------------------


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(self.norm(self.first(x)).tanh())


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


def make_task(seed, n_inputs=12, more=0):
    """A base, two experts near it, and a context with each expert's inputs (``more`` for the
    second task) and head."""
    torch.manual_seed(seed)
    encoder = Encoder()
    base = {n: t.clone() for n, t in encoder.state_dict().items()}
    experts = [{n: t + 0.3 * torch.randn_like(t) for n, t in base.items()} for _ in range(2)]
    tasks = tuple(
        TaskData(
            torch.randn(n_inputs + more * t, 4) + t, Head(2 * torch.randn(4, 3), torch.randn(4))
        )
        for t in range(2)
    )

    def collate(rows):
        return {"x": rows if isinstance(rows, torch.Tensor) else torch.stack(rows)}

    return base, experts, Context(encoder, encoder, collate, tasks)


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


@seeds
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
    assert_states_close(
        merge("fisher_merging", base, experts, context, n_examples=12, floor=1e-6), theirs
    )
    assert_close(fb_fisher.get_models_fisher_norm(stacked(experts), fishers), torch.stack(norms))


@seeds
@pytest.mark.parametrize("off_diagonal", [0.9, 0.1])
def test_regmean(seed, off_diagonal):
    """The whole method, on the same inputs in the same order; the second task has more of them and
    weighs no more."""
    base, experts, context = make_task(seed, n_inputs=16, more=24)
    models, trainers = as_trainers(experts, context, 8)
    theirs = regmean_merging(models, trainers, [], [40, 40], reduce_non_diagonal_ratio=off_diagonal)
    assert_states_close(
        merge("regmean", base, experts, context, off_diagonal=off_diagonal, n_examples=40),
        unprefixed(theirs),
        atol=1e-4,
    )


@seeds
def test_mean_entropy(seed):
    logits = 4 * normal(20, 6, seed=seed)
    assert_close(mean_entropy(logits), entropy_loss(logits), atol=1e-6, rtol=1e-6)
    assert mean_entropy(torch.tensor([[200.0, 0.0]])) == 0


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


@seeds
@pytest.mark.parametrize(
    "name, theirs", [("adamerging_layer", LayerWise), ("adamerging_task", TaskWise)]
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
    assert_states_close(ours, theirs, atol=1e-4)
    assert furthest(ours, merge("task_arithmetic", base, experts, lam=0.3)) > 1e-2  # it moved


@seeds
def test_the_task_vectors_of_adamerging_pp(seed):
    base, experts = make_states(seed)
    names = float_names(base)
    theirs, _ = ties_merging_split(
        torch.stack([flatten(e, names) - flatten(base, names) for e in experts]),
        reset_thresh=0.2,
        merge_func="sum",
    )
    for ours, row in zip(ties_vectors(base, experts, one_more(base, 0.2)), theirs, strict=True):
        assert_close(flatten(ours, names), row, atol=1e-6, rtol=0)
