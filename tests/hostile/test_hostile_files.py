"""Files that are truncated, flipped, foreign or made to mislead: CSV, Parquet, safetensors,
configurations, records, lock file, store."""

import csv
import gzip
import hashlib
import io
import json
import math
import re
import shutil
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save

from mergelib.core.errors import MergelibError
from mergelib.core.hub import lock
from mergelib.core.store import Artifact, Store
from mergelib.models.merged import load_merged
from mergelib.models.parents import Parent, Weights, open_parent
from mergelib.tasks.data import read_csv
from mergelib.tasks.local import local_splits
from mergelib.tasks.parquet import read_parquet
from mergelib.tasks.rows import Form

from .support import typed

DOCUMENTS = yaml.safe_load(Path(__file__).with_name("documents.yaml").read_text())
CONFIG, RECORD, LOCKED = DOCUMENTS.values()
# Where to change a file, as a fraction of its length, and what to write there; then where to cut
# it.
edits = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
    st.just(1.0) | st.floats(0, 1),
)


def edited(raw, edit, insert=False):
    changes, keep = edit
    for at, new in changes:
        i = int(at * len(raw))
        raw = raw[:i] + new + raw[i + (0 if insert else len(new)) :]
    return raw[: int(keep * len(raw))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


# ---- CSV -----------------------------------------------------------------------------------------

WORDS = """1 2 0 -1 1_0 99999999999999999999 1.0 , , , " " text é 日本 null ;"""
PIECES = [*WORDS.split(), "9" * 5000, *"\n\n\r\0 \ufeff\u2028\t", "\r\n"]
rows = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=40).map(
    lambda p: "".join(p).encode(errors="replace")
)
good_rows = st.lists(st.tuples(st.integers(1, 4), st.text(max_size=20)), max_size=8).map(
    lambda r: "".join(f'{y},"{t}"\n' for y, t in r).encode(errors="replace")
)


@given(
    rows | good_rows | st.binary(max_size=60) | st.builds(edited, good_rows, edits),
    st.booleans(),
    st.none() | st.integers(-3, 5),
)
@example(b'1,"never closed\n' + b"2,text\n" * 50, False, None)
@example(b"1_0,text\n", False, None)
def test_any_bytes_as_csv(folder, raw, zipped, column):
    path = folder / ("train.csv.gz" if zipped else "train.csv")
    path.write_bytes(gzip.compress(raw, 1, mtime=0) if zipped else raw)
    found = typed(lambda: read_csv(path, Form(text_column=column)), str(path))
    if isinstance(found, MergelibError):
        return
    text = "".join(line.lstrip("\ufeff") for line in io.StringIO(raw.decode(), newline=""))
    table = list(csv.reader(io.StringIO(text, newline="")))
    place = len(table[0]) - 1 if column is None else column
    labels = [r[0].lstrip("\ufeff").strip() for r in table]
    assert list(found.labels) == labels and all(found.labels)
    assert list(found.inputs) == [r[place].lstrip("\ufeff") for r in table]
    counts = len({*labels}) == len(labels) > 1 and "".join(labels).isdigit()
    assert len(table[0]) < 3 or not counts, "an index"
    assert all(t.strip() for t in found.inputs)


GZIPPED = gzip.compress(
    "".join(f"{i % 4 + 1},text number {i}\n" for i in range(60)).encode(), mtime=0
)


@given(edits)
def test_any_change_of_a_zipped_csv(folder, edit):
    path = folder / "odd.csv.gz"
    path.write_bytes(edited(GZIPPED, edit))
    found = typed(lambda: read_csv(path), str(path))
    if not isinstance(found, MergelibError):
        assert len(found.inputs) == 60 and found.inputs[59] == "text number 59", (
            "gzip's checksum lets nothing else through"
        )


@given(st.text(max_size=12) | st.sampled_from(["../up", "x" * 400, "a\0b", "~nobody-here"]))
def test_any_name_of_a_task_below_the_text_folder(folder, name):
    typed(lambda: local_splits(folder / "nothing", name))


# ---- Parquet -------------------------------------------------------------------------------------


def png(seed):
    from PIL import Image

    file = io.BytesIO()
    Image.frombytes("RGB", (4, 4), bytes((seed * 37 + i) % 256 for i in range(48))).save(
        file, "png"
    )
    return file.getvalue()


def parquet(**columns):
    features = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    file = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)}), file
    )
    return file.getvalue().to_pybytes()


GOOD_PARQUET = parquet(
    image=[{"bytes": png(i), "path": None} for i in range(5)], label=[0, 1, 2, 0, 1]
)


@given(edits, st.booleans(), st.none() | st.integers(1, 9))
def test_any_change_of_a_parquet_file(folder, edit, insert, limit):
    path = folder / "odd.parquet"
    path.write_bytes(edited(GOOD_PARQUET, edit, insert))
    found = typed(lambda: read_parquet(path, 4, limit=limit), "odd.parquet")
    if not isinstance(found, MergelibError):
        split, names = found
        assert split.inputs.shape == (len(split), 3, 4, 4) and 0 <= int(split.labels.min())
        assert not names or int(split.labels.max()) < len(names)


cells = (
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.just(2**62)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=30)
    | st.just(png(1))
)
FORMS = (lambda x: x, lambda x: {"bytes": x}, lambda x: {"bytes": {"bytes": x}})


@given(
    st.lists(st.tuples(cells, cells), max_size=5),
    st.sampled_from(FORMS),
    st.sampled_from(["label", "labels"]),
)
@example([(png(1), 0)], FORMS[2], "label")
def test_any_columns_of_a_parquet_file(folder, rows, form, name):
    labels = [label for _, label in rows]
    try:
        raw = parquet(image=[form(x) for x, _ in rows], **{name: labels})
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return  # Arrow holds one type a column
    path = folder / "columns.parquet"
    path.write_bytes(raw)
    found = typed(lambda: read_parquet(path, 4), "columns.parquet")
    if not isinstance(found, MergelibError):
        assert found[0].labels.tolist() == labels and len(found[0]) == len(rows)


# ---- safetensors ---------------------------------------------------------------------------------

TENSORS = {
    "bert.a.weight": torch.arange(6.0).view(2, 3),
    "bert.b.bias": torch.ones(2, dtype=torch.float16),
    "position_ids": torch.arange(4),
}
GOOD = save(TENSORS, {"format": "pt"})


def header(announced, text, data=bytes(64)):
    return struct.pack("<Q", announced) + text + data


def with_header(parsed, data=bytes(64)):
    text = json.dumps(parsed).encode()
    return header(len(text), text, data)


sizes = st.integers(0, 80) | st.sampled_from([2**31, 2**40, 2**60, 2**63, 2**64 - 1, -1])
DTYPES = "X F32 F16 BF16 F64 I64 BOOL U8 F8_E4M3 F8_E5M2 F4 F6_E2M3 U64 C64".split()
WIDTHS = {"F32": 4, "F16": 2, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "U64": 8}
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["", *DTYPES]),
        "shape": st.lists(sizes, max_size=4),
        "data_offsets": st.lists(sizes, min_size=1, max_size=3),
    }
)
# Honest offsets: what announces n bytes has them, so that the file is read to the end.
shapes = st.lists(st.integers(0, 3), max_size=3)
honest = st.lists(st.tuples(st.sampled_from(sorted(WIDTHS)), shapes), max_size=4)


def honest_file(tensors):
    at, parsed = 0, {}
    for i, (dtype, shape) in enumerate(tensors):
        end = at + WIDTHS[dtype] * math.prod(shape)
        parsed[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    return with_header(parsed, bytes(at))


safetensors_files = (
    st.builds(edited, st.just(GOOD), edits, st.booleans())
    | st.binary(max_size=60)
    | st.builds(header, st.integers(0, 2**64 - 1), st.binary(max_size=40))
    | st.dictionaries(st.text(max_size=6), entries, max_size=3).map(with_header)
    | honest.map(honest_file)
    | st.integers(1, 4000).map(lambda n: header(n, b"[" * n))
)


@given(safetensors_files)
@example(header(2**60, b"{}"))
@example(with_header({"t": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}))
@example(with_header({"t": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 64]}}))
def test_any_bytes_as_safetensors(folder, raw):
    (folder / "model.safetensors").write_bytes(raw)

    def everything():
        weights = Weights(folder)
        return {n: (weights.shape(n), weights.is_float(n), weights.tensor(n)) for n in weights}

    found = typed(everything, folder.name)
    if not isinstance(found, MergelibError):
        for shape, is_float, t in found.values():
            assert tuple(t.shape) == shape and t.is_floating_point() == is_float
        assert sum(t.numel() * t.element_size() for *_, t in found.values()) <= len(raw)


STEP = "features", {"version": 1}
ARTIFACT = Artifact({"z": torch.ones(2)}, {"n": 1})


@given(safetensors_files, st.booleans())
def test_any_bytes_in_the_store_are_read_or_made_again(folder, raw, honest_checksum):
    """Also bytes that bear the right checksum: whoever wrote the file may have written nonsense."""
    store = Store(folder / "store")
    store.get(*STEP, lambda: ARTIFACT)
    place = store.folder(*STEP)
    (place / "tensors.safetensors").write_bytes(raw)
    if honest_checksum:
        meta = json.loads((place / "meta.json").read_text())
        meta["tensors_sha256"] = hashlib.sha256(raw).hexdigest()
        (place / "meta.json").write_text(json.dumps(meta))
    whole = typed(lambda: store.peek(*STEP))
    assert whole is None or honest_checksum
    assert (store.verify() == [place]) is (whole is None)
    if whole is None:
        with pytest.warns(UserWarning, match="damaged"):
            assert store.get(*STEP, lambda: ARTIFACT).tensors["z"].tolist() == [1, 1]
    shutil.rmtree(place)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3),
    max_leaves=8,
)
NESTED = "[" * 100_000


def changed(whole, *more, odd=()):
    """JSON texts: some values of a document changed, also under further names; or anything."""
    names = st.sampled_from([*whole, *more])
    values = json_values | st.sampled_from(odd) if odd else json_values
    documents = st.dictionaries(names, values, max_size=3).map(lambda change: whole | change)
    return (documents | json_values).map(json.dumps) | st.just(NESTED)


@given(st.data())
def test_any_meta_file_in_the_store(folder, data):
    store = Store(folder / "metas")
    store.get(*STEP, lambda: ARTIFACT)
    place = store.folder(*STEP) / "meta.json"
    before = place.read_text()
    place.write_text(data.draw(changed(json.loads(before))))
    found = typed(lambda: store.peek(*STEP))
    assert found is None or (found.info, found.tensors["z"].tolist()) == ({"n": 1}, [1, 1])
    typed(store.entries)
    typed(store.verify)
    place.write_text(before)


# ---- folders of models ---------------------------------------------------------------------------

MORE = """num_labels auto_map problem_type torch_dtype dtype rope_scaling transformers_version
pad_token_id tie_word_embeddings _name_or_path"""
ODD = ["vit", "t5", "clip", "load", "float8_e4m3fn", "2x", 10**12]


@given(changed(CONFIG, *MORE.split(), odd=ODD))
@example(json.dumps(CONFIG | {"num_labels": 10**9, "id2label": None}))
@example(json.dumps(CONFIG | {"id2label": ["a", "b"]}))
@example(json.dumps(CONFIG | {"id2label": {"5": "a"}}))
@example(json.dumps(CONFIG | {"architectures": 1}))
@example(json.dumps(CONFIG | {"architectures": ["x" * 5_000]}))
def test_any_configuration_of_a_model(folder, text):
    place = folder / "model"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(text)

    def everything():
        parent = Parent("odd", "odd", place)
        return parent.model_class.__name__, parent.labels, parent.is_image

    found = typed(everything, "odd")
    if not isinstance(found, MergelibError):
        assert isinstance(found[1], tuple)


OUTSIDE = ["..", "../up", "/etc/passwd", "x" * 400, "a\0b", "a\\b", "\ud800"]
shards = st.lists(st.text(max_size=8) | st.sampled_from(OUTSIDE), max_size=3)


@given(
    changed({"weight_map": {}})
    | shards.map(lambda s: json.dumps({"weight_map": dict(enumerate(s))}))
)
@example('{"weight_map": {"a": 3}}')
@example('{"weight_map": {"a": "../model.safetensors"}}')
def test_any_index_of_shards(folder, text):
    place = folder / "shards"
    place.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(GOOD)
    (place / "model.safetensors.index.json").write_text(text)
    found = typed(lambda: dict.fromkeys(Weights(place)))
    assert not found or isinstance(found, MergelibError), "there is nothing in the folder"


@given(changed(RECORD, "method", "options", "label"))
@example(json.dumps(RECORD | {"modules": {"../../up": "classifier"}}))
@example(json.dumps(RECORD | {"modules": {"/etc": "classifier"}}))
def test_any_record_of_a_merged_folder(folder, text):
    place = folder / "merged"
    for at in (place, place / "heads" / "ag", folder / "up"):
        at.mkdir(parents=True, exist_ok=True)
        (at / "config.json").write_text(json.dumps(CONFIG))
        head = {"classifier.weight": torch.zeros(3, 8), "classifier.bias": torch.zeros(3)}
        (at / "head.safetensors").write_bytes(save(head))
    (place / "model.safetensors").write_bytes(GOOD)
    (place / "mergelib.json").write_text(text)
    found = typed(lambda: load_merged(place))
    if not isinstance(found, MergelibError):
        assert set(found.heads) == {"ag"}, "only what lies below the folder is read"


PATHS = ["", " ", "~nobody-here/x", "a\0b", "x" * 5000, "/", ".", "a/b/c", "x/" * 3000]


@given(st.text(max_size=20) | st.sampled_from(PATHS))
def test_any_text_as_a_model(text):
    found = typed(lambda: open_parent(text).folder)
    assert isinstance(found, MergelibError) or found.is_dir()


# ---- the hub's lock file -------------------------------------------------------------------------


@given(
    changed(LOCKED).map(lambda text: f'{{"ag": {text}}}') | changed(LOCKED) | st.text(max_size=20)
)
@example(json.dumps({"ag": LOCKED | {"revision": "../../main"}}))
def test_any_lock_file(folder, text):
    path = folder / "hub.lock.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    found = typed(lambda: lock.read(path), "hub.lock.json")
    if not isinstance(found, MergelibError):
        assert all(re.fullmatch("[0-9a-f]{40}", entry["revision"]) for entry in found.values())
