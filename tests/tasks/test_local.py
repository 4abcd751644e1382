"""Local CSV folders: what is read, and what is refused with file and line."""

from __future__ import annotations

import gzip

import pytest
import torch

from mergelib.errors import DataError
from mergelib.profiles import load_profile
from mergelib.tasks import build_task, load_task, miniature_corpus, miniature_task
from mergelib.tasks.local import local_splits, read_csv
from mergelib.types import Split, Task


def write(path, text: str | bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('1,"title one","text one"\n2,t,text two\n', ["text one", "text two"]),
        ("1,text one\n2,text two\n", ["text one", "text two"]),
        ("1,text one\r\n2,text two", ["text one", "text two"]),
    ],
)
def test_two_and_three_columns_plain_and_gzipped(tmp_path, name, text, expected):
    split = read_csv(write(tmp_path / name, text))
    assert list(split.inputs) == expected
    assert split.labels.tolist() == [0, 1] and split.labels.dtype == torch.int64


def test_texts_survive_as_they_are(tmp_path):
    """Words that table readers take for missing values, quotes, commas and line breaks within quotes."""
    texts = [
        "null",
        "NA",
        "nan",
        "None",
        "",
        'He said "no, never"',
        "one\ntwo\r\nthree",
        " padded ",
        "naïve 日本 😀",
        "x" * 200_000,
    ]
    texts.remove("")
    rows = "".join(f'1,t,"{t.replace(chr(34), chr(34) * 2)}"\n' for t in texts)
    assert list(read_csv(write(tmp_path / "train.csv", rows)).inputs) == texts


def test_other_shapes_need_a_text_column(tmp_path):
    path = write(tmp_path / "train.csv", "1,a,b,c\n2,d,e,f\n")
    with pytest.raises(DataError, match=r"line 1: 4 columns.*--text-column"):
        read_csv(path)
    assert read_csv(path, text_column=1).inputs == ("a", "d")
    for column in (0, 4, -1):
        with pytest.raises(DataError, match=f"--text-column {column} does not exist"):
            read_csv(path, text_column=column)


@pytest.mark.parametrize(
    ("bad", "line", "says"),
    [
        ("\n", 3, "row is empty"),
        (",,\n", 3, "row is empty"),
        ("1,t,\n", 3, "text is empty"),
        ("1,t,  \n", 3, "text is empty"),
        ("0,t,x\n", 3, "labels count from 1"),
        ("-1,t,x\n", 3, "labels count from 1"),
        ("x,t,x\n", 3, "not an integer"),
        ("1.0,t,x\n", 3, "not an integer"),
        (",t,x\n", 3, "not an integer"),
        ("1,x\n", 3, "2 columns"),
        ("1,t,x,y\n", 3, "4 columns"),
        ('1,t,"x" y\n', 3, "cannot be read"),
        ('1,t,"never closed\n', None, "cannot be read"),
        ("99999999999999999999,t,x\n", 3, "label"),
    ],
)
@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
def test_a_broken_row_is_refused_with_file_and_line(tmp_path, name, bad, line, says):
    path = write(tmp_path / name, f"1,t,good\n2,t,good\n{bad}1,t,good\n")
    with pytest.raises(DataError) as error:
        read_csv(path)
    assert str(path) in str(error.value) and says in str(error.value)
    assert line is None or f"line {line}" in str(error.value)


def test_the_line_is_that_of_the_file_not_of_the_row(tmp_path):
    path = write(tmp_path / "train.csv", '1,t,"one\ntwo\nthree"\n2,t,good\n0,t,bad\n')
    with pytest.raises(DataError, match="line 5"):
        read_csv(path)


def test_files_that_cannot_be_read(tmp_path):
    latin = write(tmp_path / "latin.csv", "1,t,caf\xe9\n".encode("latin-1"))
    good = gzip.compress("".join(f"1,t,text number {i}\n" for i in range(3000)).encode())
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(good[: len(good) // 2])
    flipped = tmp_path / "flipped.csv.gz"
    flipped.write_bytes(good[:500] + bytes(b ^ 0xFF for b in good[500:540]) + good[540:])
    plain = tmp_path / "plain.csv.gz"
    plain.write_bytes(b"1,t,not zipped\n")
    empty = write(tmp_path / "empty.csv", "")
    for path in (latin, cut, flipped, plain, empty):
        with pytest.raises(DataError) as error:
            read_csv(path)
        assert str(path) in str(error.value)


def test_missing_folders_and_files_name_what_is_there(tmp_path):
    write(tmp_path / "ag" / "train.csv", "1,a\n")
    with pytest.raises(DataError, match="Found ag"):
        local_splits(tmp_path, "yelp")
    with pytest.raises(DataError, match=r"No test\.csv or test\.csv\.gz"):
        local_splits(tmp_path, "ag")
    with pytest.raises(DataError, match="Found nothing"):
        local_splits(tmp_path / "nowhere", "ag")


def folder(tmp_path, name="ag", classes=4, n=40, extra=""):
    rows = "".join(f"{i % classes + 1},t,text {i}\n" for i in range(n))
    write(tmp_path / name / "train.csv", rows + extra)
    write(
        tmp_path / name / "test.csv.gz",
        "".join(f"{i % classes + 1},t,test text {i}\n" for i in range(20)),
    )
    return tmp_path


def local_profile(tmp_path, **sizes):
    return load_profile(
        "quick",
        {
            "tasks.source": "local",
            "tasks.text_dir": str(tmp_path),
            "tasks.n_train": 20,
            "tasks.n_validation": 8,
            "tasks.n_test": 12,
        }
        | sizes,
    )


def test_a_label_above_the_number_of_classes(tmp_path):
    with pytest.raises(DataError, match=r"label 5, but 'ag' has 4 classes"):
        local_splits(folder(tmp_path, extra="5,t,text\n"), "ag")


def test_a_class_without_samples_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no training sample for class 3 \(Sci/Tech\)"):
        load_task("ag", local_profile(folder(tmp_path, classes=3)))


def test_local_and_miniature_give_the_same_kind_of_task(tmp_path):
    profile = local_profile(folder(tmp_path))
    local, miniature = load_task("ag", profile), miniature_task("ag", load_profile("quick"))
    assert type(local) is type(miniature) is Task
    assert len(local.label_names) == len(miniature.label_names) == 4
    for task in (local, miniature):
        for split in (task.train, task.validation, task.test):
            assert (
                isinstance(split, Split)
                and split.labels.dtype == torch.int64
                and all(isinstance(x, str) for x in split.inputs)
            )
    assert (len(local.train), len(local.validation), len(local.test)) == (20, 8, 12)


def test_validation_is_cut_from_train_by_a_seed(tmp_path):
    profile = local_profile(folder(tmp_path))
    task, again = load_task("ag", profile), load_task("ag", profile)
    train, validation = set(task.train.inputs), set(task.validation.inputs)
    assert not train & validation and train | validation <= {f"text {i}" for i in range(40)}
    assert (task.train.digest, task.validation.digest, task.test.digest) == (
        again.train.digest,
        again.validation.digest,
        again.test.digest,
    )
    assert list(task.validation.inputs) != [f"text {i}" for i in range(8)], (
        "a cut in file order would not be random"
    )
    for split in (task.train, task.validation):  # a text keeps its own label
        assert [int(x.split()[-1]) % 4 for x in split.inputs] == split.labels.tolist()
    larger = load_task("ag", local_profile(tmp_path, **{"tasks.n_train": 32}))
    assert larger.validation.digest == task.validation.digest and train <= set(larger.train.inputs)


def test_too_few_rows_for_a_validation_split(tmp_path):
    with pytest.raises(DataError, match="cannot give 8 validation rows"):
        load_task("ag", local_profile(folder(tmp_path, n=8)))


def test_unknown_tasks_get_numbered_labels(tmp_path):
    names, train, _ = local_splits(folder(tmp_path, name="mine", classes=3), "mine")
    assert names == ("class 1", "class 2", "class 3") and train.labels.max() == 2


def test_a_local_profile_without_a_folder_names_the_option():
    with pytest.raises(DataError, match="--text-dir"):
        load_task("ag", load_profile("quick", {"tasks.source": "local"}))


@pytest.mark.parametrize(
    ("labels", "says"),
    [([0, 1, 2], "outside 0..1"), ([0, -1, 1], "label -1"), ([0, 0, 0], "class 1")],
)
def test_a_task_refuses_labels_outside_its_range_and_empty_classes(labels, says):
    good = Split(("a", "b", "c"), torch.tensor([0, 1, 0]))
    with pytest.raises(DataError, match=says):
        Task("t", ("no", "yes"), Split(("a", "b", "c"), torch.tensor(labels)), good, good)
    with pytest.raises(DataError, match="2 inputs but 1 labels"):
        Split(("a", "b"), torch.tensor([0]))
    with pytest.raises(DataError, match="test split is empty"):
        Task("t", ("no", "yes"), good, good, Split((), torch.tensor([], dtype=torch.long)))


def test_subsamples_are_seeded_and_keep_their_labels():
    whole = Split(tuple(f"{i}" for i in range(60)), torch.arange(60) % 3)
    task = build_task("t", "abc", whole, whole, n_train=30, n_validation=10, n_test=15, source="")
    for split in (task.train, task.validation, task.test):
        assert [int(x) % 3 for x in split.inputs] == split.labels.tolist() and len(
            set(split.inputs)
        ) == len(split)


def test_splits_and_corpus_share_no_document(study):
    tasks = list(study.tasks.values())
    for t in tasks:
        train, validation, test = (set(s.inputs) for s in (t.train, t.validation, t.test))
        assert not train & validation and not train & test and not validation & test
    held_out = {x.lower() for t in tasks for s in (t.validation, t.test) for x in s.inputs}
    corpus = miniature_corpus(study.profile, tasks)
    assert len(corpus) == study.profile.encoder.pretraining.documents
    assert not held_out & {x.lower() for x in corpus}
    assert corpus == miniature_corpus(study.profile, tasks)
