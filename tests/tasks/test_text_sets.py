"""Text sets of the hub: the registry, columns, labels, class names, subsamples."""

import re

import datasets
import pytest
import torch

from mergelib.core.errors import DataError, UnknownNameError
from mergelib.core.hub import download, registry
from mergelib.core.hub.repository import base_model
from mergelib.profiles import TASK_NAMES, load_profile, variant_names
from mergelib.profiles.downloads import named, needed
from mergelib.tasks import hub as text_sets
from mergelib.tasks.local import LABEL_NAMES


def test_registry_and_what_a_profile_needs():
    known = registry()
    assert {name for name, r in known.items() if r.table} == set(TASK_NAMES)
    assert tuple(known["released_checkpoints"].files) == TASK_NAMES
    assert len(known["released_data"].files) == 2 * len(TASK_NAMES)
    assert needed("mini") == [] == needed("quick")
    names = [r.name for r in needed("paper")]
    assert {"released_checkpoints", "released_data"} <= set(names) and len(names) == len(set(names))
    for variant in ("", *variant_names("paper")):
        base = base_model(load_profile("paper", variant=variant).encoder.base)
        assert base.name in names and base.name in known, "no licence, no citation"
    assert [r.name for r in named(["yelp", "yelp", "t5-base"], "mini")] == ["yelp", "t5-base"]
    assert base_model("somebody/model", "d" * 40).revision == "d" * 40
    with pytest.raises(UnknownNameError, match="Nearest: 'ag/train'"):
        download.fetch_file("released_data", "ag/trian")


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """``fake(task, train, test)`` reads these columns as if they had come from the hub."""

    def load(task, train, test=None, *, features=None, **arguments):
        monkeypatch.setattr(text_sets, "fetch", lambda entry: {})
        parts = {
            split: datasets.Dataset.from_dict(rows, features=features)
            for split, rows in (("train", train), ("test", test or train))
        }
        monkeypatch.setattr(text_sets, "_read", lambda entry, split, paths: parts[split])
        return text_sets.hub_splits(task, **arguments)

    return load


def test_parts_of_a_text(fake):
    assert (
        text_sets.join_parts([" TY KU ", None, " \t", "  is\na company "]) == "TY KU is\na company"
    )
    rows = {
        "best_answer": ["a", None],
        "topic": [9, 0],
        "question_content": ["", "q"],
        "question_title": ["t", "u"],
        "id": [0, 1],
    }
    _, train, _ = fake("yahoo", rows)
    assert train.inputs == ("t a", "u q") and train.labels.tolist() == [9, 0]


@pytest.mark.parametrize(
    "task, rows, problem",
    [
        ("dbpedia", {"label": [0], "text": ["x"]}, "no column title"),
        ("ag", {"label": [0], "text": [1]}, "int64 in column text"),
        ("ag", {"label": [0, None], "text": ["x", "y"]}, "1 rows without label"),
        ("ag", {"label": ["World", "Sports"], "text": ["x", "y"]}, "not integers"),
        ("ag", {"label": [0, 4], "text": ["x", "y"]}, "run from 0 to 4, expected 0 to 3"),
        ("ag", {"label": [0, -1], "text": ["x", "y"]}, "run from -1 to 0"),
        ("ag", {"label": [0, 1], "text": ["", None]}, "no row with text"),
        (
            "amazon",
            {"class_index": [0], "review_title": ["x"], "review_text": ["x"]},
            "run from 0 to 0, expected 1 to 5",
        ),
    ],
)
def test_what_is_no_such_set(fake, task, rows, problem):
    with pytest.raises(DataError, match=f"{problem}.*Known variants.*LAMOL"):
        fake(task, rows)


def test_rows_of_the_card(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("label,text\n0,x\n1,y\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"2 rows of train, expected 120,000.*LAMOL"):
        text_sets._read(registry()["ag"], "train", [tmp_path / "train.csv"])


@pytest.mark.parametrize("task", ["yelp", "dbpedia"])
def test_class_names_as_the_cards_spell_them(fake, task):
    names = [re.sub(" (?!s)", "", n).replace("2 stars", "2 star") for n in LABEL_NAMES[task]]
    table = registry()[task].table
    rows = {table.label: [0, 4], **{c: ["x", "y"] for c in table.text}}
    text = {c: datasets.Value("string") for c in table.text}
    features = datasets.Features({table.label: datasets.ClassLabel(names=names), **text})
    got, train, _ = fake(task, rows, features=features)
    assert got == LABEL_NAMES[task] and train.labels.tolist() == [0, 4]
    features[table.label] = datasets.ClassLabel(names=names[::-1])
    with pytest.raises(DataError, match="expected, in this order"):
        fake(task, rows, features=features)


def test_subsample(fake, monkeypatch):
    monkeypatch.setattr(text_sets, "BLOCK", 7)
    n = 400
    texts = [f"text {i}" if i % 5 else " " for i in range(n)]
    rows = {"label": [i % 4 for i in range(n)], "text": texts}
    _, whole, _ = fake("ag", rows)
    assert len(whole) == 320 and whole.inputs[:2] == ("text 1", "text 2")
    _, train, test = fake("ag", rows, n_train=50, n_test=30)
    assert len(train) == 50 and len(test) == 30 and len(set(train.inputs)) == 50
    pairs = zip(train.inputs, train.labels.tolist(), strict=True)
    assert all(int(text.split()[1]) % 4 == label for text, label in pairs)
    assert set(test.inputs) != set(train.inputs[:30]), "the splits use different permutations"
    _, more, _ = fake("ag", rows, n_train=60)
    assert more.inputs[:50] == train.inputs
    _, relabelled, _ = fake("ag", {**rows, "label": [0] * n}, n_train=50)
    assert relabelled.inputs == train.inputs, "which rows are drawn depends on no label"
    assert torch.equal(fake("ag", rows, n_train=10_000)[1].labels, whole.labels)
    with pytest.raises(UnknownNameError, match="Nearest: 'yelp'"):
        text_sets.hub_splits("yelpp")
