"""Every method: those with data and with chance inside a study, no leaks, ranks and their
statistics against slow references."""

import shutil
from itertools import combinations

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


# ---- one study, other methods --------------------------------------------------------------------


def test_every_method_is_scored_in_the_same_study(study, animals, rows):
    """Equal experts, draws and lambda, so equal scores: Task Arithmetic among all is Task
    Arithmetic in Table 2."""
    table = study.scores(["task_arithmetic"], ["current", "knn", "ft_classifier"])
    table = table[table.k.isna() | (table.k == 5)].reset_index(drop=True)
    mine = rows[(rows.method == "task_arithmetic") & (rows.draw != "all")]
    both = pd.concat([table, mine]).drop_duplicates()
    assert len(both) == len(table) > 0


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
    assert (
        "every_method" not in study.profile.model_dump()
        and "grids" not in study.profile.model_dump()["merging"]
    )
    assert animals.profile.model_dump()["merging"]["grids"] == {"tall_masks": (0.2, 0.4, 0.6)}


def test_one_encoder_per_task(animals):
    """Other weights for each task, each with a threshold of its own, as the method gives them
    alone."""
    base, experts = animals.base_state, [e.state for e in animals.experts()]
    lams = animals.lams("tall_masks")
    for t, task in enumerate(animals.tasks):
        alone = METHODS["tall_masks"](base, experts, lam=lams[task])[t]
        assert (
            state_digest(animals.merged_state("tall_masks", task))
            == state_digest(alone)
            == animals.weights_digest("tall_masks", task)
        )
    curve = animals.lam_curve("tall_masks")
    for task, mine in curve.groupby("task"):
        assert lams[task] == mine.set_index("lam").accuracy.idxmax()


def test_chance_is_merged_several_times(animals, rows):
    """``merge_seeds`` merges of DARE, one of DELLA because the profile fixes its seed; draw s meets
    merge s mod M."""
    assert animals.merges("dare_ties") == ("dare_ties#0", "dare_ties#1") and animals.merges(
        "della"
    ) == ("della",)
    first, second = (animals.weights_digest(m, "ag") for m in animals.merges("dare_ties"))
    assert first != second and animals.weights_digest("dare_ties", "ag") == first
    alone = METHODS["della"](
        animals.base_state, [e.state for e in animals.experts()], lam=animals.lam("della"), seed=4
    )
    assert animals.weights_digest("della", "ag") == state_digest(alone)
    right = animals.correct("dare_ties", "ag", "knn", k=5)
    for s, row in enumerate(right):
        assert torch.equal(row, animals.correct(f"dare_ties#{s % 2}", "ag", "knn", k=5)[s])
    mine = rows[(rows.method == "dare_ties") & (rows.protocol == "current") & (rows.task == "ag")]
    assert mine.seed.tolist() == [0, 1]


def test_costs_are_known_for_merges_made_here(animals, rows):
    table = ranking.cost_table(animals, CHOSEN, ranking.means(rows)).set_index("method")
    made_here = table.drop(index="task_arithmetic")
    assert (made_here.seconds > 0).all() and (made_here.peak_mb > 0).all()
    bytes_of_one = sum(t.numel() * 4 for t in animals.base_state.values()) / 1e6
    assert (made_here.peak_mb > 0.9 * bytes_of_one).all()


# ---- leaks ---------------------------------------------------------------------------------------


def test_label_canary(animals, make_study, rows, tmp_path):
    """Permuted test labels change no merge, AdaMerging's on test inputs included, and nothing in
    the store's keys."""
    shutil.copytree(animals.store.root, tmp_path / "store")
    tasks = with_test(animals.tasks, relabelled)
    other = make_study(tmp_path / "store", tasks, overrides=SMALL, every_method=True)
    before = sorted(p.name for p in (tmp_path / "store").glob("*/*"))
    for name in CHOSEN:
        for task in tasks:
            assert other.weights_digest(name, task) == animals.weights_digest(name, task)
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
    other = make_study(
        tmp_path / "store", overrides=SMALL | {"tasks.pool_per_class": 6}, every_method=True
    )
    assert other.weights_digest("regmean", "ag") != animals.weights_digest("regmean", "ag")
    assert other.weights_digest("task_arithmetic", "ag") == animals.weights_digest(
        "task_arithmetic", "ag"
    )


# ---- a method of one's own -----------------------------------------------------------------------


def test_a_method_of_ones_own_joins_every_table_and_figure(animals, rows):
    @method("smaller", label="Smaller step", short="Small")
    def smaller(base, experts, *, lam=0.1):
        return {n: base[n] + lam * (experts[0][n] - base[n]) for n in base}

    smaller.__module__ = "__main__"  # as in a notebook
    try:
        names = ranking.methods(animals)
        assert names == [*CHOSEN, "smaller"]
        scores = pd.concat([rows, ranking.scores(animals, ["smaller"])], ignore_index=True)
        summary = tables.mean_and_std(scores)
        average = tables.averages(summary)
        one, several = ranking.of_kind(names), ranking.of_kind(names, PER_TASK)
        assert several == ["lm_cocktail", "tall_masks"] and "smaller" in one
        assert (
            "Smaller step" in tables.wide(average, "method", "protocol").index
            and ("Smaller step", "KNN Eval") in tables.wide(summary).index
        )
        described = ranking.methods_table(animals, names).set_index("Method").loc["Smaller step"]
        assert described["needs"] == "nothing" and described["lambda"]
        means = ranking.means(scores).loc[one]
        fig = figures.plot_ranking(means, 50.0)
        assert [t.get_text() for t in fig.axes[0].texts].count("Small") == 2  # both ranks
        costs = ranking.cost_table(animals, names, ranking.means(scores))
        assert "Small" in [
            t.get_text()
            for t in figures.plot_cost(costs, dict.fromkeys(names, "weights alone"))
            .axes[0]
            .get_yticklabels()
        ]
        samples = ranking.resampled(animals, one)
        taus, pairs = ranking.tau_table(samples), ranking.pair_table(samples, one)
        assert "smaller" in set(pairs.second) and f"{len(pairs)} pairs" in ranking.answer(
            means, taus, pairs, 50.0
        )
        for name, mine in samples.items():
            torch.testing.assert_close(
                mine[:, 0],
                torch.tensor(means[name].to_numpy()),
                atol=1e-4,
                rtol=0,
                check_dtype=False,
            )
    finally:
        METHODS.pop("smaller")


# ---- ranks ---------------------------------------------------------------------------------------


def test_kendalls_tau_is_scipys():
    g = seeded(0)
    a, b = torch.randint(6, (2, 9, 20), generator=g).double()  # with ties
    expected = [kendalltau(a[:, r], b[:, r]).statistic for r in range(20)]
    assert ranking.kendall_tau(a, b).tolist() == pytest.approx(expected)
    assert ranking.kendall_tau(a, a).tolist() == pytest.approx([1.0] * 20)


@pytest.mark.parametrize(
    "now, then, said",
    [
        ((2, 3), (1, 2), "same"),
        ((2, 3), (-2, -1), "reversed"),
        ((2, 3), (-1, 1), "lost"),
        ((-1, 1), (2, 3), "gained"),
        ((-1, 1), (-1, 1), "open"),
        ((-3, -2), (1, 2), "reversed"),
    ],
)
def test_what_became_of_a_pair(now, then, said):
    """Differences spread evenly over an interval: clear when the interval leaves out zero."""

    def two(low, high):
        return torch.stack(
            [
                torch.cat([torch.tensor([(low + high) / 2]), torch.linspace(low, high, 400)]),
                torch.zeros(401),
            ]
        )

    table = ranking.pair_table({"current": two(*now), "ft_classifier": two(*then)}, ["a", "b"])
    assert table.order.tolist() == [said]


def test_pairs_are_all_pairs_once():
    samples = {p: torch.randn(5, 50) for p in ("current", "ft_classifier")}
    table = ranking.pair_table(samples, list("abcde"))
    assert list(zip(table["first"], table["second"], strict=True)) == list(combinations("abcde", 2))


@pytest.mark.parametrize("same", [True, False])
def test_the_answer_follows_the_numbers(same):
    means = pd.DataFrame(
        {p: {"ties": 50.0, "magmax": 40.0} for p in ranking.PROTOCOL_DRAWS}
    ).rename_axis("method")
    if not same:
        means.loc["magmax", "ft_classifier"] = 60.0
    taus = pd.DataFrame(
        [{"of": "Current Eval", "and": "FT-Classifier Eval", "tau": 0.5, "low": 0.1, "high": 0.9}]
    )
    pairs = pd.DataFrame({"order": ["same" if same else "reversed"]})
    said = ranking.answer(means, taus, pairs, 70.0)
    assert ("The same method wins" in said) == same
    assert ("costs 10.0 points" in said) == (not same)
    assert ("1 keep a clear order, 0 turn around" in said) == same
