"""Every method on weights alone: closed forms, slow references from the formulas (methods.md
A7-A20), chance, broken options."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from near import assert_states_close, seeded
from test_every_method_data import as_list, float_names, merge, retied, setting
from torch.testing import assert_close

from mergelib.core.errors import ConfigError
from mergelib.core.identity import is_ours
from mergelib.merging import METHODS, get_method, method
from mergelib.merging.dropping import dare, magprune
from mergelib.merging.masks import tall_mask
from mergelib.merging.states import add_scaled

ON_WEIGHTS = sorted(n for n, m in METHODS.items() if not m.needs)
SEEDS = range(3)
seeds = pytest.mark.parametrize("seed", SEEDS)


MATRICES = ["first.weight", "second.weight"]


def on_two_tensors(taus):
    """Base (all ones) and experts whose task vectors, cut into two tensors, are ``taus``: what is
    global must span the cut."""
    cut = len(taus[0]) // 2
    base = {"x": torch.ones(cut), "y": torch.ones(len(taus[0]) - cut)}
    return base, [{"x": 1 + torch.tensor(t[:cut]), "y": 1 + torch.tensor(t[cut:])} for t in taus]


def tau_of(merged):
    """The merged task vector, for bases from ``on_two_tensors``."""
    return (torch.cat([merged["x"], merged["y"]]) - 1).tolist()


@st.composite
def task_vectors(draw, least=2):
    """Small integers, so that equal magnitudes, zeros and exact cancellations are common."""
    t, d = draw(st.integers(1, 4)), draw(st.integers(least, 12))
    return draw(
        st.lists(
            st.lists(st.integers(-3, 3).map(float), min_size=d, max_size=d), min_size=t, max_size=t
        )
    )


def columns(taus):
    return list(zip(*taus, strict=True))


# ---- closed forms (methods.md G1, G2, G4, G5) ----------------------------------------------------


@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_experts_that_never_moved_leave_the_base(name):
    base = setting(3)[0]
    for merged in as_list(merge(name, base, [base, base])):
        assert_states_close(merged, base, atol=1e-6)


@pytest.mark.parametrize(
    "name, wrapped, options",
    [
        ("dare_average", "weight_averaging", {}),
        ("dare_task_arithmetic", "task_arithmetic", {"lam": 0.4}),
        ("dare_ties", "ties", {"keep": 0.5, "lam": 0.7, "combine": "mean"}),
        ("dare_ties", "ties", {}),
    ],
)
def test_without_dropping_a_method_is_the_one_it_wraps(name, wrapped, options):
    for seed in SEEDS:
        base, experts, _ = setting(seed)
        assert_states_close(
            merge(name, base, experts, drop=0.0, **options),
            merge(wrapped, base, experts, **options),
            atol=1e-6,
        )


@pytest.mark.parametrize("name", [n for n in ON_WEIGHTS if n != "karcher"])
def test_only_differences_count(name):
    """But for the Karcher mean of whole weights: the same shift of base and experts shifts the
    merge. Weights lie on a grid, so that task vectors stay exact."""

    def shifted(states):
        return [{n: t + 8 for n, t in s.items()} for s in states]

    base, experts, _ = setting(5)
    names = float_names(base)
    base, *experts = [{n: (s[n] * 4096).round() / 4096 for n in names} for s in (base, *experts)]
    wanted = shifted(as_list(merge(name, base, experts)))
    base, *experts = shifted([base, *experts])
    for found, expected in zip(as_list(merge(name, base, experts)), wanted, strict=True):
        assert_states_close(found, expected)


# ---- DARE and DELLA: chance ----------------------------------------------------------------------


def test_dare_drops_that_share_and_rescales_the_rest():
    """tau~ is 0 or tau / (1 - p); of 10,000 entries a share p vanishes, within five deviations."""
    tau = torch.arange(1, 10_001) / 1000
    for drop in (0.1, 0.5, 0.9):
        dropped = dare(tau, drop, seeded(0))
        kept = dropped != 0
        assert_close(dropped[kept], tau[kept] / (1 - drop))
        assert float((~kept).float().mean()) == pytest.approx(
            drop, abs=5 * math.sqrt(drop * (1 - drop) / 10_000)
        )


def test_each_expert_is_dropped_by_its_own_draw():
    """Two equal experts, half dropped: some entries survive in exactly one. A shared mask would
    leave 0 and 2 tau alone."""
    base, expert = {"w": torch.zeros(400)}, {"w": torch.ones(400)}
    merged = merge("dare_average", base, [expert, expert], drop=0.5)["w"]
    counts = [int((merged == v).sum()) for v in (0, 1, 2)]
    assert sum(counts) == 400 and counts[0] > 60 and counts[1] > 150 and counts[2] > 60


def test_dare_ties_drops_before_it_trims():
    """A fifth of all entries survive, as Ties wants; trimming first would halve them afterwards."""
    base, expert = {"w": torch.zeros(1000)}, {"w": torch.randperm(1000, generator=seeded(0)) + 1.0}
    merged = merge("dare_ties", base, [expert], lam=1.0, keep=0.2, drop=0.5)["w"]
    kept = merged != 0
    assert int(kept.sum()) == 200
    assert torch.equal(merged[kept], 2 * expert["w"][kept])


def magprune_probabilities(row, drop, window):
    """density - eps + 2 eps rho, rho the rank of the magnitude, 0 for the smallest and 1 for the
    largest."""
    ranks = [sum(abs(other) < abs(v) for other in row) for v in row]
    return [1 - drop - window / 2 + window * r / (len(row) - 1) for r in ranks]


@pytest.mark.parametrize("drop, window", [(0.3, 0.14), (0.5, 0.6), (0.4, 0.0), (0.3, 0.6)])
def test_magprune_keeps_by_rank_and_rescales_by_its_own_chance(drop, window):
    row = [0.5, -3.0, 0.1, 2.0, -1.0]
    chances = magprune_probabilities(row, drop, window)
    n = 20_000
    pruned = magprune(torch.tensor(row).expand(n, 5), drop, window, seeded(0))
    for j, (value, chance) in enumerate(zip(row, chances, strict=True)):
        kept = pruned[:, j] != 0
        assert_close(pruned[kept, j], torch.full((int(kept.sum()),), value / chance))
        assert float(kept.float().mean()) == pytest.approx(
            chance, abs=5 * math.sqrt(chance * (1 - chance) / n) + 1e-9
        )


def test_magprune_ranks_within_each_row_and_allows_rows_of_one():
    """The largest entry of a small row has the chance of the largest of a big row; alone in its row
    it is kept or dropped."""
    rows = torch.tensor([[1.0, 2.0, 3.0], [100.0, 200.0, 300.0]]).expand(4000, 2, 3)
    shares = (magprune(rows, 0.5, 0.8, seeded(1)) != 0).float().mean(0)
    assert_close(shares, torch.tensor([[0.1, 0.5, 0.9]] * 2), atol=0.04, rtol=0)
    single = magprune(torch.full((4000, 1), 2.0), 0.5, 0.2, seeded(2))
    assert single.isfinite().all()
    assert float(single.mean()) == pytest.approx(2.0, abs=0.2)


def slow_della_election(taus):
    merged = []
    for column in columns(taus):
        kept = [v for v in column if (v > 0 if sum(column) >= 0 else v < 0)]
        merged.append(sum(kept) / max(1, len(kept)))
    return merged


@given(taus=task_vectors())
def test_della_without_pruning_elects_and_averages(taus):
    """Unlike Ties a column that cancels is positive, and the result is a mean over the agreeing."""
    merged = merge("della", *on_two_tensors(taus), lam=0.5, drop=0.0, window=0.0)
    assert tau_of(merged) == pytest.approx([0.5 * v for v in slow_della_election(taus)], abs=1e-6)


# ---- MagMax, Breadcrumbs -------------------------------------------------------------------------


def slow_magmax(taus):
    merged = []
    for column in columns(taus):
        best = column[0]
        for v in column[1:]:
            if abs(v) >= abs(best):
                best = v
        merged.append(best)
    return merged


@given(taus=task_vectors())
def test_magmax_equals_the_slow_reference(taus):
    """Of equal magnitudes the later expert's."""
    merged = merge("magmax", *on_two_tensors(taus), lam=0.5)
    assert tau_of(merged) == pytest.approx([0.5 * v for v in slow_magmax(taus)], abs=1e-6)


def slow_breadcrumbs_row(row, keep, drop_top):
    order = sorted(range(len(row)), key=lambda j: -abs(row[j]))
    first = int(drop_top * len(row))
    kept = order[first : first + max(1, int(keep * len(row)))]
    return [v if j in kept else 0.0 for j, v in enumerate(row)]


@pytest.mark.parametrize(
    "keep, drop_top",
    [(0.15, 0.006), (0.5, 0.2), (0.25, 0.5), (0.34, 0.0), (1.0, 0.3), (0.01, 0.99)],
)
@seeds
def test_breadcrumbs_equals_the_slow_reference(seed, keep, drop_top):
    """Row by row along the last axis; a vector is one row, a scalar stays."""
    base, experts, _ = setting(seed)
    merged = merge("model_breadcrumbs", base, experts, lam=0.3, keep=keep, drop_top=drop_top)
    for n in float_names(base):
        expected = base[n].numpy().astype(float)
        for e in experts:
            tau = (e[n] - base[n]).numpy()
            if tau.ndim:
                rows = [
                    slow_breadcrumbs_row(r.tolist(), keep, drop_top)
                    for r in tau.reshape(-1, tau.shape[-1])
                ]
                tau = np.array(rows).reshape(tau.shape)
            expected = expected + 0.3 * tau
        np.testing.assert_allclose(merged[n].numpy(), expected, atol=1e-5)


# ---- TALL-masks, Consensus, EMR ------------------------------------------------------------------

# Exact in binary, so that the strict comparison is tested.
THRESHOLDS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 2.0**20])


def slow_tall_masks(taus, lam):
    return [
        [abs(v) > lam * abs(sum(column) - v) for v, column in zip(tau, columns(taus), strict=True)]
        for tau in taus
    ]


@given(taus=task_vectors(), lam=THRESHOLDS)
def test_tall_masks_equal_the_slow_reference(taus, lam):
    totals = [sum(c) for c in columns(taus)]
    given_back = merge("tall_masks", *on_two_tensors(taus), lam=lam)
    assert len(given_back) == len(taus)
    for tau, mask, merged in zip(taus, slow_tall_masks(taus, lam), given_back, strict=True):
        assert tall_mask(torch.tensor(tau), torch.tensor(totals), lam).tolist() == mask
        assert tau_of(merged) == [m * s for m, s in zip(mask, totals, strict=True)]


@given(taus=task_vectors(), threshold=THRESHOLDS, agree=st.integers(0, 5))
def test_consensus_equals_the_slow_reference(taus, threshold, agree):
    votes = [sum(c) for c in columns(slow_tall_masks(taus, threshold))]
    expected = [
        0.5 * sum(c) if v >= agree else 0.0 for c, v in zip(columns(taus), votes, strict=True)
    ]
    merged = merge("consensus", *on_two_tensors(taus), lam=0.5, threshold=threshold, agree=agree)
    assert tau_of(merged) == pytest.approx(expected, abs=1e-6)


def slow_emr(taus):
    """A18 entry by entry, for the two tensors of ``on_two_tensors``: means inside each tensor, then
    their sum."""
    unified, masks = [], [[] for _ in taus]
    for column in columns(taus):
        sign = 1 if sum(column) / len(column) > 0 else -1
        unified.append(sign * max([abs(v) for v in column if v * sign > 0], default=0.0))
        for mask, v in zip(masks, column, strict=True):
            mask.append(v * sign > 0)

    def size(vector):
        cut = len(vector) // 2
        return sum(sum(map(abs, part)) / len(part) for part in (vector[:cut], vector[cut:]))

    models = []
    for tau, mask in zip(taus, masks, strict=True):
        masked = [u * m for u, m in zip(unified, mask, strict=True)]
        rescale = size(tau) / size(masked) if any(masked) else 0.0
        models.append([rescale * v for v in masked])
    return models


@given(taus=task_vectors())
def test_emr_equals_the_slow_reference(taus):
    merged = merge("emr_merging", *on_two_tensors(taus))
    assert len(merged) == len(taus)
    for m, expected in zip(merged, slow_emr(taus), strict=True):
        assert tau_of(m) == pytest.approx(expected, abs=1e-5)


# ---- PCB -----------------------------------------------------------------------------------------


def minmax(row):
    low, high = min(row), max(row)
    return [(v - low) / (high - low) if high > low else 0.0 for v in row]


def quantile(values, q):
    """Without interpolation: the lower neighbour."""
    ranked = sorted(values)
    return ranked[int(q * (len(ranked) - 1))]


def slow_pcb(taus, ratio, clamp):
    """A20, steps 1-6, with the inter-task term of the root form."""
    clamped, sizes = [], []
    for tau in taus:
        low, high = quantile(map(abs, tau), clamp), quantile(map(abs, tau), 1 - clamp)
        sizes.append([min(max(abs(v), low), high) for v in tau])
        clamped.append(
            [math.copysign(a, v) if v else 0.0 for a, v in zip(sizes[-1], tau, strict=True)]
        )
    totals = [sum(c) for c in columns(taus)]
    weights = []
    for tau, size in zip(taus, sizes, strict=True):
        balance = [
            math.exp(len(taus) * s**2) * math.tanh(v * total)
            for s, v, total in zip(minmax(size), tau, totals, strict=True)
        ]
        floor = quantile(balance, 1 - ratio)
        weights.append(minmax([max(b, floor) for b in balance]))
    return [
        sum(w * v for w, v in zip(ws, vs, strict=True)) / max(1e-12, sum(ws))
        for ws, vs in zip(columns(weights), columns(clamped), strict=True)
    ]


def test_pcb_is_not_diluted_by_an_expert_that_never_moved():
    tau = [float(v) for v in range(1, 11)]
    alone = merge("pcb_merging", *on_two_tensors([tau]), ratio=0.3, clamp=0.0)
    beside = merge("pcb_merging", *on_two_tensors([tau, [0.0] * 10]), ratio=0.3, clamp=0.0)
    assert (
        [v != 0 for v in tau_of(alone)]
        == [v != 0 for v in tau_of(beside)]
        == [False] * 7 + [True] * 3
    )
    assert tau_of(beside) == pytest.approx(tau_of(alone))


@pytest.mark.parametrize(
    "ratio, clamp", [(0.1, 0.0), (0.5, 0.0), (1.0, 0.0), (0.1, 0.1), (0.25, 0.05)]
)
@seeds
def test_pcb_equals_the_slow_reference(seed, ratio, clamp):
    taus = torch.randn(3, 40, generator=seeded(seed), dtype=torch.float64).tolist()
    merged = merge(
        "pcb_merging",
        *on_two_tensors(torch.tensor(taus).tolist()),
        lam=0.5,
        ratio=ratio,
        clamp=clamp,
    )
    assert tau_of(merged) == pytest.approx(
        [0.5 * v for v in slow_pcb(taus, ratio, clamp)], abs=1e-4
    )


@given(taus=task_vectors(), ratio=st.sampled_from([0.1, 0.5, 1.0]))
def test_pcb_stays_finite_and_within_its_experts(taus, ratio):
    """A weighted mean, also for constant rows: never beyond the largest task vector, 0 where none
    moved."""
    merged = merge("pcb_merging", *on_two_tensors(taus), ratio=ratio, clamp=0.0)
    for v, column in zip(tau_of(merged), columns(taus), strict=True):
        assert math.isfinite(v) and min(*column, 0.0) - 1e-5 <= v <= max(*column, 0.0) + 1e-5


# ---- spectral methods ----------------------------------------------------------------------------


def svd(matrix):
    return np.linalg.svd(matrix, full_matrices=False)


def slow_polar(matrix):
    p, _, q = svd(matrix)
    return p @ q


def slow_tsv(taus):
    """A15 without the columns that stay zero."""
    q = min(taus[0].shape) // len(taus)
    parts = [svd(tau) for tau in taus]
    u = np.concatenate([u[:, :q] for u, _, _ in parts], 1)
    s = np.concatenate([s[:q] for _, s, _ in parts])
    v = np.concatenate([v[:q] for _, _, v in parts], 0)
    return slow_polar(u) @ np.diag(s) @ slow_polar(v)


def slow_iso_c(taus):
    u, s, v = svd(sum(taus))
    return s.mean() * u @ v


def slow_iso_cts(taus, common):
    r = min(taus[0].shape)
    k = round((r - int(common * r)) / len(taus))
    c = r - k * len(taus)
    u, s, v = svd(sum(taus))
    us, ss, vs = [], [], []
    for tau in taus:
        ut, st_, vt = svd(tau - u[:, :c] @ u[:, :c].T @ tau)
        us.append(ut[:, :k])
        ss.append(st_[:k])
        vs.append(vt[:k])
    u, s, v = (
        np.concatenate([*us, u[:, :c]], 1),
        np.concatenate([*ss, s[:c]]),
        np.concatenate([*vs, v[:c]], 0),
    )
    return s.mean() * slow_polar(u) @ slow_polar(v)


@pytest.mark.parametrize(
    "name, slow, options",
    [("tsv_merge", slow_tsv, {}), ("iso_c", slow_iso_c, {})]
    + [
        ("iso_cts", lambda taus, c=c: slow_iso_cts(taus, c), {"common": c})
        for c in (1.0, 0.8, 0.5, 0.34)
    ],
)
@seeds
def test_spectral_methods_equal_the_slow_reference(seed, name, slow, options):
    """Matrices by their formula; vectors, scalars, kernels and what is excluded by the mean task
    vector."""
    for n_experts in (2, 3):
        base, experts, _ = setting(seed, n_experts)
        merged = merge(name, base, experts, lam=0.7, exclude=("embed", "spare"), **options)
        for n in float_names(base):
            taus = [(e[n].double() - base[n].double()).numpy() for e in experts]
            tau = slow(taus) if n in MATRICES else sum(taus) / len(taus)
            np.testing.assert_allclose(
                merged[n].numpy(), base[n].numpy() + 0.7 * tau, atol=2e-5, err_msg=n
            )


@pytest.mark.parametrize("name", ["tsv_merge", "iso_c", "iso_cts"])
def test_who_is_excluded_is_the_callers_choice(name):
    """Without exclusion the vocabulary is a matrix like others; with it, others can be spared
    too."""
    base, experts, _ = setting(9, n_tasks=2)
    average, words = merge("weight_averaging", base, experts), {"first", "second", "embed"}
    for exclude in ((), ("embed",), ("first.w", "embed")):
        merged = merge(name, base, experts, exclude=exclude)
        spared = {
            w
            for w in words
            if torch.allclose(merged[f"{w}.weight"], average[f"{w}.weight"], atol=1e-5)
        }
        assert spared == {text.partition(".")[0] for text in exclude}


def test_what_a_direction_lacks_stays_as_it_is_in_the_base():
    base = {"a": torch.ones(2), "b": torch.ones(2)}
    merged = add_scaled(base, {"a": torch.ones(2)}, 0.5)
    assert merged["a"].tolist() == [1.5, 1.5] and torch.equal(merged["b"], base["b"])
    assert merged["b"].data_ptr() != base["b"].data_ptr()


@pytest.mark.parametrize("name", ["tsv_merge", "iso_c", "iso_cts", "wudi"])
def test_embedding_tables_are_no_matrices_whatever_they_are_called(name):
    """BERT's, T5's (vocabulary and distances) and GPT-2's; a linear map is one."""
    tables = ["word_embeddings", "shared", "relative_attention_bias", "wte", "wpe"]
    g = seeded(0)
    states = [
        {f"{n}.weight": torch.randn(7, 5, generator=g) for n in (*tables, "q")} for _ in range(4)
    ]
    merged, average = (merge(n, states[0], states[1:]) for n in (name, "weight_averaging"))
    near = {n for n in merged if torch.allclose(merged[n], average[n], atol=1e-5)}
    assert near == {f"{n}.weight" for n in tables}


def test_more_experts_than_directions_are_averaged():
    """Rank 3, four experts: no expert would keep a direction, and TSV-Merge falls back to the
    mean."""
    base, experts, _ = setting(10, n_tasks=4)
    merged, average = (merge(n, base, experts) for n in ("tsv_merge", "weight_averaging"))
    assert_states_close(merged, average, rtol=0, names=["second.weight", "spare.weight"])


@pytest.mark.parametrize("common", [0.0, 0.3, 0.8])
def test_iso_cts_is_isotropic_however_the_directions_are_shared_out(common):
    """Also where rounding would give the tasks more directions than there are: rank 3 for two
    tasks, none in common."""
    base, experts, _ = setting(12, n_tasks=2)
    merged = merge("iso_cts", base, experts, lam=1.0, common=common)
    for n in MATRICES:
        spectrum = torch.linalg.svdvals(merged[n] - base[n])
        assert_close(spectrum, spectrum.mean().expand(len(spectrum)), atol=1e-4, rtol=0)


# ---- Model Stock ---------------------------------------------------------------------------------


def slow_model_stock(taus):
    cosines = [
        float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))
        for a, b in combinations(taus, 2)
    ]
    cos = sum(cosines) / len(cosines)
    t = len(taus) * cos / (1 + (len(taus) - 1) * cos)
    return min(max(t, 0.0), 1.0) * sum(taus) / len(taus)


@seeds
@pytest.mark.parametrize("n_experts", [2, 4])
def test_model_stock_equals_the_slow_reference(seed, n_experts):
    """Experts that share a direction, so that the interpolation is neither 0 nor 1."""
    base, experts, _ = setting(seed, n_experts)
    names, shared = float_names(base), setting(1234)[0]
    experts = [retied(e | {n: e[n] + shared[n] for n in names}) for e in experts]
    merged = merge("model_stock", base, experts)
    for n in names:
        tau = slow_model_stock([(e[n].double() - base[n].double()).numpy() for e in experts])
        np.testing.assert_allclose(merged[n].numpy(), base[n].numpy() + tau, atol=1e-5, err_msg=n)


def test_experts_that_disagree_leave_model_stock_at_the_base():
    """Opposite (denominator 0), right-angled, and one that did not move: no ratio beyond [0, 1], no
    NaN."""
    base, (expert, *_), _ = setting(11)
    opposite = retied(expert | {n: 2 * base[n] - expert[n] for n in float_names(base)})
    assert_states_close(merge("model_stock", base, [expert, opposite]), base)
    assert_states_close(merge("model_stock", base, [expert, base]), base)
    zero = {"w": torch.zeros(3)}
    merged = merge("model_stock", zero, [{"w": axis} for axis in torch.eye(3)])["w"]
    assert merged.tolist() == [0, 0, 0]


# ---- a method of one's own -----------------------------------------------------------------------


def test_a_direction_of_ones_own_is_scaled_and_no_method_of_ours(monkeypatch):
    monkeypatch.setattr("mergelib.merging.METHODS", METHODS.copy())

    @method("first", label="First expert", short="First", lam=0.25)
    def first(base, experts, *, sign=1.0):
        return {n: sign * (experts[0][n] - t) for n, t in base.items()}

    known = get_method("first")
    assert known.options == ("lam", "sign") and not is_ours(known.function)
    assert known.function.__doc__.startswith("theta_m = theta_b + lam * tau_m")
    with pytest.raises(ConfigError, match="leave lam= out"):
        method("second", label="Second", short="Second", lam=0.1)(lambda base, experts, lam: base)
