"""Hub tasks: the registry, the real client against a hub on the loopback, the lock file, and what can go wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import loopback_hub
import pytest
import torch
import yaml
from loopback_hub import NEW, OLD, PAGE, closed_endpoint, serving, table_repository

from mergelib.errors import DataError, StoreError, UnknownNameError
from mergelib.profiles import TASK_NAMES
from mergelib.tasks import hub
from mergelib.tasks.local import LABEL_NAMES

AG = "fancyzhx/ag_news"


class Client(loopback_hub.Client):
    """``client(task, lock, ...)``: hub_splits, with a registry that promises no row counts."""

    def __init__(self, folder: Path, endpoint: str, **environment: str):
        registry = folder / "hub.yaml"
        entries = yaml.safe_load(hub.REGISTRY.read_text())
        registry.write_text(
            yaml.safe_dump({name: {**entry, "rows": None} for name, entry in entries.items()})
        )
        super().__init__(folder, endpoint, {"mergelib.tasks.hub": registry}, **environment)

    def __call__(self, name: str, lock: Path, **arguments: int) -> dict:
        answer = super().__call__(
            "mergelib.tasks.hub.hub_splits", name, lock_path=str(lock), **arguments
        )
        return {**answer, **answer.pop("value", {})}


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def client(server, folder):
    client = Client(folder, server.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def fetched(server, client, folder):
    """AG News at its old commit, fetched once; the hub has moved on since."""
    train = {"text": ["war", " ball \n", "", "stock", "chip"], "label": [0, 1, 1, 2, 3]}
    server.repositories[AG] = {
        OLD: table_repository(train, {"text": ["goal", "bank"], "label": [1, 2]})
    }
    answer = client("ag", folder / "lock.json")
    server.repositories[AG][NEW] = table_repository(
        {**train, "label": [3, 1, 1, 2, 0]}, {"text": ["goal"], "label": [1]}
    )
    return answer


class TestClient:
    def test_first_fetch(self, fetched, folder):
        assert fetched["names"] == list(LABEL_NAMES["ag"])
        assert fetched["train"] == ["war", "ball", "stock", "chip"] and fetched["labels"] == [
            0,
            1,
            2,
            3,
        ]
        assert fetched["test"] == ["goal", "bank"]
        locked = json.loads((folder / "lock.json").read_text())["ag"]
        assert locked["id"] == AG and locked["revision"] == OLD
        assert (
            locked["train"]["rows"] == 5
            and locked["train"]["empty"] == 1
            and locked["test"]["empty"] == 0
        )
        assert [p.name for p in folder.glob("lock.json*")] == ["lock.json"]

    def test_the_locked_commit_is_fetched_again(self, fetched, server, client, folder):
        before = (folder / "lock.json").read_bytes()
        server.asked.clear()
        again = client("ag", folder / "lock.json")
        assert {**again, "seconds": 0, "err": ""} == {**fetched, "seconds": 0, "err": ""}
        assert (folder / "lock.json").read_bytes() == before
        assert not any(NEW in path for path in server.asked)

    def test_without_lock_the_newest_is_fetched_and_then_differs_from_a_lock(
        self, fetched, client, folder, tmp_path
    ):
        newest = client("ag", tmp_path / "lock.json")
        assert newest["labels"] == [3, 1, 2, 0]
        entry = json.loads((tmp_path / "lock.json").read_text())["ag"]
        assert entry["revision"] == NEW
        # The same commit with other contents: what a cache altered by hand, or a rewritten history, would give.
        old = json.loads((folder / "lock.json").read_text())["ag"]
        mixed = tmp_path / "mixed.json"
        mixed.write_text(json.dumps({"ag": {**old, "revision": NEW}}))
        answer = client("ag", mixed)
        assert answer["error"] == "DataError"
        for part in (
            AG,
            NEW,
            "labels of train differ",
            "test has 1 rows, locked 2",
            "LAMOL",
            str(mixed),
        ):
            assert part in answer["message"]

    def test_csv_with_labels_from_one(self, server, client, tmp_path):
        csv = b'class_index,review_title,review_text\n5,"Great","Loved, it"\n1,,Broke\n3,"So ""so""",okay\n'
        files = {"README.md": b"# A card\n", "train.csv": csv, "test.csv": csv}
        server.repositories[hub.registry()["amazon"].id] = {OLD: files}
        answer = client("amazon", tmp_path / "lock.json")
        assert answer["train"] == ["Great Loved, it", "Broke", 'So "so" okay'] and answer[
            "labels"
        ] == [4, 0, 2]

    @pytest.mark.parametrize(
        ("status", "reason"),
        [(200, "log-in or error page"), (404, "status 404"), (503, "status 503")],
    )
    def test_error_page_instead_of_the_api(self, server, client, tmp_path, status, reason):
        server.repositories["Yelp/yelp_review_full"] = {OLD: {}}
        server.pages["Yelp/yelp_review_full"] = status
        answer = client("yelp", tmp_path / "lock.json")
        assert (
            answer["error"] == "OfflineError"
            and reason in answer["message"]
            and answer["seconds"] < 20
        )
        assert not (tmp_path / "lock.json").exists()

    def test_error_page_instead_of_a_file(self, server, client, tmp_path):
        rows = {"label": [0], "title": ["t"], "content": ["c"]}
        files = table_repository(rows, rows)
        server.repositories["fancyzhx/dbpedia_14"] = {
            OLD: {**files, "data/test-00000-of-00001.parquet": PAGE}
        }
        answer = client("dbpedia", tmp_path / "lock.json")
        assert answer["error"] == "DataError"
        assert "error page" in answer["message"] and "dbpedia_14" in answer["message"]
        assert not (tmp_path / "lock.json").exists()

    def test_only_tables_and_no_code(self, server, client, tmp_path):
        entries = hub.registry()
        script = {
            "README.md": b"# A card\n",
            entries["yahoo"].id.split("/")[1] + ".py": b"raise SystemExit",
        }
        server.repositories[entries["yahoo"].id] = {OLD: script}
        answer = client("yahoo", tmp_path / "lock.json")
        del server.repositories[entries["yahoo"].id]
        assert (
            answer["error"] == "DataError"
            and "scripts are no longer supported" in answer["message"]
        )
        row = b'{"class_index": 1, "review_title": "", "review_text": "x"}'
        server.repositories[entries["amazon"].id] = {NEW: {"train.json": row, "test.json": row}}
        answer = client("amazon", tmp_path / "lock.json")
        assert answer["error"] == "DataError" and "json files" in answer["message"]

    def test_another_copy_in_the_cache_is_not_passed_off(self, server, client, tmp_path):
        name, commit = hub.registry()["amazon"].id, "d" * 40
        server.repositories[name] = {
            commit: {"README.md": b"# A card\n", name.split("/")[1] + ".py": b""}
        }
        answer = client("amazon", tmp_path / "lock.json")
        assert (
            answer["error"] == "OfflineError"
            and commit in answer["message"]
            and NEW in answer["message"]
        )

    def test_gone(self, fetched, client, folder, tmp_path):
        answer = client("yahoo", tmp_path / "lock.json")
        assert answer["error"] == "DataError"
        assert (
            "yahoo_answers_topics" in answer["message"] and "no such data set" in answer["message"]
        )
        old = json.loads((folder / "lock.json").read_text())["ag"]
        (tmp_path / "lock.json").write_text(json.dumps({"ag": {**old, "revision": "c" * 40}}))
        answer = client("ag", tmp_path / "lock.json")
        assert answer["error"] == "DataError" and "c" * 40 in answer["message"]
        assert "revision is gone" in answer["message"]

    @pytest.mark.parametrize("mode", ["offline", "closed"])
    def test_without_a_hub(self, fetched, folder, tmp_path, mode):
        """What is cached can be used, quickly; what is not names the remedy, quickly."""
        environment = {"HF_HUB_OFFLINE": "1"} if mode == "offline" else {}
        copy = tmp_path / "copy"
        copy.mkdir()
        client = Client(copy, closed_endpoint(), **environment)
        try:
            empty = client("ag", tmp_path / "lock.json")
            assert empty["error"] == "OfflineError" and empty["seconds"] < 20
            for part in (
                AG,
                "Connect once",
                "--text-dir",
                "HF_HUB_OFFLINE" if mode == "offline" else "ConnectError",
            ):
                assert part in empty["message"]
            assert not (tmp_path / "lock.json").exists()
            cache = Path("home", "datasets", "fancyzhx___ag_news", "default", "0.0.0", OLD)
            shutil.copytree(folder / cache, copy / cache)
            cached = client("ag", tmp_path / "lock.json")
            assert cached["train"] == fetched["train"] and cached["seconds"] < 20
            locked = [json.loads((f / "lock.json").read_text())["ag"] for f in (tmp_path, folder)]
            assert locked[0] == locked[1]
            (tmp_path / "other.json").write_text(
                (tmp_path / "lock.json").read_text().replace(OLD, NEW)
            )
            other = client("ag", tmp_path / "other.json")
            assert (
                other["error"] == "OfflineError"
                and OLD in other["message"]
                and NEW in other["message"]
            )
        finally:
            client.close()


# --- everything behind the download, without a client -------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """``fake(task, train, test)`` loads these columns as if they had come from the hub."""
    monkeypatch.setenv("MERGELIB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MERGELIB_HUB_LOCK", str(tmp_path / "lock.json"))

    def load(
        task: str,
        train: dict,
        test: dict | None = None,
        *,
        features=None,
        check_rows: bool = False,
        **arguments,
    ):
        parts = [
            datasets.Dataset.from_dict(rows, features=features) for rows in (train, test or train)
        ]
        entries = hub.registry()
        if not check_rows:
            entries = {n: e.model_copy(update={"rows": None}) for n, e in entries.items()}
        monkeypatch.setattr(hub, "registry", lambda: entries)
        monkeypatch.setattr(hub, "_fetch", lambda name, entry, wanted: (parts, wanted or OLD))
        return hub.hub_splits(task, **arguments)

    return load


def test_registry():
    entries = hub.registry()
    assert tuple(entries) == TASK_NAMES
    for name, entry in entries.items():
        assert set(entry.splits) == {"train", "test"} and entry.text and entry.variants
        assert entry.revision is None, f"{name}: a revision belongs into the lock file"
        assert entry.card == f"https://huggingface.co/datasets/{entry.id}"
        assert "polarity" not in entry.id


def test_the_library_does_without_datasets():
    code = "import sys, mergelib.tasks.hub; sys.exit('datasets' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(hub.__file__).parents[2]).returncode
        == 0
    )


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["Title", "Content"], "Title Content"),
        ([" TY KU ", "  is\na company "], "TY KU is\na company"),
        (["", "only"], "only"),
        (["only", None], "only"),
        (["null", "NA"], "null NA"),
        ([None, " \t"], ""),
    ],
)
def test_join(parts, text):
    assert hub.join_parts(parts) == text


def test_yahoo_columns_in_order(fake):
    rows = {
        "best_answer": ["a", None],
        "topic": [9, 0],
        "question_content": ["", "q"],
        "question_title": ["t", "u"],
        "id": [0, 1],
    }
    _, train, _ = fake("yahoo", rows)
    assert train.inputs == ("t a", "u q") and train.labels.tolist() == [9, 0]


def test_missing_columns(fake):
    with pytest.raises(
        DataError, match=r"no column title.*Found: label, text; expected: label, title, content"
    ):
        fake("dbpedia", {"label": [0], "text": ["x"]})
    with pytest.raises(DataError, match="holds int64, not text"):
        fake("ag", {"label": [0], "text": [1]})


@pytest.mark.parametrize(
    ("task", "label", "problem"),
    [
        ("ag", 4, "run from 0 to 4, expected 0 to 3"),
        ("ag", -1, "run from -1 to 0"),
        ("amazon", 0, "run from 0 to 1, expected 1 to 5"),
        ("amazon", 6, "run from 1 to 6"),
    ],
)
def test_labels_outside_range(fake, tmp_path, task, label, problem):
    entry = hub.registry()[task]
    with pytest.raises(DataError, match=f"{problem}.*Known variants"):
        fake(task, {entry.label: [entry.first_label, label], **{c: ["x", "y"] for c in entry.text}})
    assert not (tmp_path / "lock.json").exists()


def test_labels_that_are_none_or_words(fake):
    with pytest.raises(DataError, match=r"1 rows of .* have no label"):
        fake("ag", {"label": [0, None], "text": ["x", "y"]})
    with pytest.raises(DataError, match="not integers"):
        fake("ag", {"label": ["World", "Sports"], "text": ["x", "y"]})
    assert fake("ag", {"label": ["0", "3"], "text": ["x", "y"]})[1].labels.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("yelp", ["1 star", "2 star", "3 stars", "4 stars", "5 stars"]),
        (
            "dbpedia",
            [
                "Company",
                "EducationalInstitution",
                "Artist",
                "Athlete",
                "OfficeHolder",
                "MeanOfTransportation",
                "Building",
                "NaturalPlace",
                "Village",
                "Animal",
                "Plant",
                "Album",
                "Film",
                "WrittenWork",
            ],
        ),
    ],
)
def test_class_names_as_the_cards_spell_them(fake, task, names):
    entry = hub.registry()[task]
    rows = {entry.label: [0, 4], **{c: ["x", "y"] for c in entry.text}}
    text = {c: datasets.Value("string") for c in entry.text}
    features = datasets.Features({entry.label: datasets.ClassLabel(names=names), **text})
    got, train, _ = fake(task, rows, features=features)
    assert got == LABEL_NAMES[task] and train.labels.tolist() == [0, 4]
    features[entry.label] = datasets.ClassLabel(names=names[::-1])
    with pytest.raises(DataError, match="expected, in this order"):
        fake(task, rows, features=features)


def test_rows_are_compared_with_the_card(fake, tmp_path):
    with pytest.raises(DataError, match=r"train has 2 rows, expected 120,000.*LAMOL.*hub\.yaml"):
        fake("ag", {"label": [0, 1], "text": ["x", "y"]}, check_rows=True)
    assert not (tmp_path / "lock.json").exists()


def test_changed_order_is_refused(fake, tmp_path):
    fake("ag", {"label": [0, 1], "text": ["x", "y"]})
    with pytest.raises(DataError, match="labels of train differ in value or order"):
        fake("ag", {"label": [1, 0], "text": ["y", "x"]})
    fake("yelp", {"label": [0, 1], "text": ["x", "y"]})
    assert list(json.loads((tmp_path / "lock.json").read_text())) == ["ag", "yelp"]


def test_lock_file_of_another_data_set_or_broken(fake, tmp_path):
    lock = tmp_path / "lock.json"
    rows = {"label": [0, 1], "text": ["x", "y"]}
    fake("ag", rows)
    lock.write_text(lock.read_text().replace(AG, "somebody/ag"))
    with pytest.raises(DataError, match=r"somebody/ag.*Delete the lock file's entry"):
        fake("ag", rows)
    for broken in ("{", "[]", '{"ag": {}}', '{"ag": 3}'):
        lock.write_text(broken)
        with pytest.raises(DataError, match="is no lock file"):
            fake("ag", rows)


def test_lock_file_that_cannot_be_written(fake, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="MERGELIB_HUB_LOCK"):
        fake("ag", {"label": [0], "text": ["x"]}, lock_path=tmp_path / "file" / "lock.json")


def test_subsample(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "BLOCK", 7)
    n = 400
    rows = {
        "label": [i % 4 for i in range(n)],
        "text": [f"text {i}" if i % 5 else " " for i in range(n)],
    }
    _, whole, _ = fake("ag", rows)
    assert len(whole) == 320 and whole.inputs[:2] == ("text 1", "text 2")
    _, train, test = fake("ag", rows, n_train=50, n_test=30)
    assert len(train) == 50 and len(test) == 30 and len(set(train.inputs)) == 50
    assert all(
        int(t.split()[1]) % 4 == y for t, y in zip(train.inputs, train.labels.tolist(), strict=True)
    )
    assert set(test.inputs) != set(train.inputs[:30]), "train and test use different permutations"
    _, more, _ = fake("ag", rows, n_train=60)
    assert more.inputs[:50] == train.inputs
    _, relabelled, _ = fake(
        "ag", {**rows, "label": [0] * n}, n_train=50, lock_path=tmp_path / "other.json"
    )
    assert relabelled.inputs == train.inputs, "which rows are drawn depends on no label"
    assert torch.equal(fake("ag", rows, n_train=10_000)[1].labels, whole.labels)


def test_no_text_at_all(fake):
    with pytest.raises(DataError, match=r"no row of .* has text in text"):
        fake("ag", {"label": [0, 1], "text": ["", None]})


def test_arguments():
    with pytest.raises(UnknownNameError, match="Nearest: 'yelp'"):
        hub.hub_splits("yelpp")
    with pytest.raises(DataError, match="n_train = 0"):
        hub.hub_splits("ag", n_train=0)


def test_speed_of_the_unreachable_is_not_bought_with_a_lasting_switch():
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(RuntimeError), hub._cache_only(True):
        assert datasets.config.HF_HUB_OFFLINE
        raise RuntimeError
    assert datasets.config.HF_HUB_OFFLINE == before
