"""Reads data in every form (tables, lists, files, folders), for tasks, scores and alignment alike.

Files are untrusted: they are read within limits, and anything irregular is refused with file and
line. (The standard library's csv and json read them: pandas silently fills and joins ragged rows.)
"""

from __future__ import annotations

import csv
import gzip
import json
import mimetypes
import os
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..core.documents import user_path
from ..core.errors import DataError, shortened
from ..core.types import Split
from ..protocols import uniform_order
from .parquet import IMAGE_SUFFIXES, MAX_ROWS, ROWS_AT_A_TIME, label_names, opened
from .rows import (
    LABEL_COLUMNS,
    MARK,
    NUL,
    PAIR_COLUMNS,
    SINGLE,
    TEXT_COLUMNS,
    Rows,
    columns_of,
    from_python,
    rows,
    targets,
)

# Long reviews exceed csv's limit of 128 KiB; an unclosed quote, or a bomb, would swallow the whole
# file.
MAX_TEXT = 16 << 20  # characters
csv.field_size_limit(MAX_TEXT)
# A file may not expand to more than MAX_GROWTH times its bytes, beyond MAX_PLAIN; prose expands 2-5
# times.
MAX_GROWTH = 50
MAX_PLAIN = 32 << 20
LIMIT_SEED = 11


def rows_of(
    data: Any,
    *,
    labelled: bool = True,
    is_image: bool = False,
    text_column: str | int | None = None,
    where: str = "The data",
    problem: str = SINGLE,
) -> Rows:
    """Inputs, and labels if ``labelled``, from any form of data: a list of pairs, a pair of lists,
    a DataFrame, a ``datasets.Dataset``, a ``Split``, or the name of a file or folder.

    Args:
        data: N inputs in one of these forms; ``Rows`` are returned as they are.
        labelled: Whether the data have labels.
        is_image: Whether inputs are images.
        text_column: A table's column of the text: its name, or its number from 0.
        where: What messages call the data; a file is called by its name.
        problem: What a label may be, see ``rows.READERS``.

    Raises:
        DataError: Anything else, see ``from_python`` and ``read_file``.
    """
    if isinstance(data, Rows):
        return data
    if isinstance(data, Split):
        labels = data.labels if problem == SINGLE else data.labels.view(len(data), -1)
        return Rows(list(data.inputs), labels.tolist(), where=where)
    form = {"labelled": labelled, "is_image": is_image, "text_column": text_column}
    if isinstance(data, str | os.PathLike):
        return read_file(data, problem=problem, **form)
    return from_python(data, where=where, problem=problem, **form)


def unlabelled(data: Any, is_image: bool, text_column: str | int | None = None) -> list[Any]:
    """The inputs of ``rows_of``, ignoring labels."""
    return list(rows_of(data, labelled=False, is_image=is_image, text_column=text_column).inputs)


def labelled(
    data: Any,
    names: Sequence[str],
    owner: str,
    *,
    is_image: bool,
    text_column: str | int | None = None,
    first_label: int | None = None,
    limit: int = 0,
    problem: str = SINGLE,
) -> Split:
    """``rows_of`` with the classes of ``owner``, see ``targets``.

    Args:
        data: What ``rows_of`` takes.
        names: The classes' names, in the order of the head's outputs.
        owner: The task or model that has them, for messages.
        is_image, text_column: As of ``rows_of``.
        first_label: The number of the first class in a file, see ``numbered``.
        limit: Rows to keep, drawn with a fixed seed; 0 keeps all.
        problem: What the head predicts, see ``rows.READERS``.

    Raises:
        DataError: Data that cannot be used, or a label that is none of ``names``.
    """
    table = rows_of(data, is_image=is_image, text_column=text_column, problem=problem)
    if isinstance(data, Split) and problem == SINGLE:  # 0-based by definition, whatever the names
        table = Rows(table.inputs, table.labels, tuple(f"LABEL_{c}" for c in range(len(names))))
        label = next((y for y in table.labels if not 0 <= y < len(names)), None)
        if label is not None:
            raise DataError(f"Label {label} is none of '{owner}'s: 0..{len(names) - 1}.")
    split = Split(tuple(table.inputs), targets(table, names, owner, problem, first_label))
    if limit and limit < len(split):
        split = split.subset(uniform_order(len(split), limit, LIMIT_SEED))
    return split


def read_file(
    path: str | os.PathLike,
    *,
    labelled: bool,
    is_image: bool,
    text_column: str | int | None,
    problem: str,
) -> Rows:
    """Rows of a .csv, .tsv, .jsonl (each also .gz) or .parquet; unlabelled texts also of a .txt, a
    text per line; images of a folder with a folder per class. Suffixes in any letter case.

    Args:
        path: The file or folder.
        labelled: Whether labels are read; if not, a folder holds the images themselves.
        is_image: Whether inputs are images; then a folder or a .parquet.
        text_column: The text's column: its name, or its number from 0.
        problem: What a label may be, see ``rows.READERS``.

    Raises:
        DataError: With file and line: what cannot be read.
    """
    source = user_path(path)
    if not source.exists():
        hint = "" if os.path.splitext(source)[1] else " (Texts are given as a list of texts.)"
        raise DataError(f"There is no file or folder '{path}'.{hint}")
    kind = (source.with_suffix("") if source.suffix.lower() == ".gz" else source).suffix.lower()
    options: dict[str, Any] = {"labelled": labelled, "text_column": text_column, "problem": problem}
    if is_image:
        formats = f"a folder {'with a folder of images per class' if labelled else 'of images'}"
        formats += ", or .parquet,"
        if source.is_dir():
            return _image_folder(source, labelled)
    else:
        formats = ".csv, .tsv, .jsonl or .parquet"
        formats += "" if labelled else ", or .txt with a text a line,"
        if kind == ".txt" and not labelled:
            return _text_lines(source)
        if kind in READERS and source.is_file():
            return READERS[kind](source, **options)
    if kind == ".parquet" and source.is_file():
        return _parquet(source, is_image=is_image, **options)
    raise DataError(
        f"'{path}' holds no {'labelled ' if labelled else ''}inputs "
        f"that can be read: {formats} is read."
    )


# ---- text files -------------------------------------------------------------------------------


@contextmanager
def _open(path: Path, newline: str = "\n") -> Iterator[TextIO]:
    """A UTF-8 file, plain or gzipped, without its byte-order mark. Errors while reading in the
    block become ``DataError``."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=newline) as f:
            yield f
    except (UnicodeDecodeError, OSError, EOFError, zlib.error, MemoryError) as error:
        reason = str(error) or type(error).__name__  # a decoder's repr holds all the bytes
        raise DataError(f"{path}: cannot be read as UTF-8 text ({reason}).") from error


def _lines(f: TextIO, path: Path) -> Iterator[str]:
    """The lines of an open file, in bounded memory, without byte-order marks: a file that was
    joined from several holds them at the beginning of lines, too.

    Raises ``DataError`` for a line above ``MAX_TEXT``, a NUL, or a gzip file that unfolds into more
    than ``MAX_GROWTH`` times its bytes.
    """
    total, most = 0, max(MAX_PLAIN, MAX_GROWTH * path.stat().st_size)
    while line := f.readline(MAX_TEXT + 1):
        total += len(line)
        if "\0" in line:
            raise DataError(f"{path}: {NUL}; save it as UTF-8.")
        if len(line) > MAX_TEXT:
            raise DataError(
                f"{path}: a line of more than {MAX_TEXT >> 20} million characters; "
                "this is not a file of texts, or a quote is never closed."
            )
        if total > most:
            raise DataError(
                f"{path}: expands to more than {MAX_GROWTH} times its size; "
                "unpack it and check its contents."
            )
        yield line.lstrip(MARK)


def _text_lines(path: Path) -> Rows:
    """One text per line; blank lines are skipped."""
    texts: list[str] = []
    numbers = array("q")
    with _open(path) as f:
        for i, line in enumerate(_lines(f, path), start=1):
            text = line.removesuffix("\n").removesuffix("\r")
            if "\r" in text:
                raise DataError(
                    f"{path}, line {i}: a carriage return within a line; save the file with "
                    "lines that end in a line feed."
                )
            if text.strip():
                texts.append(text)
                numbers.append(i)
    return rows(texts, None, where=str(path), lines=numbers)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(
            f"one of the keys {shortened(', '.join(k for k, _ in pairs))} stands twice"
        )
    return content


def _json_lines(path: Path, **options: Any) -> Rows:
    """A JSON object per line with named fields, or an array of such objects."""
    table: list[Any] = []
    numbers = array("q")
    with _open(path) as f:
        for i, line in enumerate(_lines(f, path), start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line, object_pairs_hook=_unique)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {i}: no JSON ({error}); give an object per line."
                ) from error
            items = value if isinstance(value, list) and not table else [value]
            if not all(isinstance(row, dict) for row in items):
                raise DataError(
                    f'{path}, line {i}: give an object per line: {{"text": ..., "label": ...}}.'
                )
            table += items
            numbers += array("q", [i] * len(items))
    return from_python(table, is_image=False, first=None, where=str(path), lines=numbers, **options)


def read_csv(
    path: Path,
    *,
    text_column: str | int | None = None,
    labelled: bool = True,
    keep_empty: bool = False,
    label_first: bool = False,
    problem: str = SINGLE,
) -> Rows:
    """Labels and texts of one CSV or TSV, plain or gzipped.

    A header names the columns (see ``columns_of``). Without one, the label is in the first column
    and the text in the last, of two or three; other numbers of columns need ``text_column``. Texts
    such as "null" or "NA" are texts. Quotes in a TSV are text, unless they enclose a cell.

    Args:
        path: The file.
        text_column: The text's column: its name in the header, or its number from 0.
        labelled: Whether labels are read.
        keep_empty: Whether a text may be empty.
        label_first: Whether the first column is known to be the label.
        problem: What a label may be, see ``rows.READERS``.

    Raises:
        DataError: With file and line: an empty or unreadable row, a missing column or, unless
            ``keep_empty``, an empty text; and, without a header, unless ``label_first``, where the
            first of three or more columns holds a different number in every row: it may be an index
            or the label; or, without labels and a header, where the last column repeats itself more
            often than the first, as labels do.
    """
    tabs = ".tsv" in [s.lower() for s in path.suffixes[-2:]]
    style: dict[str, Any] = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    )
    header, width, places = [], 0, (0, None, None, None)  # of text, label, its name, second text
    cells: tuple[list[str], ...] = ([], [], [], [])  # at these places
    numbers = array("q")
    firsts: set[str] = set()  # in the first column: it may count the rows, or be the text
    unsure = not label_first and (labelled or text_column is None)
    reader = None
    try:
        with _open(path, newline="") as f:
            reader = csv.reader(_lines(f, path), **style)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if not any(cell.strip() for cell in row):
                    raise DataError(f"{where}: the row is empty; remove it.")
                row = [_unquoted(cell) for cell in row] if tabs else row
                if not width:
                    width = len(row)
                    if _is_header(row, labelled, text_column):
                        header = row
                        places = columns_of(row, where, labelled=labelled, text_column=text_column)
                    else:
                        places = _places(width, text_column, labelled, where)
                    pairs = zip(cells[1:], places[1:], strict=True)
                    taken = [(values, place) for values, place in pairs if place is not None]
                    if header:
                        continue
                if len(row) != width:
                    remedy = "no text may hold a tab" if tabs else "quote texts that hold commas"
                    raise DataError(
                        f"{where}: {len(row)} columns, the rows before have {width}; {remedy}."
                    )
                if len(numbers) == MAX_ROWS // 2:
                    raise DataError(f"{where}: more than {MAX_ROWS // 2:,} rows; split the file.")
                cells[0].append(row[places[0]])
                for values, place in taken:
                    values.append(sys.intern(row[place]))
                numbers.append(reader.line_num)
                if unsure and width > 1 and not header:
                    firsts.add(row[0].strip())
    except csv.Error as error:
        line = f", near line {reader.line_num}" if reader else ""
        raise DataError(f"{path}{line}: cannot be read as UTF-8 CSV ({error}).") from error
    are_numbers = all(map(str.isdigit, firsts))
    is_index = are_numbers and len(firsts) == len(numbers)
    if width > 2 and is_index and (len(firsts) > 1 or "0" in firsts):
        raise DataError(
            f"{path}: its first column holds a different number in every row: is it an index "
            "(index,text,label) or the label (label,title,text)? Give the file a header."
        )
    if not (labelled or are_numbers) and len(firsts) > len({*cells[0]}):
        raise DataError(
            f"{path}: without a header that it knows, the last column would be the text, but it "
            "repeats itself more often than the first. Say which is the text (--text-column 0), or "
            "give the file a header: text."
        )
    if header and labelled and header[places[1]].strip() in map(str.strip, cells[1]):
        raise DataError(
            f"{path}, line 1: '{shortened(header[places[1]].strip())}' is a class, too; is this "
            "line a row or a header? Give the file a header: label,text."
        )
    table = (None if place is None else values for values, place in zip(cells, places, strict=True))
    fields = {"where": str(path), "lines": numbers, "first": None, "keep_empty": keep_empty}
    return rows(*table, problem=problem, **fields)


def _unquoted(cell: str) -> str:
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell


def _is_header(row: Sequence[str], labelled: bool, text_column: str | int | None) -> bool:
    """Whether a first row is a header: one cell is the named ``text_column``, else a usual name for
    labels or, if labels are not needed, for texts."""
    cells = [cell.lstrip(MARK).strip().lower() for cell in row]
    named = text_column.strip().lower() if isinstance(text_column, str) else ""
    if named in cells and named and not named.isdigit():
        return True
    known = [c for c in cells if c in (*LABEL_COLUMNS, *TEXT_COLUMNS, *PAIR_COLUMNS)]
    of_labels = any(c in LABEL_COLUMNS for c in cells) and (len(known) > 1 or len(row) == 2)
    return not any(c.isdigit() for c in cells) and (of_labels or bool(known and not labelled))


def _places(
    width: int, text_column: str | int | None, labelled: bool, where: str
) -> tuple[int, int | None, None, None]:
    """``columns_of`` without a header."""
    if text_column is None:
        if width in (2, 3) or (width == 1 and not labelled):
            return width - 1, 0 if labelled else None, None, None
        raise DataError(
            f"{where}: {width} columns; name the text column with --text-column (counted from 0). "
            "Columns are separated by commas, in a .tsv by tabs."
        )
    first = int(labelled)
    if not str(text_column).isdigit() or not first <= int(text_column) < width:
        raise DataError(
            f"{where}: --text-column {text_column} does not exist; columns {first}..{width - 1} "
            "can hold text, and no header names them."
        )
    return int(text_column), 0 if labelled else None, None, None


READERS = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
}


# ---- Parquet and images -----------------------------------------------------------------------


def _parquet(
    path: Path, *, labelled: bool, is_image: bool, text_column: str | int | None, problem: str
) -> Rows:
    """Columns of a Parquet file; its names of classes are those of a ``ClassLabel``."""
    form = {"labelled": labelled, "is_image": is_image, "text_column": text_column}
    with opened(path) as file:
        columns = file.schema_arrow.names
        places = columns_of(columns, str(path), **form)
        chosen = [columns[i] for i in places if i is not None]
        values: dict[str, list[Any]] = {c: [] for c in chosen}
        room = max(MAX_PLAIN, MAX_GROWTH * path.stat().st_size)
        for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME, columns=chosen):
            for c in chosen:
                column = batch.column(c)
                if hasattr(column, "dictionary_decode"):  # a repeated text may be stored once
                    column = column.dictionary_decode()
                room -= column.nbytes
                if room < 0:
                    raise DataError(f"{path}: expands to more than {MAX_GROWTH} times its size.")
                values[c] += column.to_pylist()
        names = label_names(file.schema_arrow, path, chosen[1]) if labelled else ()
    cells = (None if i is None else values[columns[i]] for i in places)
    fields = {"is_image": is_image, "where": str(path), "first": None, "names": names}
    return rows(*cells, problem=problem, **fields)


def _images(folder: Path) -> list[Path]:
    """Image files at any depth, except hidden ones such as macOS's "._name". Raises ``DataError``
    for an image in an unsupported format."""
    images = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in inside) or path.is_dir():
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        elif (mimetypes.guess_type(path.name)[0] or "").startswith("image/"):
            raise DataError(
                f"{path}: supported image formats are "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}; convert it."
            )
    return images


def _image_folder(folder: Path, labelled: bool) -> Rows:
    """Images below ``folder``; with labels, those of a folder per class."""
    if not labelled:
        return rows(_images(folder), None, is_image=True, where=str(folder))
    classes = sorted(
        p for p in folder.iterdir() if p.is_dir() and p.name[0] != "." and p.name != "__MACOSX"
    )
    images = [(path, place.name) for place in classes for path in _images(place)]
    loose = sum(path.parent == folder for path in _images(folder))
    if loose or not images:
        raise DataError(
            f"'{folder}' holds "
            f"{f'{loose} images in no folder of a class' if loose else 'no images'}; "
            "labelled inputs are images in one folder per class."
        )
    labels = [label for _, label in images]
    if all(t.isascii() and t.isdigit() for t in labels) and len(set(map(int, labels))) == len(
        set(labels)
    ):
        labels = [str(int(t)) for t in labels]  # 00000, 00001, ... count as numbers, too
    return rows([p for p, _ in images], labels, is_image=True, where=str(folder), first=None)
