"""Every method: those with data and with chance inside a study, no leaks, ranks and their
statistics against slow references."""

import re
import shutil
from itertools import combinations, product

import pandas as pd
import pytest
import torch
from near import seeded
from scipy.stats import kendalltau
from tiny import relabelled, with_test

from mergelib import Study, figures, method, tables
from mergelib.core.errors import ConfigError
from mergelib.core.types import state_digest
from mergelib.merging import METHODS, PER_TASK
from mergelib.profiles import load_profile
from mergelib.tables import ranking

pytestmark = pytest.mark.filterwarnings("ignore:.*edge of the grid")
CHOSEN = (
    "task_arithmetic regmean fisher_merging adamerging_task lm_cocktail tall_masks dare_ties della"
).split()
SMALL = {
    "every_method.methods": CHOSEN,
    "every_method.options": {
        "adamerging_task": {"steps": 3, "lr": 0.05, "seed": 0},
        "fisher_merging": {"n_examples": 3},
        "regmean": {"n_examples": 40},
        "della": {"seed": 4},
    },
}


@pytest.fixture(scope="module")
def animals(study, make_study, tmp_path_factory):
    """A tiny study of many methods on a copy of the finished tiny study's store."""
    store = tmp_path_factory.mktemp("every_method") / "store"
    shutil.copytree(study.store.root, store)
    return make_study(store, overrides=SMALL, every_method=True)


@pytest.fixture(scope="module")
def rows(animals):
    return ranking.scores(animals, CHOSEN)


def states(study):
    """The base and its experts, as a method takes them."""
    return study.base_state, [e.state for e in study.experts()]


# ---- one study, other methods --------------------------------------------------------------------


def test_every_method_is_scored_in_the_same_study(study, rows):
    """Equal experts, draws and lambda, so equal scores: Task Arithmetic among all is Task
    Arithmetic in Table 2."""
    table = study.scores(["task_arithmetic"], ["current", "knn", "ft_classifier"])
    mine = rows[(rows.method == "task_arithmetic") & (rows.draw != "all")]
    pd.testing.assert_frame_equal(
        tables.at_k(table, 5).reset_index(drop=True), mine.reset_index(drop=True)
    )


@pytest.mark.parametrize("profile", ["quick", "mini", "real"])
def test_every_profile_has_every_method_and_its_options(profile):
    names = Study(profile, every_method=True).methods
    registered = {m.name for m in METHODS.values() if m.function.__module__.startswith("mergelib.")}
    assert set(names) == registered and len(names) == len(set(names))
    assert set(load_profile(profile).every_method.grids) <= {n for n in names if METHODS[n].has_lam}


def test_a_profile_without_every_method_says_so(monkeypatch):
    with pytest.raises(ConfigError, match="no section every_method"):
        load_profile("quick").model_copy(update={"every_method": None}).of_every_method()


def test_sidecars_of_other_figures_do_not_list_every_method(study, animals):
    plain, all_methods = (s.profile.model_dump() for s in (study, animals))
    assert "every_method" not in plain and "grids" not in plain["merging"]
    assert all_methods["merging"]["grids"] == {"tall_masks": (0.2, 0.4, 0.6)}


def test_one_encoder_per_task(animals):
    """Other weights for each task, each with a threshold of its own, as the method gives them
    alone."""
    lams = animals.lams("tall_masks")
    for t, task in enumerate(animals.tasks):
        alone = METHODS["tall_masks"](*states(animals), lam=lams[task])[t]
        stored = state_digest(animals.merged_state("tall_masks", task))
        assert stored == state_digest(alone) == animals.weights_digest("tall_masks", task)
    curve = animals.lam_curve("tall_masks")
    for task, mine in curve.groupby("task"):
        assert lams[task] == mine.set_index("lam").accuracy.idxmax()


def test_chance_is_merged_several_times(animals, rows):
    """``merge_seeds`` merges of DARE, one of DELLA because the profile fixes its seed; draw s meets
    merge s mod M."""
    assert animals.merges("dare_ties") == ("dare_ties#0", "dare_ties#1")
    assert animals.merges("della") == ("della",)
    first, second = (animals.weights_digest(m, "ag") for m in animals.merges("dare_ties"))
    assert first != second and animals.weights_digest("dare_ties", "ag") == first
    alone = METHODS["della"](*states(animals), lam=animals.lam("della"), seed=4)
    assert animals.weights_digest("della", "ag") == state_digest(alone)
    right = animals.correct("dare_ties", "ag", "knn", k=5)
    for s, row in enumerate(right):
        assert torch.equal(row, animals.correct(f"dare_ties#{s % 2}", "ag", "knn", k=5)[s])
    mine = rows[(rows.method == "dare_ties") & (rows.protocol == "current") & (rows.task == "ag")]
    assert mine.seed.tolist() == [0, 1]


def test_costs_are_known_for_merges_made_here(animals, rows):
    table = ranking.cost_table(animals, CHOSEN, ranking.means(rows)).set_index("method")
    made_here = table.drop(index="task_arithmetic")
    bytes_of_one = sum(t.numel() * 4 for t in animals.base_state.values()) / 1e6
    assert (made_here.seconds > 0).all() and (made_here.peak_mb > 0.9 * bytes_of_one).all()


# ---- leaks ---------------------------------------------------------------------------------------


def test_label_canary(animals, make_study, rows, tmp_path):
    """Permuted test labels change no merge, AdaMerging's on test inputs included, and nothing in
    the store's keys."""
    shutil.copytree(animals.store.root, tmp_path / "store")
    tasks = with_test(animals.tasks, relabelled)
    other = make_study(tmp_path / "store", tasks, overrides=SMALL, every_method=True)
    before = sorted(p.name for p in (tmp_path / "store").glob("*/*"))
    for cell in product(CHOSEN, tasks):
        assert other.weights_digest(*cell) == animals.weights_digest(*cell)
    assert sorted(p.name for p in (tmp_path / "store").glob("*/*")) == before


def test_labels_of_scored_inputs_cannot_be_asked_for():
    with pytest.raises(ConfigError, match="labels of test inputs"):

        @method("cheat", label="Cheat", short="Cheat", needs=("test inputs", "labels"))
        def cheat(base, experts, context):
            return base


def test_data_that_a_method_sees_is_part_of_its_key(animals, make_study, tmp_path):
    """RegMean on a smaller pool (24 of the 40 inputs it wants) is another merge; Task Arithmetic is
    not."""
    shutil.copytree(animals.store.root, tmp_path / "store")
    smaller = SMALL | {"tasks.pool_per_class": 6}
    other = make_study(tmp_path / "store", overrides=smaller, every_method=True)
    for name, same in (("regmean", False), ("task_arithmetic", True)):
        assert (other.weights_digest(name, "ag") == animals.weights_digest(name, "ag")) == same


# ---- a method of one's own -----------------------------------------------------------------------


def test_a_method_of_ones_own_joins_every_table_and_figure(animals, rows, request):
    @method("smaller", label="Smaller step", short="Small")
    def smaller(base, experts, *, lam=0.1):
        return {n: base[n] + lam * (experts[0][n] - base[n]) for n in base}

    request.addfinalizer(lambda: METHODS.pop("smaller"))
    smaller.__module__ = "__main__"  # as in a notebook
    names = ranking.methods(animals)
    one = ranking.of_kind(names)
    assert names == [*CHOSEN, "smaller"] and "smaller" in one
    assert ranking.of_kind(names, PER_TASK) == ["lm_cocktail", "tall_masks"]
    scores = tables.stack([rows, ranking.scores(animals, ["smaller"])])
    summary = tables.mean_and_std(scores)
    assert "Smaller step" in tables.wide(tables.averages(summary), "method", "protocol").index
    assert ("Smaller step", "KNN Eval") in tables.wide(summary).index
    described = ranking.methods_table(animals, names).set_index("Method").loc["Smaller step"]
    assert described["needs"] == "nothing" and described["lambda"]
    everyones = ranking.means(scores)
    means = everyones.loc[one]
    [ranks] = figures.plot_ranking(means, 50.0).axes[:1]
    assert [t.get_text() for t in ranks.texts].count("Small") == 2  # both ranks
    costs = ranking.cost_table(animals, names, everyones)
    [bars] = figures.plot_cost(costs, dict.fromkeys(names, "weights alone")).axes[:1]
    assert "Small" in [t.get_text() for t in bars.get_yticklabels()]
    samples = ranking.resampled(animals, one)
    taus, pairs = ranking.tau_table(samples), ranking.pair_table(samples, one)
    assert "smaller" in set(pairs.second)
    assert f"{len(pairs)} pairs" in ranking.answer(means, taus, pairs, 50.0)
    for name, mine in samples.items():
        assert mine[:, 0].tolist() == pytest.approx(means[name].tolist(), abs=1e-4)


# ---- ranks ---------------------------------------------------------------------------------------


def test_kendalls_tau_is_scipys():
    g = seeded(0)
    a, b = torch.randint(6, (2, 9, 20), generator=g).double()  # with ties
    expected = [kendalltau(a[:, r], b[:, r]).statistic for r in range(20)]
    assert ranking.kendall_tau(a, b).tolist() == pytest.approx(expected)
    assert ranking.kendall_tau(a, a).tolist() == pytest.approx([1.0] * 20)


def test_what_became_of_every_pair():
    """An order is clear when 95 % of the differences leave out zero; ``w`` spreads them."""
    w, one = torch.linspace(-1, 1, 401), torch.ones(401)
    samples = {
        "current": torch.stack([0 * w, w, 5 * one, 6 * one, w]),
        "ft_classifier": torch.stack([0 * w, 3 * one, one, one + 2 * w, 2 * w]),
    }
    table = ranking.pair_table(samples, list("abcde"))
    assert list(zip(table["first"], table["second"], strict=True)) == list(combinations("abcde", 2))
    assert table.order.tolist() == [
        *("gained", "same", "lost", "open"),
        *("reversed", "reversed", "gained"),
        *("lost", "lost"),
        "same",
    ]
    assert table.current.tolist()[:3] == [1.0, -5.0, -6.0], "the first column is measured"


@pytest.mark.parametrize(
    "last, order, said",
    [
        (40.0, "same", "The same method wins.*1 keep a clear order, 0 turn around"),
        (60.0, "reversed", "Another.*costs 10.0 points.*0 keep a clear order, 1 turn around"),
    ],
)
def test_the_answer_follows_the_numbers(last, order, said):
    means = pd.DataFrame({p: {"ties": 50.0, "magmax": 40.0} for p in ranking.PROTOCOL_DRAWS})
    means.loc["magmax", "ft_classifier"] = last
    tau = {"of": "Current Eval", "and": "FT-Classifier Eval", "tau": 0.5, "low": 0.1, "high": 0.9}
    pairs = pd.DataFrame({"order": [order]})
    assert re.search(said, ranking.answer(means, pd.DataFrame([tau]), pairs, 70.0))
