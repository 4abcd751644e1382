"""Small files that stand for huge ones: each is refused in a process that may use little memory,
and soon."""

import gzip
import itertools
import json
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import python

from .test_hostile_files import CONFIG, GOOD, NESTED, png, with_header

ROOT = Path(__file__).resolve().parents[2]
MEGABYTES = (
    700  # beyond what the imports take; the largest case here would need a hundred times as much
)

PROGRAM = f"""
import json, resource, sys, time, warnings
from pathlib import Path
import pyarrow.parquet, torch, transformers
from transformers import AutoConfig, AutoTokenizer
from mergelib import Study
from mergelib.core import documents
from mergelib.run import runner
from mergelib.core.errors import MergelibError
from mergelib.models import parents, recipes
from mergelib.core.store import Store
from mergelib.core.hub import lock
from mergelib.tasks import data, parquet
from mergelib.profiles import load_profile, parse_profile
from mergelib.encoders import load_base

torch.set_num_threads(1)
warnings.simplefilter("ignore")
root = Path(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {MEGABYTES << 20},) * 2)

def bytes_of(name):
    return (root / name).read_text()

def tensors(folder):
    weights = parents.Weights(root / folder)
    return {{n: weights.tensor(n) for n in weights}}

def whole(path):
    if not Store(root / "store").verify():
        raise SystemExit(f"{{path}} is taken for whole")
    raise MergelibError("damaged")

CASES = {{
    "header": lambda: tensors("header"), "offsets": lambda: tensors("offsets"), \
"expanded": lambda: tensors("expanded"),
    "base": lambda: load_base(str(root / "header"), 16), "store": lambda: whole("store"), \
"store_nested": lambda: whole("store_nested"),
    "aliases": lambda: recipes.read_yaml(root / "aliases.yaml"), \
"merge_keys": lambda: recipes.read_yaml(root / "merge_keys.yaml"),
    "endless": lambda: recipes.read_yaml("/dev/zero"), \
"option": lambda: recipes.build("merge", \
{{"options": {{"lam": bytes_of("aliases.yaml")}}, "method": "ties"}}),
    "method": lambda: recipes.build("merge", {{"merge_method": unfolding()}}),
    "profile": lambda: parse_profile(documents.parse_yaml(bytes_of("aliases.yaml"), "p"), "p"),
    "shared": lambda: parse_profile(unfolding(), "p"), \
"override": lambda: load_profile("quick", {{"tasks.names": unfolding()}}),
    "parameter": lambda: runner.parse_value("p", "9**9**9", "int"), \
"repeated": lambda: runner.parse_value("p", "'a' * 10**10", "list"),
    "csv_line": lambda: data.read_csv(root / "line.csv.gz"), \
"csv_rows": lambda: data.read_csv(root / "rows.csv.gz"),
    "csv_quote": lambda: data.read_csv(root / "quote.csv.gz"),
    "txt_line": lambda: data.unlabelled(root / "line.txt.gz", False), \
"json_line": lambda: data.rows_of(root / "line.jsonl.gz"),
    "parquet_texts": lambda: data.rows_of(root / "texts.parquet"),
    "parquet_rows": lambda: parquet.read_parquet(root / "rows.parquet", 4), \
"picture": lambda: parquet.open_image(root / "bomb.png", "bomb.png"),
    "labels": lambda: parents.Parent("m", "m", root / "labels").config, \
"lock": lambda: lock.read(root / "lock.json"),
}}

def unfolding():
    value = ["x"]
    for _ in range(9):
        value = [value] * 10
    return value

found = {{}}
for name, call in CASES.items():
    start = time.process_time()
    try:
        call()
        said = "no error"
    except MergelibError as error:
        said = f"{{type(error).__name__}}: {{error}}"
    except BaseException as error:
        said = f"RAW {{type(error).__name__}}: {{str(error)[:300]}}"
    found[name] = [said[:400], time.process_time() - start]
print(json.dumps(found))
"""


def members(first, again, times):
    """A gzip file of one member and another many times: as long as it likes, for a few
    kilobytes."""
    return gzip.compress(first, mtime=0) + gzip.compress(again, mtime=0) * times


def unfolding(first, level):
    """YAML in which every level holds the one before ten times."""
    lines = [f"a: &a {first}"]
    for x, y in itertools.pairwise("abcdefghijkl"):
        lines.append(f"{y}: &{y}{level}[{', '.join([f'*{x}'] * 10)}]")
    return "\n".join([*lines, ""]).encode()


MEGABYTE = b"a" * (1 << 20)
CONFIGURATION = json.dumps(CONFIG).encode()
FAR = {"t": {"dtype": "F32", "shape": [2**58], "data_offsets": [0, 2**60]}}
BOMBS = {
    "header/model.safetensors": struct.pack("<Q", 2**60) + b"{}",
    "header/config.json": CONFIGURATION,
    "offsets/model.safetensors": with_header(FAR),
    "offsets/config.json": CONFIGURATION,
    f"store/step/{'0' * 64}/meta.json": b"{}",
    f"store/step/{'0' * 64}/tensors.safetensors": GOOD,
    f"store/deep/{'1' * 64}/meta.json": NESTED.encode(),
    f"store/deep/{'1' * 64}/tensors.safetensors": GOOD,
    "aliases.yaml": unfolding("[lol]", " "),
    "merge_keys.yaml": unfolding("{lol: 1}", "\n  <<: "),
    "line.csv.gz": members(b"1,a\n1,", MEGABYTE, 3000),
    "rows.csv.gz": members(b"1,a\n", b"1,text\n" * 150_000, 1000),
    "quote.csv.gz": members(b'1,a\n1,"', b"text text\n" * 100_000, 3000),
    "line.txt.gz": members(b"", MEGABYTE, 3000),
    "line.jsonl.gz": members(b"", MEGABYTE, 3000),
    "bomb.png": png(1)[:16] + struct.pack(">II", 60_000, 60_000) + png(1)[24:],
    "labels/config.json": json.dumps(CONFIG | {"num_labels": 10**9, "id2label": None}).encode(),
    "lock.json": NESTED.encode(),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Case -> (what was said, seconds)."""
    root = tmp_path_factory.mktemp("bombs")
    for name, raw in BOMBS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    (root / "expanded").mkdir()
    torch.save({"t": torch.zeros(1).expand(2**40)}, root / "expanded" / "pytorch_model.bin")
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["a" * 20_000])
    pq.write_table(pa.table({"text": one, "label": ["x"] * 100_000}), root / "texts.parquet")
    images, labels = pa.nulls(1_000_000, pa.binary()), pa.array([0] * 1_000_000)
    table = pa.table({"image": images, "label": labels})
    with pq.ParquetWriter(root / "rows.parquet", table.schema) as writer:
        for _ in range(12):
            writer.write_table(table)
    assert max(p.stat().st_size for p in root.rglob("*") if p.is_file()) < 8 << 20
    return json.loads(python("-c", PROGRAM, root, cwd=ROOT).splitlines()[-1])


def test_every_bomb_is_refused_in_words_within_a_small_memory(refusals):
    odd = {n: s for n, (s, _) in refusals.items() if s == "no error" or s.startswith("RAW")}
    assert not odd and len(refusals) >= 20


def test_every_bomb_is_refused_soon(refusals):
    assert {n: s for n, (_, s) in refusals.items() if s > 30} == {}
