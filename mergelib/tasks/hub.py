"""Text tasks from the Hugging Face hub: Parquet or CSV files that ``mergelib.core.hub`` fetches.

Only data files are read, never code from a repository.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor

from ..core.errors import DataError, check_name
from ..core.hub import Repository, fetch, registry
from ..core.hub.errors import said
from ..core.types import Split, shuffled
from .local import LABEL_NAMES

if TYPE_CHECKING:
    from datasets import Dataset

SUBSAMPLE_SEED = 20_241_219
SOURCES = {
    "hub": "hub",
    "hub_sample": "samples from the hub",
    "released": "released CSV files",
    "local": "local files",
}
BLOCK = 10_000  # rows that become Python strings at a time


def hub_splits(
    name: str, *, n_train: int | None = None, n_test: int | None = None, sample: bool = False
) -> tuple[tuple[str, ...], Split, Split]:
    """Return label names, train and test split of a text task from the hub, or from its cache.

    The parts of a text are stripped and joined by one space, missing and empty parts skipped. A
    row without any text is dropped (and, in a subsample, replaced by the next row drawn).

    Args:
        name: The task's name in the registry.
        n_train: Rows to keep, drawn by a seeded permutation, without using labels; None keeps all
            rows in their order.
        n_test: The same for the test split.
        sample: Download only so many rows, see :mod:`mergelib.core.hub.sample`.

    Raises:
        UnknownNameError: The registry has no such task.
        DataError: The data differ from the registry: format, columns, class names, labels or rows.
        MergelibError: As :func:`mergelib.core.hub.fetch` does.
    """
    known = {task: entry for task, entry in registry().items() if entry.table}
    check_name("task on the hub", name, known)
    entry = known[name].model_copy(update={"sample": (n_train, n_test) if sample else None})
    files = fetch(entry)
    splits = []
    for i, (split, n) in enumerate((("train", n_train), ("test", n_test))):
        data = _read(entry, split, [path for path in files.values() if path.name.startswith(split)])
        labels = _labels(entry, data, LABEL_NAMES[name])
        splits.append(_sample(entry, data, labels, None if sample else n, SUBSAMPLE_SEED + i))
    return LABEL_NAMES[name], *splits


def _refused(entry: Repository, why: str) -> DataError:
    variants = "; ".join(entry.table.variants)
    return DataError(
        f"Task '{entry.name}': {entry.id} {why}. Known variants: {variants}. "
        f"Check {entry.card} and correct the registry, or use --text-dir."
    )


def _read(entry: Repository, split: str, paths: Sequence[Path]) -> Dataset:
    """One split, memory-mapped from the copy that ``datasets`` makes of its files."""
    from datasets import Dataset  # slow to import, and read here only

    is_csv = any(".csv" in path.name for path in paths)
    read = Dataset.from_csv if is_csv else Dataset.from_parquet
    try:
        data = read([str(path) for path in paths])
    except Exception as error:  # Arrow's, pandas' and its own; they have no common base
        raise _refused(entry, f"has a {split} split that cannot be read ({said(error)})") from error
    expected = ((not entry.sample and entry.table.rows) or {}).get(split, len(data))
    if len(data) != expected:
        raise _refused(entry, f"has {len(data):,} rows of {split}, expected {expected:,}")
    return data


def _labels(entry: Repository, data: Dataset, label_names: Sequence[str]) -> Tensor:
    """0-based labels of all rows, after checks of columns, class names and range."""
    table = entry.table
    expected = [table.label, *table.text]
    if missing := [c for c in expected if c not in data.column_names]:
        raise _refused(
            entry,
            f"has no column {', '.join(missing)}; found {', '.join(data.column_names)}, "
            f"expected {', '.join(expected)}",
        )
    for c in table.text:
        kind = data.data.column(c).type
        if kind not in (pa.string(), pa.large_string(), pa.null()):
            raise _refused(entry, f"has {kind} in column {c}, not text")
    names = getattr(data.features[table.label], "names", None) or label_names
    spelled, expected = ([plain(n).rstrip("s") for n in side] for side in (names, label_names))
    if spelled != expected:
        raise _refused(
            entry,
            f"names its classes {', '.join(names)}; expected, in this order: "
            f"{', '.join(label_names)}",
        )
    column = data.data.column(table.label)
    if column.null_count:
        raise _refused(entry, f"has {column.null_count} rows without {table.label}")
    try:
        labels = torch.from_numpy(column.cast(pa.int64()).to_numpy().copy())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _refused(
            entry, f"has {column.type} in column {table.label}, not integers ({error})"
        ) from error
    if not len(labels):
        raise _refused(entry, "has an empty split")
    first, last = table.first_label, table.first_label + len(label_names) - 1
    low, high = int(labels.min()), int(labels.max())
    if low < first or high > last:
        raise _refused(
            entry, f"has labels that run from {low} to {high}, expected {first} to {last}"
        )
    return labels - first


def plain(class_name: str) -> str:
    """A class name without differences in spelling between copies: case and spaces."""
    return re.sub(r"[\W_]", "", class_name).lower()


def _sample(entry: Repository, data: Dataset, labels: Tensor, n: int | None, seed: int) -> Split:
    """All rows with text in their order, or n of a seeded permutation, drawn before any is read."""
    whole = n is None or n >= len(data)
    order = range(len(data)) if whole else shuffled(len(data), seed).numpy()
    blocks = data.select_columns(list(entry.table.text)).select(order).iter(min(BLOCK, n or BLOCK))
    parts = (
        parts
        for block in blocks
        for parts in zip(*(block[c] for c in entry.table.text), strict=True)
    )
    texts = zip(order, map(join_parts, parts), strict=True)
    kept = dict(islice(((row, text) for row, text in texts if text), n))
    if not kept:
        raise _refused(entry, f"has no row with text in {', '.join(entry.table.text)}")
    return Split(tuple(kept.values()), labels[list(kept)])


def join_parts(parts: Sequence[str | None]) -> str:
    """Return the stripped, non-empty parts, joined by one space."""
    return " ".join(p for part in parts if part and (p := part.strip()))
