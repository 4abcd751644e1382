"""Samples from the hub: the data step of `real` against a hub on the loopback, with the real
clients, and what can go wrong on the way."""

import csv
import errno
import io
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from loopback_hub import NEW, OLD, Client, folder_files, read, serving
from test_paper_hub import image_set
from test_released import SHAPE

from benchmarks.released import write_stand_in
from mergelib.core.errors import StoreError
from mergelib.core.hub import repository, sample
from mergelib.profiles import TASK_NAMES, load_profile
from mergelib.tasks.local import LABEL_NAMES

MAIN, TASK, BEGIN = (
    "mergelib.run.cli.main",
    "tests.paper_road.task",
    "tests.paper_road.begin",
)
BASE = "sentence-transformers/all-MiniLM-L6-v2"
N, GROUP = 6000, 20  # rows of a training split, and of its row groups
IMAGES = load_profile("real", variant="vision_a").tasks.names
SIZES = {"tasks.n_train": 150, "tasks.n_validation": 10, "tasks.n_test": 40}
MANY = SIZES | {"tasks.n_train": 900}  # enough for a few of each of 47 classes
REGISTRY = {
    name: {k: v for k, v in raw.items() if k != "revision"}
    for name, raw in yaml.safe_load(repository.REGISTRY.read_text()).items()
}
for raw in REGISTRY.values():
    raw.get("table", {}).pop("rows", None)


def split(name, n, sorted_by_class=False):
    """Texts that say their row, in the columns of a set's copy, and a column that nobody wants."""
    table, classes = REGISTRY[name]["table"], len(LABEL_NAMES[name])
    labels = [i * classes // n if sorted_by_class else i % classes for i in range(n)]
    texts = {
        c: [f'row {i} {c} of {name}\n"quoted", again' for i in range(n)] for c in table["text"]
    }
    unwanted = {"unwanted": [f"{i}" * 300 for i in range(n)]}
    return unwanted | texts | {table["label"]: [y + table["first_label"] for y in labels]}


def as_parquet(rows):
    pq.write_table(pa.table(rows), file := io.BytesIO(), row_group_size=GROUP, compression="none")
    return file.getvalue()


def as_csv(rows):
    writer = csv.writer(file := io.StringIO(), quoting=csv.QUOTE_ALL)
    writer.writerow(rows)
    writer.writerows(zip(*rows.values(), strict=True))
    return file.getvalue().encode()


def text_set(name):
    if name == "amazon":
        return {"train.csv": as_csv(split(name, 4 * N)), "test.csv": as_csv(split(name, 300))}
    train, cut = split(name, N, name == "dbpedia"), N // 3
    parts = {k: v[:cut] for k, v in train.items()}, {k: v[cut:] for k, v in train.items()}
    return {
        "README.md": b"# A card\n",
        "data/train-00000-of-00002.parquet": as_parquet(parts[0]),
        "data/train-00001-of-00002.parquet": as_parquet(parts[1]),
        "data/test-00000-of-00001.parquet": as_parquet(split(name, 300)),
    }


def bytes_of(files):
    return sum(
        len(read(content)) for path, content in files.items() if "-of-" in path or "csv" in path
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = tmp_path_factory.mktemp("published")
    write_stand_in(made, rows=4, k=1, max_length=16, shape=SHAPE)
    with serving() as server:
        for name in TASK_NAMES:
            server.repositories[REGISTRY[name]["id"]] = {OLD: text_set(name)}
        for name in IMAGES:
            files = image_set(name)
            if name in ("mnist", "svhn"):  # the folder of one of their configurations
                place = {"mnist": "mnist", "svhn": "cropped_digits"}[name]
                files = {path.replace("data/", f"{place}/"): file for path, file in files.items()}
            server.repositories[REGISTRY[name]["id"]] = {OLD: files}
        server.models[BASE] = {OLD: folder_files(made / "base")}
        yield server


@pytest.fixture
def user(server, tmp_path):
    """``user(**environment)`` starts a user's client; all share caches, lock file and registry."""
    file, clients = tmp_path / "registry.yaml", []
    file.write_text(yaml.safe_dump(REGISTRY))

    def start(**environment):
        registry = {"mergelib.core.hub.repository": file}
        clients.append(client := Client(tmp_path, server.url, registry, **environment))
        return lambda *given, **more: client(*given, lock=tmp_path / "lock.json", **more)

    yield start
    for client in clients:
        client.close()


@pytest.fixture
def ag(server):
    """The commits of one set, put back afterwards."""
    commits = server.repositories[REGISTRY["ag"]["id"]]
    before = dict(commits)
    yield commits
    server.cuts.clear()
    commits.clear()
    commits.update(before)


def pieces(folder):
    return sorted((folder / "home").rglob("train-*.parquet"))


def test_real_needs_one_command_and_then_no_network(server, user, tmp_path):
    online, offline = user(), user(HF_HUB_OFFLINE="1", MERGELIB_STORE=str(tmp_path / "other"))
    told = offline(MAIN, ["run", "--profile", "real"])
    assert told["value"] == 2 and "Connect once" in told["err"] and "--text-dir" in told["err"]
    things = f"real needs {len(TASK_NAMES) + len(IMAGES) + 1} things from the hub"
    told = offline(MAIN, ["doctor", "--profile", "real"])["out"]
    assert f"{things}, 0 cached" in told and "data fetch --profile real" in told
    begun = online(BEGIN, "real", MANY)
    assert begun["value"] is None and "Everything is cached" in begun["out"], begun
    said, got = begun["out"].split("to be downloaded: ")
    for name in (*TASK_NAMES, *IMAGES, "all-MiniLM-L6-v2"):
        licence = REGISTRY[name].get("licence", "unverified")
        assert f"; licence {licence}" in next(s for s in said.splitlines() if f"{name}: " in s)
        assert f"{name}: verified, commit {OLD}" in got
    server.asked.clear()
    again = offline(BEGIN, "real", MANY)
    assert again["value"] is None and not again["out"]
    for name in TASK_NAMES:
        task = offline(TASK, "real", name, MANY)["value"]
        assert task["source"] == "samples from the hub"
        assert task["names"] == list(LABEL_NAMES[name])
        assert [len(task[s]["labels"]) for s in ("train", "validation", "test")] == [900, 10, 40]
        seen = Counter(task["train"]["labels"])
        assert set(seen) == set(range(len(task["names"])))
        classes, n = len(task["names"]), {"amazon": 4 * N}.get(name, N)
        for text, label in zip(task["train"]["inputs"], task["train"]["labels"], strict=True):
            row = int(text.split()[1])  # a row keeps its label
            assert label == (row * classes // n if name == "dbpedia" else row % classes)
            assert text == " ".join(
                f'row {row} {c} of {name}\n"quoted", again' for c in REGISTRY[name]["table"]["text"]
            )
    for name in IMAGES:
        task = offline(TASK, "real", name, MANY, "vision_a")["value"]
        assert set(task["train"]["labels"]) == set(range(len(task["names"])))
    assert not server.asked
    checked = offline(MAIN, ["data", "check", "--profile", "real"])
    assert checked["value"] == 1, "the profile's own sizes are another sample"


def test_only_parts_of_the_files_are_downloaded(server, user, ag, tmp_path):
    server.ranges.clear()
    user()(TASK, "real", "ag", SIZES)
    whole = bytes_of(ag[OLD])
    spans = [asked.removeprefix("bytes=").split("-") for asked in server.ranges]
    files = max(len(content) for path, content in ag[OLD].items() if "train-" in path)
    took = sum(min(int(b), files) - int(a) for a, b in spans)
    assert took < whole / 3, "the footers of these small tables are large"
    assert not list((tmp_path / "home" / "hub").rglob("*.parquet"))
    assert len(pieces(tmp_path)) <= sample.PLACES < N / GROUP


def test_a_break_is_bridged(server, user, ag, tmp_path):
    whole = user()(TASK, "real", "ag", SIZES)["value"]
    server.cuts["data/train-00001-of-00002.parquet"] = [None] * 6 + [10]
    again = user(HF_HOME=str(tmp_path / "second"))(TASK, "real", "ag", SIZES)
    assert again["value"] == whole


def test_what_was_interrupted_continues_at_the_same_commit(server, user, ag, tmp_path):
    online = user()
    server.cuts["data/train-00001-of-00002.parquet"] = [None] * 12 + [0] * 20
    broken = online(TASK, "real", "ag", SIZES)
    assert broken["error"] == "OfflineError" and "complete files are kept" in broken["message"]
    first = {path.name: path.stat().st_mtime_ns for path in pieces(tmp_path)}
    assert 20 < len(first) < sample.PLACES
    server.cuts.clear()
    ag[NEW] = {"README.md": b"# Another set\n"}  # the hub moves on
    server.ranges.clear()
    assert "value" in online(TASK, "real", "ag", SIZES)
    assert len(server.ranges) < 2 * sample.PLACES - len(first) + 8
    now = {path.name: path.stat().st_mtime_ns for path in pieces(tmp_path)}
    assert first.items() <= now.items() and len(now) > len(first)
    # A commit that is gone: what is kept serves, what is not is refused.
    ag.pop(OLD)
    assert "value" in online(TASK, "real", "ag", SIZES)
    pieces(tmp_path)[3].unlink()
    gone = online(TASK, "real", "ag", SIZES)
    assert gone["error"] == "DataError" and "revision no longer exists" in gone["message"], gone


def test_a_damaged_piece_is_found_and_read_again(server, user, ag, tmp_path):
    online, offline = user(), user(HF_HUB_OFFLINE="1")
    task = online(TASK, "real", "ag", SIZES)["value"]
    pieces(tmp_path)[0].write_bytes(b"")
    assert offline(TASK, "real", "ag", SIZES)["error"] == "OfflineError"
    assert online(TASK, "real", "ag", SIZES)["value"] == task
    assert offline(TASK, "real", "ag", SIZES)["value"] == task


@pytest.mark.parametrize(
    "files, says",
    [
        ({"README.md": b"#"}, "no file of train"),
        ({"train.csv.gz": b"1", "test.csv.gz": b"1"}, "no file of train"),
        ({"train.csv": b"a,b\n1,2\n", "test.csv": b"a,b\n1,2\n"}, "no column label"),
        ({"train.csv": b"label,text\n1,a,b\n", "test.csv": b"1"}, "cannot be read"),
        ({"train.parquet": b"<html>", "test.parquet": b"<html>"}, "ag"),
        ({"train.parquet": as_parquet({"text": [], "label": []})}, "0 rows of train"),
    ],
)
def test_sets_that_cannot_be_sampled(user, ag, files, says):
    ag[NEW] = files
    refused = user()(TASK, "real", "ag", SIZES)
    assert refused["error"] == "DataError" and says in refused["message"], refused


# --- without a client -----------------------------------------------------------------------------


def test_no_room(monkeypatch, tmp_path):
    """Pieces written so far stay; the remedy is the cache's."""
    (tmp_path / "train.parquet").write_bytes(as_parquet(split("ag", 60)))
    asked = repository.Repository(
        **REGISTRY["ag"] | {"name": "ag", "sample": (30, 5)},
    )
    plan = {
        f"train-{g}-of-3": {"file": "train.parquet", "place": g, "rows": [1, 5], "bytes": 9}
        for g in range(3)
    }

    @contextmanager
    def opened(*_):
        with (tmp_path / "train.parquet").open("rb") as f:
            yield f

    monkeypatch.setattr(sample.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(sample.Sample, "_planned", lambda _: plan)
    monkeypatch.setattr(sample.Sample, "_opened", opened)
    drawn = sample.Sample(asked, OLD)
    drawn.folder.mkdir(parents=True)
    true, wrote = Path.write_bytes, []

    def full(path, content):
        wrote.append(path)
        if len(wrote) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"'ag'.*HF_HOME"):
        drawn.fetch()
    assert len(pieces(tmp_path)) == 1
    drawn.fetch()
    assert len(pieces(tmp_path)) == 3 and len(wrote) == 4


@pytest.mark.parametrize("n", [1, 100, 5000, 10**9])
@pytest.mark.parametrize("sizes", [[10], [1000] * 700, [3, 0, 500, 20] * 100, [100] * 38])
def test_places_hold_enough_rows_and_are_spread(sizes, n):
    """Against a count: of any tenth of all rows, about a tenth is read."""
    chosen = sample.places(sizes, [range(0)] * len(sizes), n, seed=3)
    rows = sum(sizes[g] for g in chosen)
    assert chosen == sorted(set(chosen)) and rows >= min(n, sum(sizes))
    if len(chosen) >= sample.PLACES:
        tenth = len(sizes) // 10
        for i in range(10):
            share = sum(sizes[g] for g in chosen if i * tenth <= g < (i + 1) * tenth) / rows
            assert 0.05 < share < 0.15
    if n == 1 and len(sizes) > 2 * sample.PLACES and len(set(sizes)) == 1:
        assert len(chosen) == sample.PLACES


def test_no_class_of_a_sorted_file_is_lost():
    """Classes of one group each, which even places would miss; mixed groups add nothing."""
    sizes, few = [100] * 1000, {17: 5, 500: 6, 999: 7}
    labels = [few.get(g, g % 5) for g in range(1000)]
    classes = [range(label, label + 1) for label in labels]
    assert set(few) <= set(sample.places(sizes, classes, 1, seed=0))
    mixed = sample.places(sizes, [range(8)] * 1000, 1, seed=0)
    assert mixed == sample.places(sizes, [range(0)] * 1000, 1, seed=0)


def test_rows_of_a_block_are_rows_of_the_file():
    """From every byte on, against the csv module on the whole file: texts with line ends, quotes,
    commas, numbers that look like labels, and letters of several bytes."""
    rows = [
        ["1", "a\n2,x,y", "é"],
        ["2", "", 'so "so"\n3,"z",w'],
        ["3", "日本", "line\r\nline"],
        ["4", 'a\n"quoted", again', "as many commas"],
    ] * 4
    writer = csv.writer(file := io.StringIO(), quoting=csv.QUOTE_ALL)
    writer.writerows([["class", "title", "text"], *rows])
    whole = file.getvalue().encode()
    assert sample.rows_of_block(whole, 3, 0, first=True, last=True) == rows
    for begin in range(len(whole)):
        found = sample.rows_of_block(whole[begin:], 3, 0, first=False, last=True)
        assert found is None or found == rows[len(rows) - len(found) :]
        assert found or begin > len(whole) - 80
    cut = sample.rows_of_block(whole[: len(whole) // 2], 3, 0, first=True, last=False)
    assert cut == rows[: len(cut)] and len(cut) > 3


def test_local_folders_win():
    hub, local = load_profile("real"), load_profile("real", {"tasks.source": "local"})
    assert hub.tasks.sample == (4200, 700) and local.tasks.sample is None
    local = load_profile("real", {"tasks.source": "local"}, "vision_a")
    assert "fashion_mnist" in local.tasks.names and "Fashion-MNIST" in local.note
