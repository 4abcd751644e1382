"""Tables: deviations over seeds, the paper's numbers as printed."""

import pandas as pd
import pytest

from mergelib import tables
from mergelib.study import SCORE_COLUMNS

# arXiv 2412.13526, Table 2, typed in again from methods.md E1: Current per task, then averages of
# KNN and FT-Classifier.
FACTS = {
    "weight_averaging": ([79.2, 49.8, 45.0, 50.3, 55.1], 62.2, 69.2),
    "task_arithmetic": ([82.9, 55.8, 48.4, 53.1, 81.5], 69.5, 71.8),
    "ties": ([83.3, 55.7, 47.0, 55.9, 83.4], 70.3, 72.9),
}


def scores(rows):
    return pd.DataFrame([dict(zip(SCORE_COLUMNS, r, strict=True)) for r in rows]).astype(
        {"k": "Int64", "seed": "Int64"}
    )


@pytest.fixture
def three_seeds():
    """Two tasks that move against each other: each deviates by 10, their average not at all."""
    few = [
        ("b", t, "ties", "knn", 5, "stratified", "train", s, value, 10)
        for s in range(3)
        for t, value in (("ag", 50.0 + 10 * (s - 1)), ("yelp", 40.0 - 10 * (s - 1)))
    ]
    return scores(
        [
            *few,
            ("b", "ag", "ties", "current", None, None, None, None, 60.0, 10),
            ("b", "yelp", "ties", "current", None, None, None, None, 30.0, 10),
        ]
    )


def test_the_deviation_of_an_average(three_seeds):
    """Sample deviation (ddof 1) over seeds; the average's is that of the averages (methods.md
    H11)."""
    found = tables.mean_and_std(three_seeds).set_index(["protocol", "task"])
    assert found.loc[("knn", "ag"), ["mean", "std"]].tolist() == [50.0, 10.0]
    assert found.loc[("knn", "average"), ["mean", "std", "n_seeds"]].tolist() == [45.0, 0.0, 3]
    assert found.loc[("current", "average"), "mean"] == 45.0 and pd.isna(
        found.loc[("current", "average"), "std"]
    )


def test_tasks_of_unequal_pools_have_one_average():
    """Every input of a pool is drawn: 50 per class of one task, 12 of the other."""
    rows = scores(
        [
            ("b", t, "ties", "orthogonal_procrustes", k, "all", "train", None, value, 10)
            for t, k, value in (("ag", 50, 80.0), ("yelp", 12, 40.0))
        ]
    )
    found = tables.mean_and_std(rows)
    assert found[found.task == "average"][["mean", "k"]].values.tolist() == [[60.0, 12]]


def test_cells_are_written_with_one_decimal(three_seeds):
    table = tables.wide(tables.mean_and_std(three_seeds))
    assert table.loc[("Ties", "KNN Eval")].tolist() == ["50.0 ± 10.0", "40.0 ± 10.0", "45.0 ± 0.0"]
    assert table.loc[("Ties", "Current Eval")].tolist() == ["60.0", "30.0", "45.0"]
    assert list(table.columns) == ["AG News", "Yelp", "Average"]


def test_the_order_of_rows_does_not_change_a_table(three_seeds):
    a = tables.mean_and_std(three_seeds)
    b = tables.mean_and_std(three_seeds.sample(frac=1, random_state=1))
    by = ["protocol", "task"]
    pd.testing.assert_frame_equal(
        a.sort_values(by, ignore_index=True), b.sort_values(by, ignore_index=True)
    )


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


def test_table_3_begins_with_f_b():
    """Its other rows are averages of Table 2: ``test_released.py``."""
    assert tables.published()["table3"][0] == {
        "method": "f_b",
        "current": 17.5,
        "knn": 20.9,
        "ft_classifier": 22.0,
    }


@pytest.mark.parametrize("method", FACTS)
def test_the_papers_numbers_are_typed_correctly(method):
    cells, knn, ft = FACTS[method]
    rows = {(r["method"], r["protocol"]): r for r in tables.published()["table2"]["rows"]}
    assert rows[method, "current"]["mean"] == cells
    assert (rows[method, "knn"]["average"], rows[method, "ft_classifier"]["average"]) == (knn, ft)
    frame = tables.published_table2().set_index(["method", "protocol", "task"])
    assert (
        frame.loc[(method, "current", "dbpedia"), "mean"] == cells[-1]
        and frame.loc[(method, "knn", "average"), "mean"] == knn
    )


def test_a_shown_table_is_whole_and_rounded_once():
    """Pandas cuts texts at fifty letters; 0.4649 rounded to three digits and then to two would be
    0.47."""
    text = "10000 resamples, paired over test inputs and seeds, and more"
    page = tables.show(
        tables.labelled(pd.DataFrame({"task": ["amazon"], "purity": [0.4649], "said": [text]}))
    ).to_html()
    assert text in page and ">0.46<" in page and ">Amazon<" in page
