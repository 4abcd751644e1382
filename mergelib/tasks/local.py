"""Tasks from local CSV folders in the layout of the official pipeline."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch

from ..documents import user_path
from ..errors import DataError
from ..types import Split

# Long reviews exceed csv's default limit of 128 KiB; a quote that is never closed, or a bomb, would take the whole file for one text.
MAX_TEXT = 16 << 20  # characters
csv.field_size_limit(MAX_TEXT)
MAX_GROWTH = 50  # a gzip file may not unfold into more than this times its bytes, beyond MAX_PLAIN characters; prose takes 2 to 5
MAX_PLAIN = 32 << 20
MAX_CLASSES = 10_000  # a larger label is a typing error, and would cost memory for names
LABEL_NAMES = {
    "ag": ("World", "Sports", "Business", "Sci/Tech"),
    "yelp": ("1 star", "2 stars", "3 stars", "4 stars", "5 stars"),
    "amazon": ("1 star", "2 stars", "3 stars", "4 stars", "5 stars"),
    "yahoo": (
        "Society & Culture",
        "Science & Mathematics",
        "Health",
        "Education & Reference",
        "Computers & Internet",
        "Sports",
        "Business & Finance",
        "Entertainment & Music",
        "Family & Relationships",
        "Politics & Government",
    ),
    "dbpedia": (
        "Company",
        "Educational Institution",
        "Artist",
        "Athlete",
        "Office Holder",
        "Mean of Transportation",
        "Building",
        "Natural Place",
        "Village",
        "Animal",
        "Plant",
        "Album",
        "Film",
        "Written Work",
    ),
}
"""Label names of the five data sets in the order of their published numbering."""


def find_csv(folder: Path, split: str) -> Path:
    """``<folder>/<split>.csv`` or ``.csv.gz``. Raises ``DataError`` naming both when neither exists."""
    for name in (f"{split}.csv", f"{split}.csv.gz"):
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"No {split}.csv or {split}.csv.gz in {folder}. Expected <text-dir>/<task>/{{train,test}}.csv[.gz]."
    )


def _lines(f: TextIO, path: Path) -> Iterator[str]:
    """The lines of an open file, in bounded memory. Raises ``DataError`` for a line above ``MAX_TEXT`` or a gzip file that unfolds into
    more than ``MAX_GROWTH`` times its bytes."""
    total, most = 0, max(MAX_PLAIN, MAX_GROWTH * path.stat().st_size)
    while line := f.readline(MAX_TEXT + 1):
        total += len(line)
        if len(line) > MAX_TEXT:
            raise DataError(
                f"{path}: a line of more than {MAX_TEXT >> 20} million characters; this is no file of texts, or a quote is never closed."
            )
        if total > most:
            raise DataError(
                f"{path}: unfolds into more than {MAX_GROWTH} times its size; unpack it and look at what it holds."
            )
        yield line


def read_csv(
    path: Path,
    *,
    text_column: int | None = None,
    limit: int | None = None,
    keep_empty: bool = False,
) -> Split:
    """Labels and texts of one CSV: no header, 1-based integer label first, text in column 2 (counted from 0) of three,
    in column 1 of two; any other number of columns needs ``text_column``. Plain or gzipped UTF-8.

    Texts such as "null" or "NA" are texts. ``limit`` keeps the first rows. Raises ``DataError`` with file and line number
    for an empty or unreadable row, a label that is no positive integer, a missing column, or, unless ``keep_empty``, an empty text.
    """
    labels, texts = [], []
    n_columns = None
    opener = gzip.open if path.suffix == ".gz" else open
    reader = None
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as f:
            reader = csv.reader(_lines(f, path), strict=True)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if not row or not any(cell.strip() for cell in row):
                    raise DataError(f"{where}: the row is empty; remove it.")
                n_columns = n_columns or len(row)
                if len(row) != n_columns:
                    raise DataError(
                        f"{where}: {len(row)} columns, the rows before have {n_columns}; quote texts that hold commas."
                    )
                column = text_column
                if column is None:
                    if n_columns not in (2, 3):
                        raise DataError(
                            f"{where}: {n_columns} columns; say which holds the text with --text-column (counted from 0)."
                        )
                    column = n_columns - 1
                if not 0 < column < n_columns:
                    raise DataError(
                        f"{where}: --text-column {column} does not exist; columns 1..{n_columns - 1} can hold text."
                    )
                try:
                    if "_" in row[0]:  # Python would read 1_0 as 10
                        raise ValueError
                    label = int(row[0])
                except ValueError:
                    raise DataError(
                        f"{where}: label {row[0][:20]!r} is not an integer. The first column is a 1-based label, "
                        "and there is no header."
                    ) from None
                if not 1 <= label <= MAX_CLASSES:
                    raise DataError(
                        f"{where}: label {str(label)[:20]}; labels count from 1 to at most {MAX_CLASSES}."
                    )
                if not (keep_empty or row[column].strip()):
                    raise DataError(
                        f"{where}: the text is empty; remove the row or choose another --text-column."
                    )
                labels.append(label - 1)
                texts.append(row[column])
                if limit and len(texts) >= limit:
                    break
    except (csv.Error, UnicodeDecodeError, OSError, EOFError, zlib.error, MemoryError) as error:
        line = f", near line {reader.line_num}" if reader else ""
        raise DataError(f"{path}{line}: cannot be read as UTF-8 CSV ({error}).") from error
    if not texts:
        raise DataError(f"{path}: no rows.")
    return Split(tuple(texts), torch.tensor(labels))


def local_splits(
    text_dir: Path | str, name: str, *, text_column: int | None = None
) -> tuple[tuple[str, ...], Split, Split]:
    """Label names, train and test split of task ``name`` under ``text_dir``. Unknown names get numbered labels.

    Raises ``DataError`` for a missing folder or file (naming what is there) or a label outside the known range.
    """
    folder = user_path(Path(text_dir) / name)
    if not folder.is_dir():
        there = (
            sorted(p.name for p in folder.parent.iterdir() if p.is_dir())
            if folder.parent.is_dir()
            else []
        )
        raise DataError(f"No folder {folder}. Found {', '.join(there) or 'nothing'} beside it.")
    train, test = (
        read_csv(find_csv(folder, split), text_column=text_column) for split in ("train", "test")
    )
    highest = 1 + int(max(train.labels.max(), test.labels.max()))
    names = LABEL_NAMES.get(name) or tuple(f"class {c + 1}" for c in range(highest))
    if highest > len(names):
        raise DataError(
            f"{folder}: label {highest}, but '{name}' has {len(names)} classes. Labels run from 1 to {len(names)}."
        )
    return names, train, test
