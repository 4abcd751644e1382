"""Samples of large tables: only some places of a split, spread evenly over it, are downloaded.

A place is a row group of a Parquet file or a block of a CSV file. The rows drawn there become one
small Parquet file, a *piece*, which is written as a whole or not at all and carries the beginning
of its SHA-256 in its name. ``plan.json``, written first, lists the pieces and how the rows of each
are drawn. So an interrupted download continues, and a complete one needs no network.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub import constants

from .. import paths
from ..documents import read_json
from ..errors import DataError, MergelibError, StoreError
from ..progress import progress
from .errors import translated
from .repository import NEEDED, Repository

SEED = 20_241_221
PLACES = 64  # of a split; more where these hold too few rows
BLOCK, LONG_ROW = 64 << 10, 2 << 10  # bytes: the smallest block, and what a row may need of it
TRIES = 200  # line breaks of a block after which a first row is sought
COLUMNS = ("image", "label")  # of image sets


def folder(repository: Repository, commit: str) -> Path:
    """Return the folder of a sample's pieces, beside the client's cache."""
    name = f"{repository.kind}s--{repository.id.replace('/', '--')}"
    rows = "-".join(map(str, repository.sample))
    return Path(constants.HF_HUB_CACHE).parent / "mergelib" / name / commit / rows


def kept(repository: Repository, commit: str) -> dict[str, Path]:
    """Return every piece by its name, without network; an empty dict if any is missing."""
    pieces = _read_plan(repository, commit)
    files = _found(repository, commit)
    return {name: files[name] for name in pieces} if pieces.keys() <= files.keys() else {}


def damaged(path: Path) -> bool:
    """Return whether a piece's bytes do not match the hash in its name."""
    return sha256(path.read_bytes()).hexdigest()[:16] != path.name.split(".")[1]


def plan(repository: Repository, commit: str) -> tuple[int, int, int]:
    """Return how many pieces there are, the bytes to read for all, and for those still missing."""
    pieces, files = _planned(repository, commit), _found(repository, commit)
    sizes = {name: piece["bytes"] for name, piece in pieces.items()}
    return len(pieces), sum(sizes.values()), sum(n for p, n in sizes.items() if p not in files)


def fetch(repository: Repository, commit: str) -> dict[str, Path]:
    """Return every piece by its name, read from the hub where it is missing or damaged.

    Raises:
        OfflineError: The hub does not answer and a piece is missing.
        StoreError: There is no space, or the folder cannot be written.
        DataError: There is no such repository, revision or file, or a table cannot be sampled.
    """
    pieces, files = _planned(repository, commit), _found(repository, commit)
    for path in files.values():
        if damaged(path):
            path.unlink()
    missing = {name: p for name, p in pieces.items() if name not in _found(repository, commit)}
    with (
        _told(repository, commit),
        progress(desc=f"read {repository.name}", total=len(missing)) as bar,
    ):
        for file in dict.fromkeys(piece["file"] for piece in missing.values()):
            in_file = {name: p for name, p in missing.items() if p["file"] == file}
            with _opened(repository, commit, file) as opened:
                read = partial(_from_csv, repository, opened)
                if file.endswith(".parquet"):
                    read = partial(
                        _from_parquet, repository, pq.ParquetFile(opened, pre_buffer=True)
                    )
                for name, piece in in_file.items():
                    pq.write_table(read(piece), buffer := io.BytesIO())
                    content = buffer.getvalue()
                    end = f"{sha256(content).hexdigest()[:16]}.parquet"
                    paths.write_whole(folder(repository, commit) / f"{name}.{end}", content)
                    bar.update()
    return kept(repository, commit)


@contextmanager
def _told(repository: Repository, commit: str) -> Iterator[None]:
    """Errors of clients and readers in the block become ours."""
    try:  # they have no common base class except Exception
        yield
    except Exception as error:
        if isinstance(error, MergelibError) and not isinstance(error, StoreError):
            raise
        raise translated(repository, commit, error) from error


def _found(repository: Repository, commit: str) -> dict[str, Path]:
    files = folder(repository, commit).glob("*-of-*.*.parquet")
    return {path.name.split(".")[0]: path for path in sorted(files)}


def _read_plan(repository: Repository, commit: str) -> dict[str, dict[str, Any]]:
    path = folder(repository, commit) / "plan.json"
    return read_json(path, "a sample's plan") if path.is_file() else {}


def _planned(repository: Repository, commit: str) -> dict[str, dict[str, Any]]:
    """The pieces by name: the file, the place in it, the rows drawn there, the bytes to read."""
    if pieces := _read_plan(repository, commit):
        return pieces
    with _told(repository, commit):
        listed = huggingface_hub.HfApi().list_repo_tree(
            repository.id, recursive=True, revision=commit, repo_type=repository.kind
        )
        sizes = {file.path: file.size for file in listed if hasattr(file, "size")}
        for i, (split, n) in enumerate(zip(("train", "test"), repository.sample, strict=True)):
            files = _files(repository, commit, split, list(sizes))
            if files[0].endswith(".parquet"):
                planned = _row_groups(repository, commit, split, files, n, SEED + i)
            else:
                planned = _blocks(repository, files, sizes, n, SEED + i)
            names = (f"{split}-{j:05}-of-{len(planned):05}" for j in range(len(planned)))
            pieces |= zip(names, planned, strict=True)
        folder(repository, commit).mkdir(parents=True, exist_ok=True)
        text = json.dumps(pieces, indent=0)
        paths.write_whole(folder(repository, commit) / "plan.json", text.encode())
    return pieces


def _files(repository: Repository, commit: str, split: str, listed: Sequence[str]) -> list[str]:
    """The files of one split: Parquet, or else plain CSV."""
    for patterns in NEEDED.get(repository.files, [repository.files]):
        matching = [f for f in sorted(listed) if any(fnmatch(f, pattern) for pattern in patterns)]
        matching = [f for f in matching if split in Path(f).name]
        if matching and all(f.endswith((".parquet", ".csv")) for f in matching):
            return matching
    raise DataError(
        f"'{repository.name}': {repository.id} at {commit} has no file of {split} "
        "in Parquet or uncompressed CSV, the formats of which parts can be read. "
        f"See {repository.card}, or use a local folder."
    )


@contextmanager
def _opened(repository: Repository, commit: str, file: str) -> Iterator[Any]:
    """A file on the hub; what is read of it is one request each."""
    files = huggingface_hub.HfFileSystem(skip_instance_cache=True)
    place = f"{repository.kind}s/{repository.id}@{commit}/{file}"
    with files.open(place, block_size=BLOCK, cache_type="none") as f:
        yield f


# ---- Parquet ------------------------------------------------------------------------------------


def _columns(repository: Repository, schema: Any) -> list[str]:
    table = repository.table
    names = (table.label, *table.text) if table else COLUMNS
    return [name for name in schema.names if name in names]


def _row_groups(
    repository: Repository, commit: str, split: str, files: Sequence[str], n: int, seed: int
) -> list[dict[str, Any]]:
    """The pieces of a split in Parquet: ``n`` of all rows in the row groups of ``places``."""
    groups: list[dict[str, Any]] = []
    sizes: list[int] = []
    classes: list[tuple[int, int] | None] = []
    for name in files:
        with _opened(repository, commit, name) as opened:
            file = pq.ParquetFile(opened)
            names = set(_columns(repository, file.schema_arrow))
            for g in range(file.num_row_groups):
                group = file.metadata.row_group(g)
                columns = [group.column(c) for c in range(group.num_columns)]
                part = {
                    c.path_in_schema: c for c in columns if c.path_in_schema.split(".")[0] in names
                }
                label = part.get(repository.table.label if repository.table else "label")
                has_range = label and label.is_stats_set and label.statistics.has_min_max
                classes.append((label.statistics.min, label.statistics.max) if has_range else None)
                sizes.append(group.num_rows)
                n_bytes = sum(c.total_compressed_size for c in part.values())
                groups.append({"file": name, "place": g, "bytes": n_bytes})
    rows = (repository.table and repository.table.rows) or {}
    if sum(sizes) != rows.get(split, sum(sizes)) or not sum(sizes):
        raise DataError(
            f"'{repository.name}': {repository.id} at {commit} has {sum(sizes):,} rows of {split}, "
            f"expected {rows.get(split, 1):,}. See {repository.card}; it may be another data set."
        )
    chosen = places(sizes, classes, n, seed)
    total = sum(sizes[g] for g in chosen)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    is_drawn = torch.zeros(total, dtype=torch.bool).index_fill_(0, order[:n], True)
    pieces = zip(chosen, is_drawn.split([sizes[g] for g in chosen]), strict=True)
    return [groups[g] | {"rows": part.nonzero()[:, 0].tolist()} for g, part in pieces if part.any()]


def places(
    sizes: Sequence[int], classes: Sequence[tuple[int, int] | None], n: int, seed: int
) -> list[int]:
    """Return the row groups to read, in order: those at ``PLACES`` evenly spaced rows, at more if
    they hold fewer than ``n`` rows; in a file sorted by class also one for each class they lack.

    Args:
        sizes: Rows of each group.
        classes: Lowest and highest label of each, None where the file does not say.
        n: How many rows are wanted.
        seed: Decides where the first place lies.
    """
    shift = torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ends, count = torch.tensor(sizes).cumsum(0), PLACES
    while True:
        positions = ((torch.arange(count) + shift) * (ends[-1] / count)).long()
        chosen = set(torch.searchsorted(ends, positions, right=True).tolist())
        if sum(sizes[g] for g in chosen) >= min(n, int(ends[-1])):
            break
        count *= 2
    known = ((g, ends) for g, ends in enumerate(classes) if ends and isinstance(ends[0], int))
    ranges = {g: range(low, high + 1) for g, (low, high) in known}
    for label in sorted({c for labels in ranges.values() for c in labels}):
        if not any(label in ranges.get(g, ()) for g in chosen):
            chosen.add(next(g for g, labels in ranges.items() if label in labels))
    return sorted(chosen)


def _from_parquet(repository: Repository, file: Any, piece: dict[str, Any]) -> Any:
    columns = _columns(repository, file.schema_arrow)
    return file.read_row_group(piece["place"], columns=columns).take(piece["rows"])


# ---- CSV ----------------------------------------------------------------------------------------


def _blocks(
    repository: Repository, files: Sequence[str], sizes: dict[str, int], n: int, seed: int
) -> list[dict[str, Any]]:
    """The pieces of a split in CSV: the first rows of blocks, or ``n`` of a small file's."""
    if len(files) > 1:
        raise DataError(
            f"'{repository.name}': a split lies in {len(files)} CSV files ({files[0]}, ...), and a "
            "sample is read from one. Use a local folder, or set tasks.source to hub."
        )
    size, rows = sizes[files[0]], -(-n // PLACES)
    block = max(BLOCK, rows * LONG_ROW)
    count = PLACES if size > PLACES * block else 1
    block, rows = (block, rows) if count > 1 else (size, n)
    return [
        {"file": files[0], "place": i * size // count, "bytes": block, "rows": [rows, seed + i]}
        for i in range(count)
    ]


def _from_csv(repository: Repository, file: Any, piece: dict[str, Any]) -> Any:
    file.seek(0)
    start, table = piece["place"], repository.table
    header = next(
        csv.reader([file.read(min(BLOCK, file.size)).split(b"\n")[0].decode("utf-8-sig")])
    )
    header = [name.strip() for name in header]
    columns = _columns(repository, pa.schema([(name, pa.string()) for name in header]))
    if table.label not in columns:
        raise DataError(
            f"'{repository.name}': {repository.id} has no column {table.label} in {file.path}; "
            f"found {', '.join(header)}. See {repository.card}."
        )
    file.seek(start)
    rows = rows_of_block(
        file.read(piece["bytes"]),
        len(header),
        header.index(table.label),
        first=not start,
        last=start + piece["bytes"] >= file.size,
    )
    if rows is None:
        raise DataError(
            f"'{repository.name}': {repository.id}: {file.path} cannot be read from byte {start} "
            f"on: no whole row was found there. See {repository.card}, or use a local folder."
        )
    n_rows, seed = piece["rows"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n_rows]
    sampled = [rows[i] for i in order.sort().values.tolist()]
    return pa.table(
        {
            name: [int(r[i]) if name == table.label else r[i] for r in sampled]
            for i, name in enumerate(header)
            if name in columns
        }
    )


def rows_of_block(
    block: bytes, width: int, label: int, *, first: bool, last: bool
) -> list[list[str]] | None:
    """Return the whole rows in a part of a CSV file.

    A line may begin inside a quoted text. Rows read from there do not all have ``width`` columns
    with a number in column ``label``, and the next line is tried. The first row may fit by chance,
    and is dropped.

    Args:
        block: The part's bytes.
        width: Number of columns.
        label: Index of the column that holds whole numbers.
        first: Whether the part begins the file, and so with its header; its first row is then kept.
        last: Whether the part ends the file; otherwise its last row may be cut off, and is dropped.

    Returns:
        The rows, or None if no line fits.
    """
    text = block.decode("utf-8", errors="replace")
    for begin in [i for i, c in enumerate(text) if c == "\n"][:TRIES]:
        try:
            rows = list(csv.reader(io.StringIO(text[begin + 1 :], newline=""), strict=last))
        except csv.Error:
            continue
        rows = [row for row in (rows if last else rows[:-1]) if row][not first :]
        if rows and all(len(row) == width and row[label].strip().isdigit() for row in rows):
            return rows
    return None
