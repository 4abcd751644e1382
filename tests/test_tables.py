"""Tables: deviations over seeds, the paper's numbers as printed."""

import pandas as pd
import pytest

from mergelib import tables
from mergelib.study import SCORE_COLUMNS

# arXiv 2412.13526, Table 2, typed in again from methods.md E1: Current per task and on average,
# then averages of KNN and FT-Classifier.
FACTS = {
    "weight_averaging": ([79.2, 49.8, 45.0, 50.3, 55.1, 55.8], 62.2, 69.2),
    "task_arithmetic": ([82.9, 55.8, 48.4, 53.1, 81.5, 64.3], 69.5, 71.8),
    "ties": ([83.3, 55.7, 47.0, 55.9, 83.4, 65.1], 70.3, 72.9),
}


def scores(rows):
    return pd.DataFrame([dict(zip(SCORE_COLUMNS, r, strict=True)) for r in rows]).astype(
        {"k": "Int64", "seed": "Int64"}
    )


CURRENT = ("current", None, None, None, None)


def cell(task, accuracy, how):
    return ("b", task, "ties", *how, accuracy, 10)


@pytest.fixture
def three_seeds():
    """Two tasks that move against each other: each deviates by 10, their average not at all."""
    rows = [cell("ag", 60.0, CURRENT), cell("yelp", 30.0, CURRENT)]
    for seed in range(3):
        knn = ("knn", 5, "stratified", "train", seed)
        moved = 10 * (seed - 1)
        rows += [cell("ag", 50.0 + moved, knn), cell("yelp", 40.0 - moved, knn)]
    return scores(rows)


def test_the_deviation_of_an_average(three_seeds):
    """Sample deviation (ddof 1) over seeds; the average's is that of the averages (methods.md
    H11)."""
    found = tables.mean_and_std(three_seeds).set_index(["protocol", "task"])
    assert found.loc[("knn", "ag"), ["mean", "std"]].tolist() == [50.0, 10.0]
    assert found.loc[("knn", "average"), ["mean", "std", "n_seeds"]].tolist() == [45.0, 0.0, 3]
    mean, std = found.loc[("current", "average"), ["mean", "std"]]
    assert mean == 45.0 and pd.isna(std)


def test_tasks_of_unequal_pools_have_one_average():
    """Every input of a pool is drawn: 50 per class of one task, 12 of the other."""
    rows = [
        cell(task, accuracy, ("orthogonal_procrustes", k, "all", "train", None))
        for task, accuracy, k in (("ag", 80.0, 50), ("yelp", 40.0, 12))
    ]
    average = tables.averages(tables.mean_and_std(scores(rows)))
    assert average[["mean", "k"]].values.tolist() == [[60.0, 12]]


def test_cells_are_written_with_one_decimal(three_seeds):
    table = tables.wide(tables.mean_and_std(three_seeds))
    assert list(table) == ["AG News", "Yelp", "Average"]
    assert list(table.itertuples(name=None)) == [
        (("Ties", "Current Eval"), "60.0", "30.0", "45.0"),
        (("Ties", "KNN Eval"), "50.0 ± 10.0", "40.0 ± 10.0", "45.0 ± 0.0"),
    ]


def test_rows_of_a_table_come_in_order_of_appearance():
    rows = [("ties", "uniform"), ("f_b", "uniform"), ("ties", "all")]
    frame = pd.DataFrame(rows, columns=["method", "draw"]).assign(task="ag", mean=1.0, std=0.0)
    table = tables.wide(frame, ["method", "draw"])
    assert list(table.index.get_level_values("Draw")) == ["uniform", "uniform", "all"]


def test_the_order_of_rows_does_not_change_a_table(three_seeds):
    shuffled = three_seeds.sample(frac=1, random_state=1)
    a, b = (
        tables.mean_and_std(rows).sort_values(["protocol", "task"], ignore_index=True)
        for rows in (three_seeds, shuffled)
    )
    pd.testing.assert_frame_equal(a, b)


def test_at_k_keeps_protocols_without_shots(three_seeds):
    assert set(tables.at_k(three_seeds, 5).protocol) == {"knn", "current"}
    assert set(tables.at_k(three_seeds, 1).protocol) == {"current"}


def test_the_papers_averages_recompute_from_its_cells():
    """Each printed to one decimal: 0.05 for the cells and 0.05 for the average. (WA under Current
    Eval needs it: its cells average to 55.88 and the paper prints 55.8.)"""
    for row in tables.published()["table2"]["rows"]:
        assert len(row["mean"]) == 5
        assert abs(sum(row["mean"]) / 5 - row["average"]) <= 0.1, row
        assert ("std" in row) == (row["protocol"] != "current") == ("average_std" in row)


def test_the_papers_numbers_are_typed_correctly():
    """Rows of Table 3 but the first are averages of Table 2: ``test_released.py``."""
    table = tables.published_table2().pivot(index="method", columns=["protocol", "task"])["mean"]
    for method, (cells, knn, ft) in FACTS.items():
        row = table.loc[method]
        assert row["current"].tolist() == cells
        assert [row[protocol, "average"] for protocol in ("knn", "ft_classifier")] == [knn, ft]
    f_b = tables.published_table3().query("method == 'f_b'")
    assert f_b["mean"].tolist() == [17.5, 20.9, 22.0]


def test_a_shown_table_is_whole_and_rounded_once():
    """Pandas cuts texts at fifty letters; 0.4649 rounded to three digits and then to two would be
    0.47."""
    text = "10000 resamples, paired over test inputs and seeds, and more"
    frame = pd.DataFrame({"task": ["amazon"], "purity": [0.4649], "said": [text]})
    page = tables.show(tables.labelled(frame)).to_html()
    assert text in page and ">0.46<" in page and ">Amazon<" in page
