"""``compare``: what it chooses on, what it scores, what it keeps, and the model that it names."""

from __future__ import annotations

import json
import weakref
from functools import partial

import pandas as pd
import pytest
import torch
from conftest import TASKS, texts
from PIL import Image
from transformers import pipeline

import mergelib
from mergelib.core.errors import ConfigError, DataError
from mergelib.core.store import Store
from mergelib.figures.comparison import report_table
from mergelib.models import compare as module
from mergelib.models.compare import HELD_OUT, TEST, VALIDATION, compare, rank_correlation
from mergelib.models.parents import open_parent
from mergelib.run import cli
from mergelib.tasks.rows import as_split

K = 3
QUICK = {"methods": ["weight_averaging", "task_arithmetic"], "lams": [0.3, 1.0], "k": K}


def data(n=60):
    """Inputs, validation and test of each task; no text stands in two of them."""
    rows = {t: texts(t, 3 * n, 77) for t in TASKS}
    inputs, *labelled = (
        {t: (x[a : a + n], y[a : a + n]) for t, (x, y) in rows.items()} for a in (0, n, 2 * n)
    )
    return {t: x for t, (x, _) in inputs.items()}, *labelled


@pytest.fixture(scope="module")
def base(family):
    return family("bert")["base"]


@pytest.fixture(scope="module")
def experts(family):
    return {t: family("bert")[t] for t in TASKS}


@pytest.fixture
def ask(experts, base, tmp_path):
    """Compares without labels, on a new store."""
    store = Store(tmp_path / "store")
    return partial(compare, experts, base, inputs=data()[0], store=store, **QUICK)


@pytest.fixture(scope="module")
def found(experts, base, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return compare(experts, base, *data(), store=store, **QUICK), store


def test_every_number_is_that_of_merge_align_and_evaluate(found, base, experts):
    comparison, _ = found
    inputs, _, test = data()
    assert set(comparison.table.method) == {"f_t", "f_b", *QUICK["methods"]}
    rows = comparison.table.set_index(["method", "protocol"])
    lam = rows.lam["task_arithmetic", "ft_classifier"]
    merged = mergelib.merge("task_arithmetic", base=base, experts=experts, lam=lam)
    scores = []
    for task in TASKS:
        drawn = module.draw_inputs(inputs[task], TASKS[task], K, 0, task)
        aligned = mergelib.align_classifier(merged, task, drawn)
        scores.append(mergelib.evaluate(aligned, test[task]).accuracy.item())
    row = rows.loc["task_arithmetic", "ft_classifier"]
    assert row.score == pytest.approx(sum(scores) / 2) and row.n == 120
    assert row.score_low < row.score < row.score_high
    old = rows.loc["task_arithmetic", "current"]
    assert row.gain == pytest.approx(row.score - old.score) and old.gain_high == 0
    assert set(report_table(comparison)["lambda"]) <= {"", "0.3", "1"}
    rows = comparison.rows
    own = rows[(rows.method == "f_t") & (rows.protocol == "current")]
    assert (own.agreement == 100).all() and own.kl.abs().max() < 1e-5
    assert rows[rows.protocol == "knn"].kl.isna().all()


def test_test_rows_choose_nothing_and_labels_change_no_prediction(found, base, experts):
    """With every test label wrong, the same is chosen, and nothing is computed again."""
    comparison, store = found
    inputs, validation, test = data()
    wrong = {t: (x, [(label + 1) % TASKS[t] for label in y]) for t, (x, y) in test.items()}
    before = len(store.entries())
    other = compare(experts, base, inputs, validation, wrong, store=store, **QUICK)
    assert len(store.entries()) == before
    assert other.best == comparison.best
    choice = ["method", "protocol", "lam", "chosen"]
    pd.testing.assert_frame_equal(other.table[choice], comparison.table[choice])
    assert not other.table.score.equals(comparison.table.score)


@pytest.mark.parametrize("labelled", [True, False])
def test_no_row_serves_twice(experts, labelled):
    inputs, validation, test = data()
    parent = open_parent(experts["ag"])
    pool = inputs["ag"] + test["ag"][0][:10] + validation["ag"][0][:10]  # given again
    held = validation["ag"]
    tested = tuple(a + b[:5] for a, b in zip(test["ag"], held, strict=True))
    given = {TEST: tested, VALIDATION: held} if labelled else {TEST: tested}
    splits = {n: as_split(*rows) for n, rows in given.items()}
    with pytest.warns(UserWarning, match="left out"):
        rows = module._rows("ag", parent, pool, splits, 10, 5, 0)
    used = [rows.fit, rows.anchors, *(s.inputs for s in rows.splits.values())]
    assert sum(len(set(part)) for part in used) == len({x for part in used for x in part})
    assert rows.fit == module.draw_inputs(pool, 4, 10, 5, "ag")  # as align draws them
    assert (HELD_OUT in rows.splits) != labelled


def test_an_interrupted_comparison_goes_on(ask, monkeypatch):
    merges, merge = [], module.merge

    def counted(method, **options):
        if len(merges) == 2 and not go_on:
            raise KeyboardInterrupt
        merges.append((method, options.get("lam")))
        return merge(method, **options)

    monkeypatch.setattr(module, "merge", counted)
    go_on = False
    with pytest.raises(KeyboardInterrupt):
        ask()
    go_on = True
    first = ask()
    assert len(merges) == len(set(merges)) == 3
    assert ask().table.equals(first.table) and len(merges) == 3


def test_it_holds_a_merge_and_one_model_however_many_experts_there_are(
    base, experts, tmp_path, monkeypatch
):
    made, most, merge, features = [], [], module.merge, module.features

    def merged(*args, **options):
        made.append(weakref.ref(result := merge(*args, **options)))
        return result

    def scored(classifier, *args, **options):
        made.append(weakref.ref(classifier.model))
        most.append(sum(ref() is not None for ref in made))
        return features(classifier, *args, **options)

    monkeypatch.setattr(module, "merge", merged)
    monkeypatch.setattr(module, "features", scored)
    many = {f"{task}{i}": experts[task] for task in TASKS for i in range(2)}
    inputs = {name: data()[0][name[:-1]] for name in many}
    compare(many, base, inputs, store=Store(tmp_path), **QUICK)
    assert len(most) == 5 * len(many) and max(most) == 2


def test_without_labels_agreement_with_the_experts_ranks(ask):
    found = ask()
    assert found.measures == {HELD_OUT: "agreement"} and found.rows.accuracy.isna().all()
    assert set(found.rows.protocol) == {"current", "ft_classifier"}
    merges = found.table[found.table.method.isin(QUICK["methods"])]
    assert merges.score.is_monotonic_decreasing
    assert merges.score.to_numpy() == pytest.approx(merges.chosen.to_numpy())
    assert found.rows[found.rows.task == "ag"].n.unique().item() == 60 - 4 * K


@pytest.mark.filterwarnings("ignore:.*streaming form")
def test_a_method_that_fails_is_reported_and_the_rest_goes_on(ask):
    @mergelib.method("broken", label="Broken", short="Broken")
    def broken(base, experts):
        raise ValueError("no\nway")

    try:
        found = ask(methods=["broken", "weight_averaging"])
        assert found.best["method"] == "weight_averaging" and found.best["lam"] is None
        assert "ValueError" in found.failed["broken"]
        with pytest.raises(ConfigError, match=r"No method worked\. broken: ValueError"):
            ask(methods=["broken"])
    finally:
        mergelib.merging.METHODS.pop("broken")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"inputs": None}, ConfigError, "inputs: given for no task"),
        ({"inputs": {"ag": ["a"], "yelps": ["b"]}}, ConfigError, "yelps.*give every task's"),
        ({"validation": {"ag": (["a"], [0])}}, ConfigError, "validation: given for ag"),
        ({"k": 20}, DataError, "'ag': 80 rows requested"),
        ({"k": 12}, DataError, "'yelp' has no held-out rows beside the 60 inputs"),
        ({"methods": ["tie"]}, mergelib.core.errors.UnknownNameError, "ties"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(ask, change, error, said, monkeypatch):
    monkeypatch.setattr(module, "features", None)
    with pytest.raises(error, match=said):
        ask(**change)


def test_rank_correlation_is_kendalls_tau_over_merges():
    accuracy, agreement, kl = [10, 20, 30, 40], [1, 3, 2, 4], [4, 3, 2, 1]
    rows = pd.DataFrame({"accuracy": accuracy, "agreement": agreement, "kl": kl})
    rows = rows.assign(method=list("abcd"), lam=float("nan"), protocol="current")
    references = rows.assign(method="f_b", agreement=[9, 8, 7, 6])
    (row,) = rank_correlation(pd.concat([rows, references])).to_dict("records")
    assert row == {"protocol": "current", "merges": 4, "agreement": pytest.approx(2 / 3), "kl": 1.0}


def test_the_reports_commands_make_the_model_that_it_scores(
    base, experts, tmp_path, monkeypatch, capsys
):
    """The whole road from files: compare, the two commands of the report, evaluate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGELIB_STORE", str(tmp_path / "store"))
    inputs, validation, test = data()
    flags = ["--experts", *(f"{task}={folder}" for task, folder in experts.items())]
    for name, rows in (("inputs", inputs), ("validation", validation), ("test", test)):
        flags.append(f"--{name}")
        for task in TASKS:
            file = tmp_path / f"{task}_{name}.csv"
            columns = [rows[task]] if name == "inputs" else rows[task]
            pd.DataFrame(dict(zip(("text", "label"), columns, strict=False))).to_csv(
                file, index=False
            )
            flags.append(f"{task}={file.name}")
    flags += ["--first-label", "0", "--base", str(base), "-k", str(K)]
    flags += ["--methods", "task_arithmetic", "--lams", "0.3", "1.0", "--device", "cpu"]
    assert cli.main(["compare", *flags, "--out", "report"]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert page in capsys.readouterr().out
    html = (tmp_path / "report" / "report.html").read_text()
    assert "data:image/png;base64" in html and "<table" in html and "{{" not in html + page
    commands = page.partition("```bash\n")[2].partition("\n```")[0].splitlines()
    assert [c.split()[3] for c in commands] in (["merge", "align"], ["merge"])
    assert ("on the un-merged base" in page) == (len(commands) == 2)
    for command in commands:
        assert cli.main(command.split()[3:]) == 0
    summary = pd.read_csv(tmp_path / "report" / "summary.csv")
    best = summary[summary.method == "task_arithmetic"].iloc[0]
    right = []
    for task, (x, y) in test.items():
        folder = f"{'aligned' if len(commands) == 2 else 'merged'}/tasks/{task}"
        said = [answer["label"] for answer in pipeline("text-classification", folder)(x)]
        names = open_parent(experts[task]).labels
        right.append(sum(s == names[i] for s, i in zip(said, y, strict=True)) / len(y))
    assert 100 * sum(right) / 2 == pytest.approx(best.score, abs=1e-3)


def test_lambda_is_chosen_on_ones_own_data_and_the_card_shows_how(
    base, experts, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MERGELIB_STORE", str(tmp_path / "store"))
    flags = ["--base", str(base), "--lam", "auto", "--inputs"]
    for task, inputs in data()[0].items():
        (tmp_path / f"{task}.txt").write_text("\n".join(inputs) + "\n")
        flags.append(f"{task}={tmp_path / f'{task}.txt'}")
    flags += ["--experts", *(f"{t}={f}" for t, f in experts.items())]
    flags += ["--out", str(tmp_path / "merged"), "--method"]
    assert cli.main(["merge", *flags, "weight_averaging"]) == 2
    assert "no lambda to choose" in capsys.readouterr().err
    assert cli.main(["merge", *flags, "ties"]) == 0
    record = json.loads((tmp_path / "merged" / "mergelib.json").read_text())
    lam, said = f"{record['options']['lam']:g}", capsys.readouterr().out
    assert "agreement (%), held-out" in said and f"chosen: {lam}\n" in said
    assert record["lam_curve"].startswith(f"{lam}, by agreement under")
    assert record["lam_curve"] in (tmp_path / "merged" / "README.md").read_text()


def test_images_are_told_apart_by_what_they_show(tmp_path):
    pixels = torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        Image.fromarray(pixels).save(file)
    assert len({module._content(file, True) for file in files}) == 1
    assert module._content(pixels, True) != module._content(pixels + 1, True)
