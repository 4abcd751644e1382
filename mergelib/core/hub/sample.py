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
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub import constants

from .. import paths
from ..documents import read_json
from ..errors import DataError
from ..progress import progress
from ..types import shuffled
from .errors import as_ours
from .repository import Repository

SEED = 20_241_221
PLACES = 64  # of a split; more where these hold too few rows
BLOCK, LONG_ROW = 64 << 10, 2 << 10  # bytes: the smallest block, and what a row may need of it
TRIES = 200  # line breaks of a block after which a first row is sought
LABEL, IMAGES = "label", ("image",)  # columns of image sets


Piece = dict[str, Any]
"""The file, the place in it, the rows drawn there, the bytes to read."""


@dataclass(frozen=True)
class Sample:
    """A sample of a repository at one commit."""

    repository: Repository
    commit: str
    hashed = "hash in its name"

    @cached_property
    def folder(self) -> Path:
        """Where the pieces are, beside the client's cache."""
        asked = self.repository
        name = f"{asked.kind}s--{asked.id.replace('/', '--')}"
        rows = "-".join(map(str, asked.sample))
        return Path(constants.HF_HUB_CACHE).parent / "mergelib" / name / self.commit / rows

    @cached_property
    def label(self) -> str:
        """The column of labels."""
        return self.repository.table.label if self.repository.table else LABEL

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        table = self.repository.table
        return (self.label, *(table.text if table else IMAGES))

    def fetch(self) -> dict[str, Path]:
        """Return every piece by its name, read from the hub where it is missing or damaged."""
        pieces = self._planned()
        for path in self._found().values():
            if self.damaged(path):
                path.unlink()
        found = self._found()
        missing = {name: piece for name, piece in pieces.items() if name not in found}
        with (
            as_ours(self.repository, self.commit),
            progress(desc=f"read {self.repository.name}", total=len(missing)) as bar,
        ):
            for file, group in groupby(missing.items(), lambda item: item[1]["file"]):
                with self._opened(file) as source:
                    read = self._from_csv
                    if file.endswith(".parquet"):
                        source, read = pq.ParquetFile(source, pre_buffer=True), self._from_parquet
                    for name, piece in group:
                        pq.write_table(read(source, piece), buffer := io.BytesIO())
                        content = buffer.getvalue()
                        end = f"{sha256(content).hexdigest()[:16]}.parquet"
                        paths.write_whole(self.folder / f"{name}.{end}", content)
                        bar.update()
        return self.kept()

    def kept(self) -> dict[str, Path]:
        """Return every piece by its name, without network; an empty dict if any is missing."""
        pieces, files = self._read_plan(), self._found()
        return {name: files[name] for name in pieces} if pieces.keys() <= files.keys() else {}

    def plan(self) -> tuple[int, int, int]:
        """Return how many pieces there are, the bytes to read for all, and for those still
        missing."""
        found = self._found()
        sizes = {name: piece["bytes"] for name, piece in self._planned().items()}
        missing = sum(n for name, n in sizes.items() if name not in found)
        return len(sizes), sum(sizes.values()), missing

    @staticmethod
    def damaged(path: Path) -> bool:
        """Return whether a piece's bytes do not match the hash in its name."""
        return sha256(path.read_bytes()).hexdigest()[:16] != path.name.split(".")[1]

    def _found(self) -> dict[str, Path]:
        files = self.folder.glob("*-of-*.*.parquet")
        return {path.name.split(".")[0]: path for path in sorted(files)}

    def _read_plan(self) -> dict[str, Piece]:
        path = self.folder / "plan.json"
        return read_json(path, "a sample's plan") if path.is_file() else {}

    def _planned(self) -> dict[str, Piece]:
        """The pieces by name, as ``plan.json`` has them or else drawn now."""
        asked, pieces = self.repository, self._read_plan()
        if pieces:
            return pieces
        with as_ours(asked, self.commit):
            listed = huggingface_hub.HfApi().list_repo_tree(
                asked.id, recursive=True, revision=self.commit, repo_type=asked.kind
            )
            sizes = {file.path: file.size for file in listed if hasattr(file, "size")}
            for i, (split, n) in enumerate(zip(("train", "test"), asked.sample, strict=True)):
                files = self._files_of(split, sorted(sizes))
                if files[0].endswith(".parquet"):
                    planned = self._row_groups(split, files, n, SEED + i)
                else:
                    planned = self._blocks(files, sizes[files[0]], n, SEED + i)
                names = (f"{split}-{j:05}-of-{len(planned):05}" for j in range(len(planned)))
                pieces |= zip(names, planned, strict=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            paths.write_whole(self.folder / "plan.json", json.dumps(pieces, indent=0).encode())
        return pieces

    def _files_of(self, split: str, listed: Sequence[str]) -> list[str]:
        """The files of one split: Parquet, or else plain CSV."""
        for wanted in self.repository.wanted:
            files = [f for f in listed if split in Path(f).name]
            files = [f for f in files if any(fnmatch(f, pattern) for pattern in wanted)]
            if files and all(f.endswith((".parquet", ".csv")) for f in files):
                return files
        raise self._refused(
            f"has no file of {split} in Parquet or uncompressed CSV, the formats of which parts "
            "can be read"
        )

    def _refused(self, why: str) -> DataError:
        asked = self.repository
        return DataError(
            f"'{asked.name}': {asked.id} at {self.commit} {why}. See {asked.card}, use a local "
            "folder, or set tasks.source to hub."
        )

    @contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        """A file on the hub; what is read of it is one request each."""
        files = huggingface_hub.HfFileSystem(skip_instance_cache=True)
        place = f"{self.repository.kind}s/{self.repository.id}@{self.commit}/{file}"
        with files.open(place, block_size=BLOCK, cache_type="none") as f:
            yield f

    # ---- Parquet --------------------------------------------------------------------------------

    def _row_groups(self, split: str, files: Sequence[str], n: int, seed: int) -> list[Piece]:
        """The pieces of a split in Parquet: ``n`` of all rows in the row groups of ``places``."""
        groups: list[Piece] = []
        sizes: list[int] = []
        classes: list[range] = []
        for name in files:
            with self._opened(name) as opened:
                metadata = pq.ParquetFile(opened).metadata
            for g in range(metadata.num_row_groups):
                group = metadata.row_group(g)
                columns = [group.column(c) for c in range(group.num_columns)]
                part = [c for c in columns if c.path_in_schema.split(".")[0] in self.columns]
                n_bytes = sum(c.total_compressed_size for c in part)
                groups.append({"file": name, "place": g, "bytes": n_bytes})
                sizes.append(group.num_rows)
                classes.append(
                    next((_values(c) for c in part if c.path_in_schema == self.label), range(0))
                )
        table, total = self.repository.table, sum(sizes)
        expected = ((table and table.rows) or {}).get(split, total or 1)
        if total != expected:
            raise self._refused(f"has {total:,} rows of {split}, expected {expected:,}")
        chosen = places(sizes, classes, n, seed)
        parts = [sizes[g] for g in chosen]
        order = shuffled(sum(parts), seed)
        is_drawn = torch.zeros(sum(parts), dtype=torch.bool).index_fill_(0, order[:n], True)
        return [
            groups[g] | {"rows": drawn.nonzero()[:, 0].tolist()}
            for g, drawn in zip(chosen, is_drawn.split(parts), strict=True)
            if drawn.any()
        ]

    def _from_parquet(self, file: pq.ParquetFile, piece: Piece) -> pa.Table:
        columns = [name for name in file.schema_arrow.names if name in self.columns]
        return file.read_row_group(piece["place"], columns=columns).take(piece["rows"])

    # ---- CSV ------------------------------------------------------------------------------------

    def _blocks(self, files: Sequence[str], size: int, n: int, seed: int) -> list[Piece]:
        """The pieces of a split in CSV: the first rows of blocks, or ``n`` of a small file's."""
        if len(files) > 1:
            raise self._refused(
                f"has a split in {len(files)} CSV files ({files[0]}, ...), and a sample is read "
                "from one"
            )
        rows = -(-n // PLACES)
        block, count = max(BLOCK, rows * LONG_ROW), PLACES
        if size <= PLACES * block:
            block, rows, count = size, n, 1
        return [
            {"file": files[0], "place": i * size // count, "bytes": block, "rows": [rows, seed + i]}
            for i in range(count)
        ]

    def _from_csv(self, file: Any, piece: Piece) -> pa.Table:
        file.seek(0)
        first_line = file.read(min(BLOCK, file.size)).split(b"\n")[0].decode("utf-8-sig")
        header = [name.strip() for name in next(csv.reader([first_line]))]
        if self.label not in header:
            raise self._refused(
                f"has no column {self.label} in {file.path}; found {', '.join(header)}"
            )
        start = piece["place"]
        file.seek(start)
        rows = rows_of_block(
            file.read(piece["bytes"]),
            len(header),
            header.index(self.label),
            first=not start,
            last=start + piece["bytes"] >= file.size,
        )
        if rows is None:
            raise self._refused(
                f"has a file {file.path} that cannot be read from byte {start} on: no whole row "
                "was found there"
            )
        n_rows, seed = piece["rows"]
        order = shuffled(len(rows), seed)[:n_rows]
        sampled = [rows[i] for i in order.sort().values.tolist()]
        table = {
            name: [row[i] for row in sampled]
            for i, name in enumerate(header)
            if name in self.columns
        }
        return pa.table(table | {self.label: [int(label) for label in table[self.label]]})


def _values(column: Any) -> range:
    """All values between a column's lowest and highest; none if the file does not say."""
    known = column.is_stats_set and column.statistics.has_min_max
    if not known or not isinstance(column.statistics.min, int):
        return range(0)
    return range(column.statistics.min, column.statistics.max + 1)


def places(sizes: Sequence[int], classes: Sequence[range], n: int, seed: int) -> list[int]:
    """Return the row groups to read, in order: those at ``PLACES`` evenly spaced rows, at more if
    they hold fewer than ``n`` rows; in a file sorted by class also one for each class they lack.

    Args:
        sizes: Rows of each group.
        classes: From the lowest to the highest label of each, empty where the file does not say.
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
    for label in sorted(set().union(*classes)):
        if not any(label in classes[g] for g in chosen):
            chosen.add(next(g for g, labels in enumerate(classes) if label in labels))
    return sorted(chosen)


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
