"""One way in for data: every shape gives the same rows, labels become classes by one rule, files
are read as they are, and what is odd or ambiguous is refused in words."""

import csv
import gzip
import io
import json

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import mergelib
from mergelib.core.errors import DataError
from mergelib.core.types import Split
from mergelib.tasks.data import labelled, read_csv, rows_of, unlabelled
from mergelib.tasks.local import LABEL_NAMES, local_splits
from mergelib.tasks.released import released_splits
from mergelib.tasks.rows import Form, rows

NAMES = ("sport", "film", "news")
TEXTS, LABELS = ["a goal", "an actor", "a vote", "null"], ["sport", "film", "news", "film"]
NUMBERS = [0, 1, 2, 1]
OTHER_ORDER = ("film", "news", "sport")


def classes(data, names=NAMES, **options):
    options = {"is_image": False, **options}
    return labelled(data, names, "x", **options).labels.tolist()


def refused(data, says="", names=NAMES, **options):
    with pytest.raises(DataError, match=says):
        classes(data, names, **options)


def check(data, right, names=NAMES, **options):
    """Read as these classes, or refused with these words."""
    if isinstance(right, str):
        refused(data, right, names, **options)
    else:
        assert classes(data, names, **options) == right


def dataset(labels=LABELS, names=OTHER_ORDER, texts=TEXTS):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    )
    return datasets.Dataset.from_dict(
        {"text": texts, "label": [list(names).index(y) for y in labels]}, features=features
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def write(path, rows, header=None, *, encoding="utf-8", mark=b""):
    """A table of ``rows``, in the form that the suffixes say."""
    kind, text = path.suffixes[0].lower(), io.StringIO(newline="")
    if kind == ".parquet":
        pd.DataFrame(rows, columns=["text", "label"]).to_parquet(path)
        return path
    if kind == ".jsonl":
        text.writelines(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows)
    elif kind == ".txt":
        text.writelines(f"{t}\n" for t, _ in rows)
    else:
        writer = csv.writer(text, delimiter="\t" if kind == ".tsv" else ",")
        writer.writerows([header] * bool(header) + [(y, t) for t, y in rows])
    raw = mark + text.getvalue().encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix.lower() == ".gz" else raw)
    return path


# ---- shapes -----------------------------------------------------------------------------------

PAIRS = list(zip(TEXTS, LABELS, strict=True))


def frame(y):
    return pd.DataFrame({"label": y, "text": TEXTS})


SHAPES = {
    "pairs": lambda y: list(zip(TEXTS, y, strict=True)),
    "lists in a list": lambda y: list(map(list, zip(TEXTS, y, strict=True))),
    "zip": lambda y: zip(TEXTS, y, strict=True),
    "two lists": lambda y: (TEXTS, y),
    "list of two lists": lambda y: [TEXTS, y],
    "series": lambda y: (pd.Series(TEXTS), pd.Series(y)),
    "arrays": lambda y: (np.array(TEXTS), np.array(y)),
    "dicts": lambda y: frame(y).to_dict("records"),
    "dict of lists": lambda y: {"label": y, "sentence": TEXTS},
    "frame": lambda y: frame(y).assign(id=range(4)).set_index(pd.Index([*"dcba"])),
    "two columns": lambda y: pd.DataFrame({"Label": y, "utterance": TEXTS}),
    "categories": lambda y: frame(y).astype({"label": "category"}),
    "itertuples": lambda y: frame(y).assign(length=3).itertuples(index=False),
    "dataset": lambda y: datasets.Dataset.from_pandas(frame(y)),
    "iterable": lambda y: datasets.Dataset.from_pandas(frame(y)).to_iterable_dataset(),
    "iterable without features": lambda y: datasets.IterableDataset.from_generator(
        lambda: iter(frame(y).to_dict("records"))
    ),
}


@pytest.mark.parametrize("labels", [LABELS, NUMBERS], ids=["names", "numbers"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_rows(shape, labels):
    found = labelled(SHAPES[shape](labels), NAMES, "x", is_image=False)
    assert list(found.inputs) == TEXTS and found.labels.tolist() == NUMBERS
    task = mergelib.task("t", SHAPES[shape](labels), (["a test"], [labels[0]]), n_validation=1)
    assert task.label_names == (tuple(sorted(NAMES)) if labels is LABELS else ("0", "1", "2"))
    told = {
        text: task.label_names[y]
        for split in (task.train, task.validation)
        for text, y in zip(split.inputs, split.labels.tolist(), strict=True)
    }
    assert told == dict(zip(TEXTS, map(str, labels), strict=True))


@pytest.mark.parametrize(
    "shape, says",
    [
        (["a goal", "an actor", "a vote"], r"item 0 is str\. Give \[\(text, label\), \.\.\.\]"),
        ([("a", "sport", 3)], r"\(str, str, int\)"),
        (("a", "sport"), "item 0 is str"),
        ({"a goal", "sport"}, "got set"),
        (3, "got int"),
        (pd.DataFrame({"topic": LABELS, "body": TEXTS}), "it has topic, body"),
        (pd.DataFrame({"text": TEXTS, "review": TEXTS, "label": LABELS}), "it has text, review"),
        (pd.DataFrame({"question": TEXTS, "premise": TEXTS, "label": LABELS}), "needs a column"),
        (pd.DataFrame([TEXTS, LABELS, LABELS], ["text", "label", "label"]).T, "with the same name"),
        (datasets.DatasetDict({"test": dataset()}), r"choose one: data\['test'\]"),
        ((TEXTS, LABELS[:3]), "4 inputs but 3 labels"),
        ({"text": "bad", "label": "pos"}, "Column 'text' is str"),
        ((pd.DataFrame({"text": TEXTS}), pd.DataFrame({"label": LABELS})), "item 0 is DataFrame"),
        (frozenset(zip(TEXTS, LABELS, strict=True)), "got frozenset"),
        (pd.DataFrame({"text": TEXTS, "class": LABELS, "target": LABELS}), "class and target may"),
        (pd.DataFrame({"text": TEXTS, "label": LABELS, "labels": LABELS}), "label and labels may"),
        (
            pd.DataFrame({"text": TEXTS, "label": [0, 1, 2, 1], "label_text": [*"abcd"]}),
            "row 3: class 1 is called 'd', and before 'b'",
        ),
        ((("a", "b"), ("sport", "film")), "rows or columns"),
        ([["a", "b"], ["sport", "film"]], "rows or columns"),
        ([], "no inputs"),
        (([], []), "no inputs"),
        ("no/such.csv", "no file"),
    ],
)
def test_a_wrong_shape_is_shown_with_one_that_works(shape, says):
    refused(shape, says)
    with pytest.raises(DataError, match=says):
        mergelib.task("t", shape, PAIRS, n_validation=1)


def test_unlabelled_inputs_of_every_shape(tmp_path):
    table = write(tmp_path / "x.csv", PAIRS)
    for data in (
        TEXTS,
        tuple(TEXTS),
        iter(TEXTS),
        pd.Series(TEXTS),
        np.array(TEXTS),
        dataset(),
        dataset().remove_columns("label"),
        pd.DataFrame({"text": TEXTS}),
        table,
    ):
        assert unlabelled(data, False) == TEXTS
    for wrong in ("one text", [("premise", "hypothesis")], [TEXTS], 5, None, ["a", None]):
        with pytest.raises(DataError):
            unlabelled(wrong, False)


# ---- labels -----------------------------------------------------------------------------------


@given(
    st.lists(st.text("abcäß", min_size=1, max_size=3), min_size=2, max_size=5, unique=True),
    st.randoms(),
    st.data(),
)
def test_names_decide_in_whatever_order_the_data_have_them(names, random, data):
    names = [f"{n}." for n in names]
    order = random.sample(names, len(names))
    labels = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=6))
    texts = [f"text {i}" for i in range(len(labels))]
    numbers = rows(texts, [order.index(y) for y in labels], names=tuple(order))
    for given_ in (numbers, (texts, labels)):
        assert classes(given_, tuple(names)) == [names.index(y) for y in labels]


@given(
    st.integers(2, 6),
    st.sets(st.integers(0, 6), min_size=1),
    st.booleans(),
    st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
)
@example(3, {1, 2}, False, "csv")
def test_numbers_in_a_file_are_counted_or_refused_never_guessed(folder, n, said, named, kind):
    """Read from 0 and from 1: what fits in one way only is that, else it is refused."""
    names = [f"name {c}" for c in range(n)] if named else [f"LABEL_{c}" for c in range(n)]
    fits = [f for f in (0, 1) if min(said) >= f and max(said) < n + f]
    path = write(folder / f"x.{kind}", [(f"text {y}", y) for y in sorted(said)])
    if len(fits) == 1:
        assert classes(path, names) == [y - fits[0] for y in sorted(said)]
    else:
        refused(path, "two ways" if fits else "is none of", names)
    for first in fits:
        assert classes(path, names, first_label=first) == [y - first for y in sorted(said)]


@pytest.mark.parametrize(
    "labels, says",
    [
        ([0, 1.7], "1.7"),
        ([0, None], "None"),
        ([0, float("nan")], "nan"),
        ([0, pd.NA], "NA"),
        ([0, -1], "-1"),
        ([0, 3], "none of"),
        (["sport", 1], "1 among labels such as 'sport'"),
        (["sport", ""], "row 1: label"),
        (["sport", "opera"], "row 1: Label 'opera'"),
        (["sport", "\ud800"], "row 1: label"),
        ([[0, 1], [1, 0]], "list"),
        ([True, False], "True"),
        ([b"sport", b"film"], "bytes"),
        (np.array([[1, 0], [0, 1]]), "ndarray"),
        (torch.tensor([0.5, 1.0]), "0.5"),
        ([0, 2**70], "row 1: label 118"),
        ([0, 10**5000], "row 1: label"),
    ],
)
def test_labels_that_are_no_class_are_refused(labels, says):
    refused((["one", "two"], labels), says)


@pytest.mark.parametrize(
    "names, labels, right",
    [
        (("other", "other", "pos"), ["other"], "have this name"),
        (("other", "other", "pos"), ["pos"], [2]),
        (("other", "other", "pos"), [1], [1]),
        (("Sport", "FILM"), ["sport", "film "], [0, 1]),
        (("a", "A"), ["A"], [1]),
        (("cafe\u0301", "b"), ["caf\u00e9"], [0]),
        (("1", "2", "3"), [1, 2, 3], [0, 1, 2]),
        (("1", "2", "3"), [1, 2], "two ways"),
        (("1", "2", "3"), ["1", "2"], [0, 1]),
        (("2", "0", "1"), ["0", "2"], [1, 0]),
        (("2", "0", "1"), [0, 2], "two ways"),
        (("LABEL_0", "LABEL_1"), ["LABEL_1"], [1]),
        (("LABEL_0", "LABEL_1"), ["pos"], "does not name its classes"),
        (NAMES, [0.0, 2.0], [0, 2]),
        (NAMES, np.array([0, 2], np.uint8), [0, 2]),
        (NAMES, torch.tensor([0, 2]), [0, 2]),
        (NAMES, ["0", "2"], [0, 2]),
    ],
)
def test_names_that_repeat_differ_in_case_or_are_numbers(names, labels, right):
    data = ([f"text {i}" for i in range(len(labels))], labels)
    check(data, right, names)


@pytest.mark.parametrize(
    "two", [[("sport", "film"), ("film", "news")], (["sport", "film"], ["film", "news"])]
)
def test_two_rows_and_two_columns_of_two(two):
    check(two, [1, 2])


def test_a_data_set_whose_names_are_not_the_heads(tmp_path):
    assert classes(dataset(), ("LABEL_0", "LABEL_1", "LABEL_2")) == [2, 0, 1, 0]
    assert classes(dataset(["1", "0"], "012", ["a", "b"])) == [1, 0]
    refused(dataset(), "3 classes", ("LABEL_0", "LABEL_1"))
    refused(dataset(), "Label 'sport'", ("a", "b", "c"))
    refused(dataset([*"10"], "10", TEXTS[:2]), "matched by name", ("LABEL_0", "LABEL_1"))
    told = pd.DataFrame({"text": TEXTS, "label": [2, 0, 1, 0], "label_text": LABELS})
    told.to_csv(tmp_path / "x.csv", index=False)
    told.to_parquet(tmp_path / "x.parquet")
    told.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    for data in (told, *tmp_path.iterdir()):
        assert classes(data) == NUMBERS, "the text tells what the number means"
    assert classes(Split(tuple(TEXTS), torch.tensor([0, 1, 2, 1])), ("2", "0", "1")) == NUMBERS


def test_a_task_numbers_both_splits_alike(tmp_path):
    other = dataset(names=NAMES, texts=[f"test {i}" for i in range(4)])
    task = mergelib.task("t", dataset(), other, n_validation=1)
    assert task.label_names == OTHER_ORDER and task.test.labels.tolist() == [2, 0, 1, 0]
    one = write(tmp_path / "a.csv", [(f"text {i}", i % 3 + 1) for i in range(9)])
    task = mergelib.task("t", one, (["a test"], ["3"]), n_validation=2)
    assert task.label_names == ("1", "2", "3") and task.test.labels.tolist() == [2]
    for train, test, says in (
        (PAIRS, [("a", "opera")], "'opera' is not among train's"),
        (PAIRS, [("a", 0)], "'0' is not among"),
        ([(y, t) for t, y in PAIRS], PAIRS, "seem to be swapped"),
    ):
        with pytest.raises(DataError, match=says):
            mergelib.task("t", train, test, n_validation=1)


# ---- files ------------------------------------------------------------------------------------

ODD, MARK = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\u00a0\ufeff", "\ufeff"
lines = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n\0") |
                st.sampled_from(ODD), min_size=1)  # fmt: skip


@given(
    st.lists(lines.filter(lambda t: t.lstrip(MARK).strip()), min_size=1, max_size=5),
    st.sampled_from(["\n", "\r\n"]),
)
@example(["good\u2028film", "bad\x85plot", "fine\x0cteam"], "\n")
def test_a_text_file_holds_a_text_per_line_feed(folder, texts, end):
    path = folder / "i.TXT"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(t + end for t in texts).encode())
    texts = [t.lstrip(MARK) for t in texts]
    assert unlabelled(path, False) == texts
    table = write(path.parent / "i.csv", [(t, "sport") for t in texts])
    assert list(rows_of(table).inputs) == texts


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
@pytest.mark.parametrize("header", [None, ("label", "text"), ("Class Index", "utterance")])
@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".tsv", ".Csv.gz", ".CSV.GZ"])
@pytest.mark.parametrize("labels", [LABELS, [1, 2, 3, 2]], ids=["names", "numbers"])
def test_tables_with_and_without_mark_header_names(tmp_path, mark, header, suffix, labels):
    rows = zip(TEXTS, labels, strict=True)
    path = write(tmp_path / f"y{suffix}", rows, header, mark=mark)
    assert classes(path) == NUMBERS and unlabelled(path, False) == TEXTS


KINDS = ["csv", "tsv", "jsonl", "parquet", "csv.gz", "txt"]


@given(st.sampled_from(KINDS), st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_no_mark_before_a_file_a_text_or_a_label_stays(folder, kind, n):
    """Two at a file's beginning, or within one that was joined from several."""
    texts = [MARK * i + t for i, t in zip(n, TEXTS, strict=False)]
    labels = [MARK * i + y for i, y in zip(n[4:], LABELS, strict=False)]
    path = write(folder / f"x.{kind}", zip(texts, labels, strict=True))
    if kind not in ("parquet", "csv.gz"):
        path.write_bytes((MARK * n[8]).encode() + path.read_bytes())
    assert unlabelled(path, False) == unlabelled(texts, False) == TEXTS
    if kind != "txt":
        assert classes(path) == classes((texts, labels)) == NUMBERS
    table = {MARK * n[0] + "label": labels, MARK * n[1] + "text": texts}
    assert classes(table) == classes(pd.DataFrame(table)) == NUMBERS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-16"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "parquet"])
def test_utf_16_is_refused_by_name(tmp_path, kind, encoding):
    path = write(tmp_path / f"x.{kind}", PAIRS, encoding=encoding)
    said = "cannot be read as UTF-8" if encoding == "utf-16" else "UTF-16.*save it as UTF-8"
    with pytest.raises(DataError, match=rf"x\.{kind}: .*{said}") as caught:
        unlabelled(path, False)
    assert len(str(caught.value)) < 300
    if kind != "txt":
        refused(path, said)
    texts = [t.encode(encoding).decode("utf-8", "replace") for t in TEXTS]
    for data in ((texts, LABELS), write(tmp_path / "y.parquet", zip(texts, LABELS, strict=True))):
        refused(data, "row 0: .*encoding='utf-16'")


@given(
    st.lists(st.integers(0, 50), unique=True, min_size=2, max_size=8)
    | st.integers(1, 8).map(lambda n: list(range(n)))
    | st.integers(2, 8).map(lambda n: list(range(1, n + 1))),
    st.sampled_from([("text", "label"), ("label", "text"), ("label", "title", "text")]),
    st.sampled_from([".csv", ".tsv"]),
)
def test_an_index_is_never_read_as_labels(folder, index, columns, suffix):
    """What ``to_csv(header=False)`` of pandas writes, whatever rows were chosen before."""
    n, path, pairs = len(index), folder / f"index{suffix}", len(columns) == 2
    made = {"text": [f"text {i}" for i in range(n)], "label": [i % 3 for i in range(n)]}
    frame = pd.DataFrame({c: made.get(c, ["a title"] * n) for c in columns}, index=index)
    to = {"path_or_buf": path, "sep": "\t" if suffix == ".tsv" else ","}
    frame.to_csv(header=False, **to)
    at, names = 1 + columns.index("text"), [f"c{i}" for i in range(60)]
    for column in (None, at) if pairs else (at,):
        refused(path, "index,text,label.*header", names, text_column=column)
    assert unlabelled(path, False, at) == made["text"], "asked for by its place"
    if pairs:
        with pytest.raises(DataError, match="header"):
            unlabelled(path, False)
    frame.to_csv(**to)
    assert rows_of(path).texts() == list(map(str, made["label"]))
    assert unlabelled(path, False) == made["text"]
    if pairs:  # a label that comes twice is one
        again = pd.concat([frame, frame[:1]])
        again.to_csv(header=False, **to)
        assert rows_of(path).texts() == list(map(str, again.index))


@pytest.mark.parametrize("n", [1, 3, 4])
def test_of_a_known_layout_the_first_column_is_the_label(tmp_path, n):
    (tmp_path / "ag").mkdir()
    for split, lines in (("train", 4), ("test", n)):
        text = "".join(f'"{i}","title {i}","text {i}"\n' for i in range(1, lines + 1))
        (tmp_path / "ag" / f"{split}.csv").write_text(text)
    for _, train, test in (released_splits("ag", str(tmp_path)), local_splits(tmp_path, "ag")):
        for split, lines in ((train, 4), (test, n)):
            assert split.labels.tolist() == list(range(lines))
            assert split.inputs == tuple(f"text {i}" for i in range(1, lines + 1))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_texts_survive_as_they_are(tmp_path, kind):
    texts = ["null", "NA", "nan", "None", " padded ", "naïve 日本 😀", "x" * 200_000, "0", "a, b"]
    texts += ['He said "no, never"', "one\ntwo\r\nthree"] * (kind != "tsv")
    path = write(tmp_path / f"x.{kind}", [(t, "sport") for t in texts])
    assert list(rows_of(path).inputs) == texts


@pytest.mark.parametrize(
    "table, column, labelled, found",
    [
        ('1,"title","text"\n1,t,text two\n', None, True, ["text", "text two"]),
        ("1,a,b,c\n1,d,e,f\n", None, True, "line 1: .*it has label, 1, 2, 3.*--text-column"),
        ("1,a,b,c\n1,d,e,f\n", 1, True, ["a", "d"]),
        *[("1,a,b,c\n", c, True, f"{c} does not exist.*--text-column") for c in (0, 4, -1, "t")],
        ("title,label,body\na,1,b\n", None, True, ["b"]),
        ("title,label,body\na,1,b\n", "Title", True, ["a"]),
        ("title,label,body\na,1,b\n", 0, True, ["a"]),
        ("comment,rating\ngood,1\n", "comment", False, ["good"]),
        ("comment,rating\ngood,1\nbad,1\n", None, False, "repeats itself.*--text-column 0"),
        ("u1,fine,pos\nu2,poor,pos\n", None, False, "repeats itself.*--text-column 0"),
        ("2,a,fine\n1,b,poor\n2,a,so so\n", None, False, ["fine", "poor", "so so"]),
    ],
)
def test_columns_by_place_and_name(tmp_path, table, column, labelled, found):
    path, form = tmp_path / "x.csv", Form(labelled, text_column=column)
    path.write_text(table)
    if isinstance(found, list):
        assert read_csv(path, form).inputs == found
    else:
        with pytest.raises(DataError, match=found):
            read_csv(path, form)


def test_the_text_column_of_every_table(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("title,label,body\na,1,b\n")
    frame = pd.read_csv(path)
    for table in (frame, frame.to_dict("list"), datasets.Dataset.from_pandas(frame), path):
        assert rows_of(table).inputs == ["b"]
        assert rows_of(table, text_column="title").inputs == ["a"]
        with pytest.raises(DataError, match="the text column heading does not exist"):
            rows_of(table, text_column="heading")


def test_a_first_line_is_header_or_row_or_refused(tmp_path):
    """A class called like a column, and a column called like nothing that is known."""
    path = tmp_path / "x.csv"
    path.write_text("target,text one\nother,text two\ntarget,text three\n")
    refused(path, "line 1: 'target' is a class, too", ("target", "other"))
    rows = [(f"text {i}", "pos" if i % 2 else "neg") for i in range(6)]
    write(path, rows, ("sentiment", "review"))
    with pytest.raises(DataError, match="line 1: class 'sentiment' has only this row"):
        mergelib.task("t", path, [("a", "pos")], n_validation=1)
    write(path, rows, ("label", "text"))
    refused(path, "holds the labels", ("neg", "pos"), text_column="label")


@pytest.mark.parametrize(
    "bad, says",
    [
        ("\n", "line 3: the row is empty"),
        (",,\n", "line 3: the row is empty"),
        ("1,t,  \n", "line 3.*text is empty"),
        ("-1,t,x\n", "line 3: Label '-1'"),
        ("x,t,x\n", "line 3: Label 'x'"),
        ("1.0,t,x\n", "line 3: Label '1.0'"),
        ("1_0,t,x\n", "line 3: Label '1_0'"),
        ("5,t,x\n", "line 3: Label '5'"),
        (f"{'9' * 5000},t,x\n", "line 3: Label '999"),
        (",t,x\n", "line 3: label"),
        ("1,x\n", "line 3: 2 columns"),
        ("1,t,x,y\n", "line 3: 4 columns"),
        ('1,t,"one\ntwo"\n5,t,x\n', "line 5: Label '5'"),
        ('1,t,"x" y\n', "near line 3"),
        ('1,t,"never closed\n', "cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
def test_a_broken_row_is_refused_with_file_and_line(tmp_path, name, bad, says):
    raw = f"1,t,good\n2,t,good\n{bad}1,t,good\n".encode()
    for split in (name, "test.csv"):
        (tmp_path / "ag").mkdir(exist_ok=True)
        path = tmp_path / "ag" / split
        path.write_bytes(gzip.compress(raw) if split.endswith("gz") else raw)
    with pytest.raises(DataError, match=says):
        local_splits(tmp_path, "ag")
    refused(path, says, LABEL_NAMES["ag"], first_label=1)


def test_files_that_cannot_be_read(tmp_path):
    good = gzip.compress("".join(f"1,t,text number {i}\n" for i in range(3000)).encode())
    for name, raw in {
        "latin.csv": "1,caf\xe9\n".encode("latin-1"),
        "utf16.csv": "1,text\n".encode("utf-16"),
        "cut.csv.gz": good[: len(good) // 2],
        "flipped.csv.gz": good[:500] + bytes(b ^ 0xFF for b in good[500:540]) + good[540:],
        "plain.csv.gz": b"1,t,not zipped\n",
        "empty.csv": b"",
        "header.csv": b"label,text\n",
        "no.jsonl": b'{"text": "a"\n',
        "nested.jsonl": b"[" * 100_000,
        "list.jsonl": b'["a", "sport"]\n3\n',
        "twice.jsonl": b'{"text": "a", "label": 0, "label": 1}\n',
        "half.jsonl": b'{"text": "\\ud800", "label": "sport"}\n',
        "null.jsonl": b'{"text": null, "label": "sport"}\n',
        "lacks.jsonl": b'{"text": "a", "label": "sport"}\n{"text": "b"}\n',
        "x.parquet": b"PAR1",
        "labelled.txt": b"a text\n",
        "x.xlsx": b"PK",
    }.items():
        (tmp_path / name).write_bytes(raw)
        refused(tmp_path / name, name.replace(".", r"\."))
    for raw in (b"", b"\n \n", b"one\rtwo"):
        (tmp_path / "i.txt").write_bytes(raw)
        with pytest.raises(DataError, match=r"i\.txt"):
            unlabelled(tmp_path / "i.txt", False)


# ---- images -----------------------------------------------------------------------------------


def image_folder(root, names, suffix="png"):
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (40 * i, 0, 0)).save(root / name / f"a.{suffix}", "PNG")
    return root


@pytest.mark.parametrize(
    "folders, names, right",
    [
        (["film", "news", "sport"], NAMES, [1, 2, 0]),
        (["0", "1", "2"], ["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2]),
        (["1", "2", "3"], NAMES, [0, 1, 2]),
        (["00000", "00001", "00010"], [f"sign {i}" for i in range(12)], [0, 1, 10]),
        ([str(i) for i in range(11)], [f"{i}." for i in range(11)], [0, 1, 10, *range(2, 10)]),
        (["1", "2"], NAMES, "two ways"),
        (["0", "1"], ["1", "2", "0"], [2, 0]),
        (["train", "test"], NAMES, "none of"),
    ],
)
def test_image_folders_of_names_and_digits(tmp_path, folders, names, right):
    root = image_folder(tmp_path / "im", folders, "JPEG")
    first = folders[0]
    for odd in (f"{first}/._a.JPEG", f"{first}/.hidden/b.png", "__MACOSX/c.png", ".DS_Store"):
        (root / odd).parent.mkdir(exist_ok=True)
        (root / odd).write_bytes(b"no image")
    check(root, right, names, is_image=True)
    assert {p.name for p in unlabelled(root, True)} == {"a.JPEG"}


def test_images_that_would_be_left_out_are_named(tmp_path):
    root = image_folder(tmp_path, ["film", "sport"])
    (root / "film" / "b.tiff").write_bytes(b"x")
    refused(root, r"b\.tiff", is_image=True)
    (root / "film" / "b.tiff").rename(root / "c.png")
    refused(root, "1 images in no folder", is_image=True)


def test_an_image_task_from_every_shape(tmp_path):
    root, names = image_folder(tmp_path / "im", "abc"), list("abc")
    files = [root / n / "a.png" for n in names]
    pictures = list(map(Image.open, files))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    held = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 2]}, features=features)
    held.to_parquet(tmp_path / "x.parquet")
    others = [np.full((4, 4, 3), value, np.uint8) for value in (200, 210, 220, 230)]
    learned = (others, ["a", "a", "b", "c"])  # of which one goes to validation
    for data in (
        root,
        held,
        tmp_path / "x.parquet",
        (pictures, names),
        list(zip(map(np.array, pictures), names, strict=True)),
        ([f.read_bytes() for f in files], names),
        (list(map(str, files)), names),
    ):
        task = mergelib.image_task("t", learned, data, n_validation=1, size=4)
        assert task.modality == "image" and task.test.inputs.shape == (3, 3, 4, 4)
        assert task.test.inputs[:, 0, 0, 0].tolist() == [0, 40, 80]
        assert task.test.labels.tolist() == [0, 1, 2]
    for odd, says in ((1, "an image is"), (np.zeros(3), "mode F")):
        with pytest.raises(DataError, match=says):
            mergelib.image_task("t", ([odd] * 3, names), root, n_validation=1, size=4)
