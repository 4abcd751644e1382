"""Files of repositories: the real client against a hub on the loopback, what can go wrong on the way, the lock file, the command line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import loopback_hub
import pytest
import torch
import yaml
from loopback_hub import NEW, OLD, PAGE, Client, closed_endpoint, serving, sha256, table_repository

from mergelib.errors import DataError, StoreError, UnknownNameError
from mergelib.hub import files, lock, locked_revision
from mergelib.hub.client import said
from mergelib.hub.sources import named, needed
from mergelib.profiles import TASK_NAMES, load_profile, variant_names
from mergelib.tasks import hub as data_sets

FETCH, ONE, MAIN = "mergelib.hub.fetch_files", "mergelib.hub.fetch_file", "mergelib.cli.main"
BEGIN = "tests.paper_road.begin", "quick", {"encoder.base": "org/tiny"}
TOKEN = (
    "hf_" + "plantedPLANTEDplanted0123456789"
)  # in two pieces: a test looks for whole ones in every committed file
BYTES = bytes(range(256)) * 4096  # 1 MiB that compresses to nothing known
ROWS = {"text": ["war", "ball", "", "stock", "chip"], "label": [0, 1, 1, 2, 3]}


def entry(id: str, kind: str = "model", **more) -> dict:
    """One repository of a registry, its files given as key=path."""
    own = {k: more.pop(k) for k in ("revision", "card", "licence") if k in more}
    made = {
        key.replace("__", "/"): value if isinstance(value, dict) else {"path": value}
        for key, value in more.items()
    }
    return {
        "id": id,
        "kind": kind,
        "card": None,
        "revision": None,
        "files": made or "transformers",
        "licence": None,
        "citation": None,
        **own,
    }


REGISTRY = {
    "checkpoints": entry("org/both", ag="ag.pth", yelp="yelp.pth"),
    "data": entry("org/both", "dataset", ag__train="ag/train.csv", ag__test="ag/test.csv"),
    "moves": entry("org/moves", one="one.pth", two="two.csv"),
    "cut": entry("org/cut", weights="cut.pth"),
    "dead": entry("org/dead", first="first.pth", weights="dead.pth"),
    "wrong": entry("org/wrong", large="large.pth", small="small.csv"),
    "page": entry("org/page", page="page.csv", short="short.pth", pointer="pointer.pth"),
    "named": entry(
        "org/named",
        size={"path": "a.csv", "size": 3},
        sha={"path": "b.csv", "sha256": "0" * 64},
        good={"path": "b.csv", "size": 5},
    ),
    "holes": entry("org/holes", none="none.pth", two="ag.pth", lost="lost.pth"),
    "missing": entry("org/missing", ag="ag.pth", card="https://example.org/card"),
    "gone": entry("org/moves", one="one.pth", revision="c" * 40),
    "gated": entry("org/gated", ag="ag.pth"),
    "away": entry("org/away", ag="ag.pth"),
    "hurt": entry("org/hurt", ag="ag.pth"),
    "tiny": entry("org/tiny"),
}


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        server.models["org/both"] = {
            OLD: {
                "checkpoints/ag.pth": BYTES,
                "checkpoints/yelp.pth": BYTES[::-1],
                "README.md": b"# A card\n",
            }
        }
        server.repositories["org/both"] = {
            OLD: {"csv/ag/train.csv": b'"1","","war"\n', "csv/ag/test.csv": b'"2","","ball"\n'}
        }
        server.models["org/moves"] = {OLD: {"one.pth": b"old one", "two.csv": b"old two"}}
        server.models["org/hurt"] = {OLD: {"ag.pth": BYTES}}
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub-files")


def make_client(folder: Path, endpoint: str, **environment: str) -> Client:
    registry, tables = folder / "files.yaml", folder / "hub.yaml"
    registry.write_text(yaml.safe_dump(REGISTRY))
    entries = yaml.safe_load(data_sets.REGISTRY.read_text())
    tables.write_text(yaml.safe_dump({name: {**e, "rows": None} for name, e in entries.items()}))
    return Client(
        folder,
        endpoint,
        {"mergelib.hub.files": registry, "mergelib.tasks.hub": tables},
        **environment,
    )


@pytest.fixture(scope="module")
def client(server, folder):
    client = make_client(folder, server.url, HF_TOKEN=TOKEN)
    yield client
    client.close()


@pytest.fixture(scope="module")
def offline(server, folder):
    """The same caches, without network."""
    client = make_client(folder, server.url, HF_HUB_OFFLINE="1")
    yield client
    client.close()


@pytest.fixture(scope="module")
def locks(folder) -> Path:
    return folder / "lock.json"


def cached(folder: Path, id: str, kind: str = "models") -> list[str]:
    """Names of the files that the client's cache shows of a repository."""
    return sorted(
        p.name
        for p in (folder / "home" / "hub" / f"{kind}--{id.replace('/', '--')}" / "snapshots").rglob(
            "*"
        )
        if p.is_file()
    )


class TestFetch:
    def test_first_fetch_verifies_and_locks(self, client, server, locks, folder):
        got = client(FETCH, "checkpoints", lock=locks)["value"]
        assert (
            Path(got["ag"]).read_bytes() == BYTES and Path(got["yelp"]).read_bytes() == BYTES[::-1]
        )
        assert Path(got["ag"]).is_relative_to(folder / "home")
        locked = json.loads(locks.read_text())["checkpoints"]
        assert locked == {
            "id": "org/both",
            "revision": OLD,
            "files": {
                "ag": {"path": "checkpoints/ag.pth", "size": len(BYTES), "sha256": sha256(BYTES)},
                "yelp": {
                    "path": "checkpoints/yelp.pth",
                    "size": len(BYTES),
                    "sha256": sha256(BYTES[::-1]),
                },
            },
        }
        # The data set repository of the same id is another repository.
        one = Path(client(ONE, "data/ag/train", lock=locks)["value"])
        assert one.read_bytes() == b'"1","","war"\n' and set(
            json.loads(locks.read_text())["data"]["files"]
        ) == {"ag/train"}

    def test_what_is_locked_and_cached_needs_no_request(self, client, server, locks):
        client(FETCH, "checkpoints", lock=locks)
        before = locks.read_bytes()
        server.asked.clear()
        assert (
            Path(client(ONE, "checkpoints/yelp", lock=locks)["value"]).read_bytes() == BYTES[::-1]
        )
        assert not server.asked and locks.read_bytes() == before

    def test_a_lock_pins_the_commit(self, client, server, locks, tmp_path):
        assert Path(client(ONE, "moves/one", lock=locks)["value"]).read_bytes() == b"old one"
        server.models["org/moves"][NEW] = {"one.pth": b"new one", "two.csv": b"new two"}
        assert Path(client(ONE, "moves/two", lock=locks)["value"]).read_bytes() == b"old two"
        assert (
            Path(client(ONE, "moves/two", lock=tmp_path / "lock.json")["value"]).read_bytes()
            == b"new two"
        )
        assert json.loads(locks.read_text())["moves"]["revision"] == OLD

    def test_a_cut_connection_is_taken_up_where_it_broke(self, client, server, locks):
        """In whole pieces of 10 MiB: that is what this client writes at a time."""
        content, piece = BYTES * 22, 10 << 20
        server.models["org/cut"] = {OLD: {"cut.pth": content}}
        server.cuts["cut.pth"] = [piece + 300_000]
        server.ranges.clear()
        assert Path(client(ONE, "cut/weights", lock=locks)["value"]).read_bytes() == content
        assert server.ranges == [f"bytes={piece}-"]

    def test_a_dead_connection_keeps_whole_files_and_the_commit(
        self, client, server, locks, folder
    ):
        server.models["org/dead"] = {OLD: {"first.pth": b"first", "dead.pth": BYTES}}
        server.cuts["dead.pth"] = [0] * 20
        answer = client(FETCH, "dead", lock=locks)
        assert (
            answer["error"] == "OfflineError"
            and "files that were complete are kept" in answer["message"]
            and answer["seconds"] < 30
        )
        assert cached(folder, "org/dead") == ["first.pth"] and not list(
            (folder / "home").rglob("*.incomplete")
        )
        del server.cuts["dead.pth"]
        server.models["org/dead"][NEW] = {"first.pth": b"other", "dead.pth": b"other"}
        server.asked.clear()
        got = client(FETCH, "dead", lock=locks)["value"]
        assert (
            Path(got["weights"]).read_bytes() == BYTES
            and Path(got["first"]).read_bytes() == b"first"
        )
        assert not any("first.pth" in path for path in server.asked)

    @pytest.mark.parametrize(("key", "path"), [("large", "large.pth"), ("small", "small.csv")])
    def test_other_bytes_of_the_same_length_are_refused_and_deleted(
        self, client, server, locks, folder, key, path
    ):
        content = {"large.pth": BYTES, "small.csv": b"1,,text\n"}
        server.models["org/wrong"] = {OLD: content}
        server.swaps[path] = content[path][::-1]
        answer = client(ONE, f"wrong/{key}", lock=locks)
        assert answer["error"] == "DataError"
        for part in (f"wrong/{key}", "org/wrong", OLD, "the hub lists", "deleted"):
            assert part in answer["message"]
        assert path not in cached(folder, "org/wrong") and key not in json.loads(locks.read_text())[
            "wrong"
        ].get("files", {})
        del server.swaps[path]
        assert Path(client(ONE, f"wrong/{key}", lock=locks)["value"]).read_bytes() == content[path]

    def test_pages_and_pointers_are_no_files(self, client, server, locks, folder):
        server.models["org/page"] = {
            OLD: {
                "page.csv": b"\n" + PAGE,
                "short.pth": BYTES,
                "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
            }
        }
        server.swaps["short.pth"] = PAGE  # a proxy's page in the place of the download
        for key, part in (("page", "web page"), ("short", "as long as"), ("pointer", "pointer")):
            answer = client(ONE, f"page/{key}", lock=locks)
            assert answer["error"] == "DataError" and part in answer["message"], answer
        assert not cached(folder, "org/page")

    def test_size_and_hash_of_the_registry(self, client, server, locks):
        server.models["org/named"] = {OLD: {"a.csv": b"1234", "b.csv": b"12345"}}
        for key, part in (
            ("size", "4 bytes, files.yaml says 3"),
            ("sha", "files.yaml says 000000000000"),
        ):
            answer = client(ONE, f"named/{key}", lock=locks)
            assert answer["error"] == "DataError" and part in answer["message"], answer
        assert Path(client(ONE, "named/good", lock=locks)["value"]).read_bytes() == b"12345"

    def test_hash_of_the_lock_file(self, client, server, locks, tmp_path):
        locked = json.loads(locks.read_text())["checkpoints"]
        locked["files"]["ag"]["sha256"] = "0" * 64
        (tmp_path / "lock.json").write_text(json.dumps({"checkpoints": locked}))
        answer = client(ONE, "checkpoints/ag", lock=tmp_path / "lock.json")
        assert (
            answer["error"] == "DataError" and "the lock file has 000000000000" in answer["message"]
        )

    def test_missing_files(self, client, server, locks):
        server.models["org/holes"] = {
            OLD: {"x/ag.pth": b"1", "y/ag.pth": b"2", "bag.pth": b"3", "lost.pth": b"4"}
        }
        server.lost.add("lost.pth")
        for key, part in (
            ("none", "no file none.pth"),
            ("two", "2 files x/ag.pth, y/ag.pth that end in ag.pth"),
            ("lost", "has no lost.pth"),
        ):
            answer = client(ONE, f"holes/{key}", lock=locks)
            assert answer["error"] == "DataError" and part in answer["message"], answer
        assert "org/holes has bag.pth" in client(ONE, "holes/none", lock=locks)["message"]

    def test_missing_repositories_and_revisions(self, client, locks):
        answer = client(ONE, "missing/ag", lock=locks)
        assert (
            answer["error"] == "DataError"
            and "no such repository" in answer["message"]
            and "https://example.org/card" in answer["message"]
        )
        answer = client(ONE, "gone/one", lock=locks)
        assert (
            answer["error"] == "DataError"
            and "revision is gone" in answer["message"]
            and "c" * 40 in answer["message"]
        )

    @pytest.mark.parametrize(("status", "part"), [(200, "not the hub"), (404, "status 404")])
    def test_a_page_in_place_of_the_hub(self, client, server, locks, status, part):
        server.models["org/away"] = {OLD: {"ag.pth": BYTES}}
        server.pages["org/away"] = status
        answer = client(ONE, "away/ag", lock=locks)
        assert (
            answer["error"] == "OfflineError"
            and part in answer["message"]
            and answer["seconds"] < 20
        )
        assert "away" not in json.loads(locks.read_text())

    def test_a_token_is_neither_told_nor_given_to_the_storage(self, client, server, locks):
        server.gated.add("org/gated")
        server.authorized.clear()
        answer = client(ONE, "gated/ag", lock=locks)
        assert answer["error"] == "DataError" and "hf auth login" in answer["message"]
        assert any("org/gated" in path for path in server.authorized), "the hub did get the token"
        told = client(MAIN, ["data", "fetch", "gated", "checkpoints"], lock=locks)
        server.gated.clear()
        assert (
            told["value"] == 1
            and "Not fetched: gated" in told["err"]
            and "checkpoints: verified" in told["out"]
        )
        for text in (answer["message"], told["out"], told["err"]):
            assert TOKEN not in text and "planted" not in text
        assert not any(path.startswith("/storage/") for path in server.authorized)


class TestOffline:
    def test_the_cache_serves(self, client, offline, locks, tmp_path):
        assert "value" in client(FETCH, "checkpoints", lock=locks)
        assert Path(offline(ONE, "checkpoints/ag", lock=locks)["value"]).read_bytes() == BYTES
        # Caches copied to a machine without the lock file: the newest commit that was seen, and its hashes, are in them.
        got = offline(FETCH, "checkpoints", lock=tmp_path / "lock.json")
        assert Path(got["value"]["ag"]).read_bytes() == BYTES
        assert (
            json.loads((tmp_path / "lock.json").read_text())["checkpoints"]
            == json.loads(locks.read_text())["checkpoints"]
        )

    def test_what_is_not_cached(self, offline, locks, folder):
        for name in ("away/ag", "data/ag/test"):
            answer = offline(ONE, name, lock=locks)
            assert answer["error"] == "OfflineError" and answer["seconds"] < 20
            for part in (name.partition("/")[0], "HF_HUB_OFFLINE", "data fetch"):
                assert part in answer["message"]

    def test_a_damaged_copy(self, client, offline, server, locks):
        blob = Path(client(ONE, "hurt/ag", lock=locks)["value"]).resolve()
        blob.write_bytes(BYTES[:-1] + b"?")
        answer = offline(ONE, "hurt/ag", lock=locks)
        assert (
            answer["error"] == "OfflineError"
            and "damaged" in answer["message"]
            and "the lock file has" in answer["message"]
        )
        checked = offline(MAIN, ["data", "check", "hurt", "checkpoints"], lock=locks)
        assert (
            checked["value"] == 1
            and "hurt: NOT as locked\n  ag: hash" in checked["out"]
            and "checkpoints: 2 parts agree" in checked["out"]
        )
        assert Path(client(ONE, "hurt/ag", lock=locks)["value"]).read_bytes() == BYTES, (
            "fetching again mends it"
        )
        assert offline(MAIN, ["data", "check", "hurt"], lock=locks)["value"] == 0

    def test_nobody_listens(self, locks, tmp_path):
        client = make_client(tmp_path, closed_endpoint())
        try:
            answer = client(ONE, "checkpoints/ag", lock=tmp_path / "lock.json")
            assert (
                answer["error"] == "OfflineError"
                and "cannot be reached" in answer["message"]
                and answer["seconds"] < 20
            )
        finally:
            client.close()


class TestCommand:
    def test_a_data_set_ahead_of_a_run(self, client, offline, server, folder, tmp_path):
        server.repositories["fancyzhx/ag_news"] = {
            OLD: table_repository(ROWS, {"text": ["goal", "bank"], "label": [1, 2]})
        }
        lock_file = tmp_path / "lock.json"
        fresh = client(MAIN, ["data", "list", "ag"], lock=lock_file)["out"]
        assert (
            fresh.startswith("ag: not cached")
            and "revision  unverified" in fresh
            and "sha256 unverified" in fresh
            and "NIPS 2015" in fresh
        )
        fetched = client(MAIN, ["data", "fetch", "ag"], lock=lock_file)
        assert fetched["value"] == 0, fetched
        size = sum(
            len(c)
            for p, c in server.repositories["fancyzhx/ag_news"][OLD].items()
            if p.endswith(".parquet")
        )
        shown = fetched["out"].splitlines()
        assert (
            shown[0]
            == f"ag: 2 files, {size / 1e3:.2f} kB, of which {size / 1e3:.2f} kB to be downloaded"
        )
        assert f"ag: verified, commit {OLD}" in shown
        locked = json.loads(lock_file.read_text())["ag"]
        assert locked["train"]["rows"] == 5 and {f["sha256"] for f in locked["files"].values()} == {
            sha256(c)
            for p, c in server.repositories["fancyzhx/ag_news"][OLD].items()
            if p.endswith(".parquet")
        }
        listed = offline(MAIN, ["data", "list", "ag"], lock=lock_file)["out"]
        assert (
            listed.startswith("ag: cached")
            and OLD in listed
            and locked["files"]["data/test-00000-of-00001.parquet"]["sha256"] in listed
        )
        server.asked.clear()
        assert (
            client(MAIN, ["data", "check", "ag"], lock=lock_file)["value"] == 0 and not server.asked
        ), "check asks nobody"
        assert offline("mergelib.tasks.hub.hub_splits", "ag", lock=lock_file)["value"]["train"] == [
            "war",
            "ball",
            "stock",
            "chip",
        ]
        blob = next(
            (folder / "home" / "hub" / "datasets--fancyzhx--ag_news").rglob("train-*.parquet")
        )
        blob.write_bytes(b"?" * blob.stat().st_size)
        checked = offline(MAIN, ["data", "check", "ag"], lock=lock_file)
        assert checked["value"] == 1 and "train-00000-of-00001.parquet: hash" in checked["out"]

    def test_never_fetched(self, offline, tmp_path):
        checked = offline(
            MAIN, ["data", "check", "checkpoints", "yelp"], lock=tmp_path / "lock.json"
        )
        assert checked["value"] == 1 and checked["out"].count("never fetched") == 2
        fetched = offline(MAIN, ["data", "fetch", "away"], lock=tmp_path / "lock.json")
        assert (
            fetched["value"] == 1
            and "Not fetched: away" in fetched["err"]
            and "HF_HUB_OFFLINE" in fetched["err"]
        )

    def test_names_and_profiles(self, offline, tmp_path):
        unknown = offline(MAIN, ["data", "list", "chekpoints"], lock=tmp_path / "lock.json")
        assert unknown["value"] == 2 and "Nearest: 'checkpoints'" in unknown["err"]
        assert (
            "needs nothing from the hub"
            in offline(MAIN, ["data", "check", "--profile", "mini"], lock=tmp_path / "lock.json")[
                "out"
            ]
        )

    def test_a_base_model_ahead_of_a_run(self, client, offline, server, tmp_path):
        """Fetched, then loaded in a process without network, at the locked commit and as transformers itself looks for it."""
        from tokenizers import BertWordPieceTokenizer
        from transformers import BertConfig, BertModel, BertTokenizerFast

        made = tmp_path / "made"
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=8,
                hidden_size=4,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=4,
                max_position_embeddings=16,
            )
        ).save_pretrained(made)
        vocabulary = {
            w: i
            for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"])
        }
        BertTokenizerFast(
            tokenizer_object=BertWordPieceTokenizer(vocabulary)._tokenizer
        ).save_pretrained(made)
        server.models["org/tiny"] = {
            OLD: {
                **loopback_hub.folder_files(made),
                "flax_model.msgpack": BYTES,
                "onnx/config.json": b"{}",
            }
        }
        lock_file = tmp_path / "lock.json"
        begun = client(*BEGIN, lock=lock_file)
        assert "tiny: verified" in begun["out"], begun
        server.asked.clear()
        assert client(*BEGIN, lock=lock_file)["out"] == "" and not server.asked, "once"
        locked = json.loads(lock_file.read_text())["tiny"]
        assert (
            {"config.json", "model.safetensors", "tokenizer.json"}
            <= set(locked["files"])
            <= set(os.listdir(made))
        )
        for revision in (OLD, None):
            answer = offline(
                "mergelib.encoders.load_base", "org/tiny", 16, revision, lock=lock_file
            )
            assert "value" in answer and "TextEncoder" in answer["value"][0], answer
        assert offline("mergelib.hub.locked_revision", "org/tiny", lock=lock_file)["value"] == OLD


# --- without a client -----------------------------------------------------------------------------------------------------


def test_registry():
    entries = files.registry()
    assert not entries.keys() & data_sets.registry().keys(), "one lock file, so one name each"
    for name, repository in entries.items():
        assert repository.revision is None, f"{name}: a revision belongs into the lock file"
        kind = "datasets/" if repository.kind == "dataset" else ""
        assert repository.card.startswith(
            f"https://huggingface.co/{kind}"
        ) and repository.card.endswith(repository.id)
    assert tuple(entries["released_checkpoints"].files) == TASK_NAMES
    assert set(entries["released_data"].files) == {
        f"{t}/{s}" for t in TASK_NAMES for s in ("train", "test")
    }


def test_what_a_profile_needs():
    assert needed("mini") == [] == needed("quick")
    names = [s.name for s in needed("paper")]
    assert {"released_checkpoints", "released_data"} <= set(names) and len(names) == len(set(names))
    for variant in ("", *variant_names("paper")):
        base = load_profile("paper", variant=variant).encoder.base
        assert (
            files.base_model(base)[0] in names and files.base_model(base)[0] in files.registry()
        ), f"{base}: no licence, no citation"
    assert [s.name for s in named(["yelp", "yelp", "t5-base"], "mini")] == ["yelp", "t5-base"]
    assert files.base_model("somebody/model", "d" * 40)[1].revision == "d" * 40


def test_names_of_files():
    with pytest.raises(UnknownNameError, match="Nearest: 'released_checkpoints/yelp'"):
        files.fetch_file("released_checkpoint/yelp")
    with pytest.raises(UnknownNameError, match="Nearest: 'ag/train'"):
        files.fetch_file("released_data/ag/trian")


def test_locked_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("MERGELIB_HUB_LOCK", str(tmp_path / "lock.json"))
    assert locked_revision("google-t5/t5-base") is None
    lock.add(
        tmp_path / "lock.json", "t5-base", lock.LockedEntry(id="google-t5/t5-base", revision=OLD)
    )
    assert (
        locked_revision("google-t5/t5-base") == OLD and locked_revision("bert-base-uncased") is None
    )


def test_lock_entries_grow_at_one_commit_and_are_replaced_by_another(tmp_path, monkeypatch):
    monkeypatch.setenv("MERGELIB_STORE", str(tmp_path / "store"))
    path, facts = tmp_path / "lock.json", lock.SplitFacts(rows=1, empty=0, labels="x")
    one, two = (lock.FileFacts(path=p, size=1, sha256="0" * 64) for p in "ab")
    lock.add(path, "ag", lock.LockedEntry(id="org/ag", revision=OLD, train=facts, test=facts))
    lock.add(path, "ag", lock.LockedEntry(id="org/ag", revision=OLD, files={"a": one}))
    lock.add(path, "ag", lock.LockedEntry(id="org/ag", revision=OLD, files={"b": two}))
    assert lock.read(path)["ag"] == lock.LockedEntry(
        id="org/ag", revision=OLD, train=facts, test=facts, files={"a": one, "b": two}
    )
    lock.add(path, "ag", lock.LockedEntry(id="org/ag", revision=NEW, files={"a": one}))
    assert lock.read(path)["ag"] == lock.LockedEntry(id="org/ag", revision=NEW, files={"a": one})
    with pytest.raises(DataError, match=r"org/ag at b+, files\.yaml org/other at any revision"):
        lock.locked(path, "ag", "org/other", None, "files.yaml")


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10**9})
    )
    files.check_room("t5-large", 10**9, tmp_path / "not" / "yet")
    with pytest.raises(
        StoreError, match=r"'t5-large' needs 3\.00 GB more and .* has 1\.00 GB left.*HF_HOME"
    ):
        files.check_room("t5-large", 3 * 10**9, tmp_path / "not" / "yet")
    full = files._translated(
        "a/b", "org/a", OLD, None, OSError(errno.ENOSPC, "No space left on device"), "b.pth"
    )
    assert isinstance(full, StoreError) and "b.pth of org/a" in str(full) and "HF_HOME" in str(full)


def test_git_hash_is_gits(tmp_path):
    (tmp_path / "hello").write_bytes(b"hello\n")  # `git hash-object` says so
    assert files.file_hash(tmp_path / "hello", 40) == "ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.mark.parametrize(
    "secret",
    [
        f"Bearer {TOKEN}",
        TOKEN,
        "own-secret-without-prefix",
        "https://cdn.example.org/file?X-Amz-Signature=abc&Key=1",
    ],
)
def test_secrets_are_not_repeated(monkeypatch, secret):
    monkeypatch.setenv("HF_TOKEN", "own-secret-without-prefix")
    text = said(ValueError(f"could not do\n it with '{secret}' here"))
    assert text.startswith("ValueError: could not do it") and text.endswith("here")
    assert not any(part in text for part in (TOKEN, "own-secret", "Signature", "abc"))
