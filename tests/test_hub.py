"""The hub: real clients against a hub on the loopback, and what can go wrong on the way."""

import errno
import json
from contextlib import closing
from pathlib import Path

import loopback_hub
import pytest
import yaml
from loopback_hub import NEW, OLD, PAGE, Client, closed_endpoint, serving, table_repository
from tiny import write_berts

from mergelib.core.errors import DataError, StoreError
from mergelib.core.hub import download, lock, locked_revision, registry, repository
from mergelib.core.hub.errors import said, translated
from mergelib.core.hub.repository import Repository
from mergelib.core.hub.whole import WholeFiles

SPLITS = "mergelib.tasks.hub.hub_splits"
BEGIN = "tests.paper_road.begin", "quick", {"encoder.base": "org/tiny"}
# In two pieces: a test looks for whole ones in every committed file.
TOKEN = "hf_" + "plantedPLANTEDplanted0123456789"
BYTES = bytes(range(256)) * 4096  # 1 MiB that compresses to nothing known
AG = "fancyzhx/ag_news"
ROWS = {"text": ["war", " ball \n", "", "stock", "chip"], "label": [0, 1, 1, 2, 3]}
TEST_ROWS = {"text": ["goal", "bank"], "label": [1, 2]}


def entry(id, *files, kind="model", **more):
    """One repository of a registry, its files given as key=path."""
    named = dict(file.split("=") for file in files)
    return {"id": id, "kind": kind, "files": named or "transformers", **more}


REGISTRY = {
    "checkpoints": entry("org/both", "ag=ag.pth", "yelp=yelp.pth"),
    "data": entry("org/both", "ag/train=ag/train.csv", kind="dataset"),
    "moves": entry("org/moves", "one=one.pth", "two=two.csv"),
    "cut": entry("org/cut", "weights=cut.pth"),
    "dead": entry("org/dead", "first=first.pth", "weights=dead.pth"),
    "large": entry("org/wrong", "large=large.pth"),
    "small": entry("org/wrong", "small=small.csv"),
    "none": entry("org/holes", "none=none.pth"),
    "two": entry("org/holes", "two=ag.pth"),
    "lost": entry("org/holes", "lost=lost.pth"),
    "missing": entry("org/missing", "ag=ag.pth"),
    "gone": entry("org/moves", "one=one.pth", revision="c" * 40),
    "gated": entry("org/gated", "ag=ag.pth"),
    "away": entry("org/away", "ag=ag.pth"),
    "hurt": entry("org/hurt", "ag=ag.pth"),
    "tiny": entry("org/tiny"),
}


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        server.models["org/both"] = {
            OLD: {"checkpoints/ag.pth": BYTES, "checkpoints/yelp.pth": BYTES[::-1], "a.md": b"#"}
        }
        server.repositories["org/both"] = {OLD: {"csv/ag/train.csv": b'"1","","war"\n'}}
        server.models["org/moves"] = {OLD: {"one.pth": b"old one", "two.csv": b"old two"}}
        server.models["org/hurt"] = {OLD: {"ag.pth": BYTES}}
        server.models["org/away"] = {OLD: {"ag.pth": BYTES}}
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


def make_client(folder, endpoint, **environment):
    file, entries = folder / "registry.yaml", yaml.safe_load(repository.REGISTRY.read_text())
    for raw in entries.values():
        raw.get("table", {}).pop("rows", None)  # ours have five
        raw.pop("revision", None)
    file.write_text(yaml.safe_dump(entries | REGISTRY))
    return Client(folder, endpoint, {"mergelib.core.hub.repository": file}, **environment)


@pytest.fixture(scope="module")
def client(server, folder):
    with closing(make_client(folder, server.url, HF_TOKEN=TOKEN)) as client:
        yield client


@pytest.fixture(scope="module")
def offline(server, folder):
    """The same caches, without network."""
    with closing(make_client(folder, server.url, HF_HUB_OFFLINE="1")) as client:
        yield client


@pytest.fixture(scope="module")
def locks(folder):
    return folder / "lock.json"


@pytest.fixture(scope="module")
def fetch(client, locks):
    """``fetch(name)``: the paths and bytes of each file of a repository, or the error."""

    def ask(name, client=client, lock=locks):
        answer = client("tests.paper_road.fetched", name, lock=lock)
        files = answer.get("value", {})
        return answer | {"bytes": {key: Path(path).read_bytes() for key, path in files.items()}}

    return ask


def cached(folder, id):
    """Names of the files that the client's cache shows of a repository."""
    top = folder / "home" / "hub" / f"models--{id.replace('/', '--')}" / "snapshots"
    return sorted(p.name for p in top.rglob("*") if p.is_file())


def refused(answer, kind, *parts):
    assert answer.get("error") == kind and answer["seconds"] < 120, answer
    for part in parts:
        assert part in answer["message"], answer["message"]


def test_first_fetch_locks_a_commit_and_then_asks_nobody(fetch, server, locks, folder):
    got = fetch("checkpoints")
    assert got["bytes"] == {"ag": BYTES, "yelp": BYTES[::-1]}
    assert Path(got["value"]["ag"]).is_relative_to(folder / "home")
    assert json.loads(locks.read_text()) == {"checkpoints": {"id": "org/both", "revision": OLD}}
    # The data set of the same id is another repository.
    assert fetch("data")["bytes"] == {"ag/train": b'"1","","war"\n'}
    server.asked.clear()
    assert fetch("checkpoints")["bytes"]["yelp"] == BYTES[::-1]
    assert not server.asked
    assert cached(folder, "org/both") == ["ag.pth", "yelp.pth"]


def test_a_lock_pins_the_commit(fetch, server, tmp_path):
    assert fetch("moves")["bytes"]["one"] == b"old one"
    server.models["org/moves"][NEW] = {"one.pth": b"new one", "two.csv": b"new two"}
    assert fetch("moves")["bytes"]["two"] == b"old two"
    assert fetch("moves", lock=tmp_path / "lock.json")["bytes"]["two"] == b"new two"


def test_a_cut_connection_is_taken_up_where_it_broke(fetch, server):
    """In whole pieces of 10 MiB: that is what this client writes at a time."""
    content, piece = BYTES * 22, 10 << 20
    server.models["org/cut"] = {OLD: {"cut.pth": content}}
    server.cuts["cut.pth"] = [piece + 300_000]
    server.ranges.clear()
    assert fetch("cut")["bytes"] == {"weights": content}
    assert server.ranges == [f"bytes={piece}-"]


def test_a_dead_connection_keeps_whole_files_and_the_commit(fetch, server, folder):
    server.models["org/dead"] = {OLD: {"first.pth": b"first", "dead.pth": BYTES}}
    server.cuts["dead.pth"] = [0] * 20
    answer = fetch("dead")
    refused(answer, "OfflineError", "complete files are kept")
    assert cached(folder, "org/dead") == ["first.pth"]
    del server.cuts["dead.pth"]
    server.models["org/dead"][NEW] = {"first.pth": b"other", "dead.pth": b"other"}
    server.asked.clear()
    assert fetch("dead")["bytes"] == {"weights": BYTES, "first": b"first"}
    assert not any("first.pth" in path for path in server.asked)


@pytest.mark.parametrize("name", ["large", "small"])
def test_other_bytes_of_the_same_length_are_deleted(fetch, server, folder, name):
    content = {"large.pth": BYTES, "small.csv": b"1,,text\n"}
    server.models["org/wrong"] = {OLD: content}
    (path,) = (p for p in content if p.startswith(name))
    server.swaps[path] = content[path][::-1]
    refused(fetch(name), "DataError", name, "org/wrong", OLD, "deleted")
    assert path not in cached(folder, "org/wrong")
    del server.swaps[path]
    assert fetch(name)["bytes"] == {name: content[path]}


def test_what_is_missing(fetch, server):
    server.models["org/holes"] = {
        OLD: {"x/ag.pth": b"1", "y/ag.pth": b"2", "bag.pth": b"3", "lost.pth": b"4"}
    }
    server.lost.add("lost.pth")
    for name, part in (
        ("none", "no file none.pth"),
        ("two", "2 files x/ag.pth, y/ag.pth that end in ag.pth"),
        ("lost", "lists a file that it does not have"),
        ("missing", "no such repository"),
        ("gone", "revision no longer exists"),
    ):
        refused(fetch(name), "DataError", part)


@pytest.mark.parametrize(
    "status, part", [(200, "does not come from the hub"), (404, "404"), (503, "503")]
)
def test_a_page_in_place_of_the_hub(fetch, server, locks, status, part):
    server.pages["org/away"] = status
    refused(fetch("away"), "OfflineError", part)
    assert "away" not in json.loads(locks.read_text())


def test_a_token_is_neither_told_nor_given_to_the_storage(fetch, client, server, locks):
    server.gated.add("org/gated")
    server.authorized.clear()
    answer = fetch("gated")
    refused(answer, "DataError", "hf auth login")
    assert any("org/gated" in path for path in server.authorized), "the hub did get the token"
    told = client.run("data fetch gated checkpoints", locks)
    assert told["value"] == 1 and "Not fetched: gated" in told["err"]
    assert "checkpoints: verified" in told["out"]
    for text in (answer["message"], told["out"], told["err"]):
        assert TOKEN not in text and "planted" not in text
    assert not any(path.startswith("/storage/") for path in server.authorized)


def test_the_cache_serves_offline(fetch, offline, tmp_path):
    fetch("checkpoints")
    assert fetch("checkpoints", offline)["bytes"]["ag"] == BYTES
    # Caches on a machine without the lock file: the newest commit that was seen is in them.
    assert fetch("checkpoints", offline, tmp_path / "lock.json")["bytes"]["ag"] == BYTES
    refused(fetch("away", offline), "OfflineError", "HF_HUB_OFFLINE", "data fetch")


def test_a_damaged_copy(fetch, offline, locks):
    blob = Path(fetch("hurt")["value"]["ag"]).resolve()
    blob.write_bytes(BYTES[:-1] + b"?")
    refused(fetch("hurt", offline), "OfflineError", "damaged")
    checked = offline.run("data check hurt checkpoints", locks)
    assert checked["value"] == 1 and "checkpoints: 2 files agree" in checked["out"]
    assert "hurt: NOT as fetched\n  ag: its bytes" in checked["out"]
    assert fetch("hurt")["bytes"]["ag"] == BYTES, "fetching again mends it"
    assert offline.run("data check hurt", locks)["value"] == 0


def test_nobody_listens(fetch, tmp_path):
    with closing(make_client(tmp_path, closed_endpoint())) as alone:
        answer = fetch("data", alone, tmp_path / "l.json")
    refused(answer, "OfflineError", "cannot be reached")


def test_ahead_of_a_run(client, offline, server, tmp_path):
    server.repositories[AG] = {OLD: table_repository(ROWS, TEST_ROWS)}
    lock_file = tmp_path / "lock.json"
    fresh = client.run("data list ag", lock_file)["out"]
    assert fresh.startswith("ag: not cached") and "NIPS 2015" in fresh
    assert "revision  unverified" in fresh
    fetched = client.run("data fetch ag", lock_file)
    files = server.repositories[AG][OLD].items()
    tables = {p: content for p, content in files if p.endswith(".parquet")}
    size = f"{sum(map(len, tables.values())) / 1e3:.2f} kB"
    assert fetched["out"].splitlines()[0] == (
        f"ag: 2 files, {size}, of which {size} to be downloaded; licence unknown"
    )
    assert f"ag: verified, commit {OLD}" in fetched["out"] and fetched["value"] == 0
    listed = offline.run("data list ag", lock_file)["out"]
    assert listed.startswith("ag: cached") and OLD in listed
    assert all(loopback_hub.sha256(content) in listed for content in tables.values())
    # The hub moves on; who has the lock file stays.
    server.repositories[AG][NEW] = table_repository({**ROWS, "label": [3, 1, 1, 2, 0]}, ROWS)
    got = offline(SPLITS, "ag", lock=lock_file)["value"]
    assert got == {
        "names": ["World", "Sports", "Business", "Sci/Tech"],
        "train": ["war", "ball", "stock", "chip"],
        "labels": [0, 1, 2, 3],
        "test": ["goal", "bank"],
    }
    assert client(SPLITS, "ag", lock=lock_file)["value"] == got
    newest = client(SPLITS, "ag", lock=tmp_path / "other.json")["value"]
    assert newest["labels"] == [3, 1, 2, 0]


def test_csv_with_labels_from_one(client, server, tmp_path):
    csv = (
        b'class_index,review_title,review_text\n5,"Great","Loved, it"\n'
        b'1,,Broke\n3,"So ""so""",okay\n'
    )
    server.repositories[registry()["amazon"].id] = {OLD: {"train.csv": csv, "test.csv": csv}}
    answer = client(SPLITS, "amazon", lock=tmp_path / "lock.json")["value"]
    assert answer["train"] == ["Great Loved, it", "Broke", 'So "so" okay']
    assert answer["labels"] == [4, 0, 2]


ONE = {"label": [0], "title": ["t"], "content": ["c"]}
SPLIT_LACKS = table_repository(ONE, ONE) | {"data/test-00000-of-00001.parquet": PAGE}
OTHER_KINDS = {"train.json": b'{"topic": 1}', "test.json": b'{"topic": 1}'}


@pytest.mark.parametrize(
    "name, files, says",
    [
        ("yahoo", {"README.md": b"#", "yahoo_answers_topics.py": b"raise SystemExit"}, "no file"),
        ("yahoo", OTHER_KINDS, "has no file"),
        ("dbpedia", SPLIT_LACKS, "a test split that cannot be read"),
    ],
    ids=["code", "other kinds", "an error page in place of a file"],
)
def test_only_tables_and_no_code(client, server, tmp_path, name, files, says):
    id = registry()[name].id
    server.repositories[id] = {OLD: files}
    answer = client(SPLITS, name, lock=tmp_path / "lock.json")
    refused(answer, "DataError", id, says)


def test_never_fetched_and_unknown(offline, tmp_path):
    lock = tmp_path / "lock.json"
    checked = offline.run("data check checkpoints yelp", lock)
    assert checked["value"] == 1 and checked["out"].count("never fetched") == 2
    fetched = offline.run("data fetch away", lock)
    assert fetched["value"] == 1 and "Not fetched: away" in fetched["err"]
    unknown = offline.run("data list chekpoints", lock)
    assert unknown["value"] == 2 and "Nearest: 'checkpoints'" in unknown["err"]
    nothing = offline.run("data check --profile mini", lock)
    assert "needs nothing from the hub" in nothing["out"]


def test_a_base_model_ahead_of_a_run(client, offline, server, tmp_path):
    """Fetched, then loaded without network, at the commit and as transformers looks for it."""
    made = write_berts(tmp_path, {}) / "base"
    others = {"flax_model.msgpack": BYTES, "onnx/config.json": b"{}"}
    server.models["org/tiny"] = {OLD: {**loopback_hub.folder_files(made), **others}}
    lock_file = tmp_path / "lock.json"
    begun = client(*BEGIN, lock=lock_file)
    assert "tiny: verified" in begun["out"], begun
    server.asked.clear()
    assert client(*BEGIN, lock=lock_file)["out"] == "" and not server.asked, "once"
    files = {p.name for p in (tmp_path.parent).rglob("snapshots/*/*") if "tiny" in str(p)}
    assert not files & {"flax_model.msgpack", "onnx"}
    for revision in (OLD, None):
        answer = offline("mergelib.encoders.load_base", "org/tiny", 16, revision, lock=lock_file)
        assert "value" in answer and "TextEncoder" in answer["value"][0], answer
    assert offline("mergelib.core.hub.locked_revision", "org/tiny", lock=lock_file)["value"] == OLD


# --- without a client ---------------------------------------------------------------------------


@pytest.fixture
def lock_file(monkeypatch, tmp_path):
    monkeypatch.setenv("MERGELIB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MERGELIB_HUB_LOCK", str(tmp_path / "lock.json"))
    return tmp_path / "lock.json"


def test_lock_file(lock_file, tmp_path, monkeypatch):
    t5 = registry()["t5-base"]
    assert locked_revision(t5.id) is None
    lock.lock(t5, OLD)
    lock.lock(registry()["ag"], NEW)
    assert locked_revision(t5.id) == OLD and locked_revision("bert-base-uncased") is None
    with pytest.raises(DataError, match=r"google-t5/t5-base at a+, but somebody/t5"):
        lock.locked(t5.model_copy(update={"id": "somebody/t5"}))
    for broken in ("{", "[]", '{"ag": {}}', '{"ag": 3}', '{"ag": {"id": "x", "revision": "main"}}'):
        lock_file.write_text(broken)
        with pytest.raises(DataError, match="is not a lock file"):
            lock.locked(t5)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MERGELIB_HUB_LOCK", str(tmp_path / "file" / "lock.json"))
    with pytest.raises((StoreError, DataError), match=r"MERGELIB_HUB_LOCK|lock file"):
        lock.lock(t5, OLD)


def test_no_room(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    download.check_room(10**9, tmp_path / "not" / "yet")
    with pytest.raises(
        StoreError, match=r"'data fetch' needs 3\.00 GB more and .* 1\.00 GB.*HF_HOME"
    ):
        download.check_room(3 * 10**9, tmp_path / "not" / "yet")
    full = OSError(errno.ENOSPC, "No space left on device")
    told = translated(Repository(name="a", id="org/a", kind="model", files=()), OLD, full)
    assert isinstance(told, StoreError) and "org/a" in str(told) and "HF_HOME" in str(told)


def test_git_hash_is_gits(tmp_path):
    name = "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object` says so
    (tmp_path / name).write_bytes(b"hello\n")
    assert not WholeFiles.damaged(tmp_path / name)
    (tmp_path / name).write_bytes(b"hallo\n")
    assert WholeFiles.damaged(tmp_path / name)


@pytest.mark.parametrize(
    "secret", [f"Bearer {TOKEN}", TOKEN, "own-secret", "https://a.b/c?Sig=abc"]
)
def test_secrets_are_not_repeated(monkeypatch, secret):
    monkeypatch.setenv("HF_TOKEN", "own-secret")
    text = said(ValueError(f"could not do\n it with '{secret}' here"))
    assert text.startswith("ValueError: could not do it") and text.endswith("here")
    assert not any(part in text for part in (TOKEN, "own-secret", "Sig", "abc"))
