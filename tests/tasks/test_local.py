"""Local CSV folders become tasks: names, splits and subsamples."""

import gzip

import pytest
import torch

from mergelib.core.errors import DataError
from mergelib.core.types import Split, Task
from mergelib.profiles import load_profile
from mergelib.tasks import load_task, miniature_corpus
from mergelib.tasks.local import local_splits


def write(folder, train, test=None):
    """The two files of a task, the second one zipped."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.csv").write_text(train)
    if test is not None:
        (folder / "test.csv.gz").write_bytes(gzip.compress(test.encode()))


def test_missing_folders_and_files_name_what_is_there(tmp_path):
    write(tmp_path / "ag", "1,a\n")
    with pytest.raises(DataError, match="Found ag"):
        local_splits(tmp_path, "yelp")
    with pytest.raises(DataError, match=r"No test\.csv or test\.csv\.gz"):
        local_splits(tmp_path, "ag")
    with pytest.raises(DataError, match="Found nothing"):
        local_splits(tmp_path / "nowhere", "ag")


def folder(tmp_path, name="ag", classes=4, n=40):
    train, test = (
        "".join(f"{i % classes + 1},t,{text} {i}\n" for i in range(rows))
        for text, rows in (("text", n), ("test text", 20))
    )
    write(tmp_path / name, train, test)
    return tmp_path


def local_profile(tmp_path, n_train=20):
    sizes = {"n_train": n_train, "n_validation": 8, "n_test": 12}
    settings = {"source": "local", "text_dir": str(tmp_path)} | sizes
    return load_profile("quick", {f"tasks.{name}": value for name, value in settings.items()})


def test_a_class_without_samples_is_named(tmp_path):
    folder(tmp_path, classes=3)
    with pytest.raises(DataError, match="1 to 3 can count 'ag's 4 classes"):
        load_task("ag", local_profile(tmp_path))
    write(tmp_path / "ag", (tmp_path / "ag" / "train.csv").read_text(), "4,t,text\n")
    with pytest.raises(DataError, match=r"no training sample for class 3 \(Sci/Tech\)"):
        load_task("ag", local_profile(tmp_path))


def test_splits_are_cut_by_seeds(tmp_path):
    profile = local_profile(folder(tmp_path))
    task, again = load_task("ag", profile), load_task("ag", profile)
    splits = task.train, task.validation, task.test
    assert [len(set(s.inputs)) for s in splits] == [len(s) for s in splits] == [20, 8, 12]
    train, validation = set(task.train.inputs), set(task.validation.inputs)
    assert not train & validation and train | validation <= {f"text {i}" for i in range(40)}
    assert [s.digest for s in splits] == [
        s.digest for s in (again.train, again.validation, again.test)
    ]
    for split in splits:  # a text keeps its own label, and a cut in file order would not be random
        rows = [int(text.split()[-1]) for text in split.inputs]
        assert [row % 4 for row in rows] == split.labels.tolist()
        assert sorted(rows) != rows
    larger = load_task("ag", local_profile(tmp_path, n_train=32))
    assert larger.validation.digest == task.validation.digest and train <= set(larger.train.inputs)


def test_too_few_rows_for_a_validation_split(tmp_path):
    with pytest.raises(DataError, match="cannot give 8 validation rows"):
        load_task("ag", local_profile(folder(tmp_path, n=8)))


def test_unknown_tasks_get_numbered_labels(tmp_path):
    names, train, _ = local_splits(folder(tmp_path, name="mine", classes=12), "mine")
    assert names == tuple(f"class {c}" for c in range(1, 13))
    assert train.labels.tolist() == [i % 12 for i in range(40)]


def test_a_local_profile_without_a_folder_names_the_option():
    with pytest.raises(DataError, match="--text-dir"):
        load_task("ag", load_profile("quick", {"tasks.source": "local"}))


@pytest.mark.parametrize(
    "labels, says",
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
