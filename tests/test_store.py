"""The store: whole or not at all, damage is noticed and repaired, two processes share the work."""

import json
import os
import shutil
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergelib.core.errors import StoreError
from mergelib.core.store import META, TENSORS, Artifact, Store, StoreWarning, key_digest
from mergelib.core.types import state_digest

KEY = {"version": 1, "what": "x"}


class Counting:
    """A ``make`` that counts its calls."""

    def __init__(self, value=1.0):
        self.calls, self.value = 0, value

    def __call__(self):
        self.calls += 1
        return Artifact({"t": torch.full((50,), 1.0)}, {"value": self.value})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def get(store, key=KEY):
    return store.get("step", key, Counting())


def test_computed_once_and_found_again(store):
    make = Counting()
    first = store.get("step", KEY, make)
    second = Store(store.root).get("step", dict(reversed(KEY.items())), make)
    assert make.calls == 1 and first.info == second.info == {"value": 1.0}
    assert state_digest(first.tensors) == state_digest(second.tensors)
    assert store.peek("step", KEY) is not None and store.peek("other", KEY) is None
    assert store.get("other", KEY, Counting(2.0)).info == {"value": 2.0}


def test_who_asks_is_told_what_is_being_made(store):
    assert not store.being_made("step", KEY)
    store.get("step", KEY, lambda: Counting(Store(store.root).being_made("step", KEY))())
    assert store.peek("step", KEY).info == {"value": True} and not store.being_made("step", KEY)


def test_what_is_read_back_cannot_reach_the_file(store):
    for _ in range(2):
        get(store).tensors["t"].zero_()
    assert get(store).tensors["t"].sum() == 50


def raising(error):
    def stop(*_):
        raise error("stop")

    return stop


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError, TypeError])
@pytest.mark.parametrize("where", ["make", "rename"])
def test_what_fails_or_is_interrupted_leaves_nothing(store, monkeypatch, where, error):
    make = raising(error) if where == "make" else Counting()
    if error is TypeError:  # of info that JSON cannot hold
        make = Counting(object())
    with monkeypatch.context() as patch, pytest.raises(error):
        if where == "rename":
            patch.setattr(os, "replace", raising(error))
        store.get("step", KEY, make)
    assert [p for p in store.root.rglob("*") if p.is_file() and ".locks" not in p.parts] == []
    assert get(store).info == {"value": 1.0}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(bytes(raw))


def replaced(old, new):
    return lambda f: (f / META).write_text((f / META).read_text().replace(old, new))


DAMAGE = {
    "truncated tensors": lambda f: truncate(f / TENSORS),
    "flipped tensors": lambda f: flip(f / TENSORS),
    "empty tensors": lambda f: (f / TENSORS).write_bytes(b""),
    "no tensors": lambda f: (f / TENSORS).unlink(),
    "foreign tensors": lambda f: (f / TENSORS).write_bytes(os.urandom(500)),
    "truncated meta": lambda f: truncate(f / META),
    "empty meta": lambda f: (f / META).write_bytes(b""),
    "no meta": lambda f: (f / META).unlink(),
    "binary meta": lambda f: (f / META).write_bytes(b"\xff\xfe\x00" * 9),
    "meta is a list": lambda f: (f / META).write_text("[1, 2]"),
    "info altered": replaced('"value": 1.0', '"value": 7.0'),
    "wrong key": replaced('"what": "x"', '"what": "y"'),
    "wrong step": replaced('"step": "step"', '"step": "stop"'),
    "another key's": lambda f: shutil.copytree(another(f), f, dirs_exist_ok=True),
}


def another(folder):
    """The other artifact of the step: a good checksum, and the wrong key."""
    return next(p for p in folder.parent.iterdir() if p != folder)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_and_repaired(store, damage):
    get(store)
    get(store, {"another": 1})
    folder = store.folder("step", KEY)
    DAMAGE[damage](folder)
    assert store.verify() == [folder] and store.peek("step", KEY) is None
    make = Counting(3.0)
    with pytest.warns(StoreWarning, match="damaged"):
        assert store.get("step", KEY, make).info == {"value": 3.0}
    assert make.calls == 1 and store.verify() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.get("step", KEY, make)
    assert make.calls == 1


def test_foreign_files_beside_artifacts_do_no_harm(store):
    get(store)
    for folder in (store.root, store.root / "step", store.folder("step", KEY)):
        (folder / "notes.txt").write_text("hello")
    assert store.verify() == [] and len(store.entries()) == 1
    assert store.get("step", KEY, None).info == {"value": 1.0}


def test_a_file_in_the_place_of_an_artifact_is_replaced(store):
    folder = store.folder("step", KEY)
    folder.parent.mkdir(parents=True)
    folder.write_text("not a folder")
    with pytest.warns(StoreWarning):
        assert get(store).info == {"value": 1.0}


def test_prune_removes_what_is_damaged_old_or_left_over_and_nothing_else(store):
    """MERGELIB_STORE may point at a folder that holds other things, a home directory at worst."""
    get(store)
    damaged, old = KEY | {"n": 2}, {"version": 0}
    for step, key in (("step", old), ("gone", KEY), ("step", damaged)):
        store.get(step, key, Counting())
    flip(store.folder("step", damaged) / TENSORS)
    store.scratch("step", {"n": 3})
    (store.root / "step" / f".tmp-{'a' * 64}").mkdir()
    photos = store.root / "pictures"
    # The last is of another store that calls files by their content.
    names = ("holiday/beach.jpg", f"holiday/{'a' * 64}", ".tmp-edited/a.jpg", "b" * 64)
    others = [photos / name for name in names]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"precious")
    removed = store.prune({"step": 1})
    doomed = {store.folder("step", old), store.folder("gone", KEY), store.folder("step", damaged)}
    assert doomed <= {*removed} and not any(p.exists() for p in removed)
    assert store.peek("step", KEY) and store.verify() == [] and len(store.entries()) == 1
    assert not [*store.root.glob("step/.tmp-*")] and not [*store.root.glob(".scratch/*")]
    assert {other.read_bytes() for other in others} == {b"precious"}
    assert store.prune({"step": 1}) == []


def test_scratch_goes_when_the_artifact_is_there(store):
    scratch = store.scratch("step", KEY)
    (scratch / "checkpoint").write_text("half way")
    assert store.scratch("step", KEY) == scratch and (scratch / "checkpoint").exists()
    get(store)
    assert not scratch.exists()


def test_an_unwritable_root_names_the_remedy(tmp_path):
    (tmp_path / "blocked").write_text("a file, where a folder should be")
    (tmp_path / "closed").mkdir(mode=0o500)
    for name in ("blocked", "closed") if os.geteuid() else ("blocked",):
        with pytest.raises(StoreError, match="MERGELIB_STORE"):
            get(Store(tmp_path / name))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
names = "float32 float16 bfloat16 float64 int64 int16 bool"
dtypes = st.sampled_from([getattr(torch, name) for name in names.split()])


@given(
    shapes=st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), dtypes), max_size=4),
    info=st.dictionaries(st.text(max_size=5), json_values, max_size=4),
    key=st.dictionaries(st.text(max_size=4), json_values, max_size=3),
)
def test_tensors_and_info_come_back_as_they_went_in(tmp_path_factory, shapes, info, key):
    tensors = {
        f"t{i}": (torch.randn(shape) * 3).to(dtype) for i, (shape, dtype) in enumerate(shapes)
    }
    store = Store(tmp_path_factory.mktemp("s"))
    store.get("step", key, lambda: Artifact(tensors, info))
    found = store.peek("step", key)
    assert found.info == json.loads(json.dumps(info)) and found.tensors.keys() == tensors.keys()
    for n, t in tensors.items():
        assert found.tensors[n].dtype == t.dtype and torch.equal(found.tensors[n], t)


def test_views_and_shared_tensors_come_back(store):
    x = torch.arange(12.0).view(3, 4)
    given = {"x": x, "same": x, "t": x.T, "part": x[1:, ::2]}
    found = store.get("step", KEY, lambda: Artifact(given))
    again = store.peek("step", KEY)
    for n, t in given.items():
        assert torch.equal(found.tensors[n], t) and torch.equal(again.tensors[n], t)


@pytest.mark.parametrize("numbered", [{2: "b", 10: "a"}, {"layers": {i: i for i in (2, 10)}}])
def test_dictionaries_with_numbers_as_keys_are_not_taken_for_damage(store, numbered):
    """JSON sorts 2 before 10 as numbers and after it as text; a checksum over both orders would
    never hold."""
    store.get("step", numbered, lambda: Artifact({"t": torch.zeros(1)}, {"per": numbered}))
    assert store.verify() == []


def test_the_digest_of_a_key():
    a = {"x": 1, "y": {"p": [1, 2], "q": "é"}}
    b = {"y": {"q": "é", "p": [1, 2]}, "x": 1}
    assert key_digest("s", a) == key_digest("s", b)
    others = [{"x": 2}, {"x": 1.5}, {"x": "1"}, {"y": {"p": [2, 1], "q": "é"}}]
    assert len({key_digest("r", a), *(key_digest("s", a | o) for o in ({}, *others))}) == 6
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            key_digest("s", {"x": bad})
    with pytest.raises(TypeError):
        key_digest("s", {"x": torch.zeros(1)})
