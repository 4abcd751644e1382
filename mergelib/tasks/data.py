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
from collections.abc import Callable, Iterator, Sequence
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
    TEXTS,
    Form,
    Rows,
    columns_of,
    from_python,
    plain_names,
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
    form = Form(labelled, is_image, text_column, problem)
    if isinstance(data, str | os.PathLike):
        return read_file(data, form)
    return from_python(data, form, where=where)


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
        classes = data.labels
        for label in classes[(classes < 0) | (classes >= len(names))].tolist():
            raise DataError(f"Label {label} is none of '{owner}'s: 0..{len(names) - 1}.")
    else:
        classes = targets(table, names, owner, problem, first_label)
    split = Split(tuple(table.inputs), classes)
    if limit and limit < len(split):
        split = split.subset(uniform_order(len(split), limit, LIMIT_SEED))
    return split


def read_file(path: str | os.PathLike, form: Form) -> Rows:
    """Rows of a .csv, .tsv, .jsonl (each also .gz) or .parquet; unlabelled texts also of a .txt, a
    text per line; images of a .parquet or a folder, with labels of a folder per class. Suffixes in
    any letter case.

    Raises ``DataError`` with file and line: what cannot be read.
    """
    source = user_path(path)
    if not source.exists():
        hint = "" if os.path.splitext(source)[1] else " (Texts are given as a list of texts.)"
        raise DataError(f"There is no file or folder '{path}'.{hint}")
    if form.is_image and source.is_dir():
        return _image_folder(source, form)
    readers: dict[str, Callable[[Path, Form], Rows]] = {".parquet": _parquet}
    if not form.is_image:
        readers = TEXT_READERS | readers
        if not form.labelled:
            readers[".txt"] = _text_lines
    kind = (source.with_suffix("") if source.suffix.lower() == ".gz" else source).suffix.lower()
    if kind in readers and source.is_file():
        return readers[kind](source, form)
    folders = " or a folder of images (with labels, one folder per class)" * form.is_image
    raise DataError(
        f"'{path}' holds no {'labelled ' * form.labelled}inputs that can be read: "
        f"{', '.join(readers)}{folders} is read."
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


def _text_lines(path: Path, form: Form) -> Rows:
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
    return rows(texts, form=form, where=str(path), lines=numbers)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(
            f"one of the keys {shortened(', '.join(k for k, _ in pairs))} stands twice"
        )
    return content


def _json_lines(path: Path, form: Form) -> Rows:
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
    return from_python(table, form, first=None, where=str(path), lines=numbers)


def read_csv(path: Path, form: Form = TEXTS) -> Rows:
    """Labels and texts of one CSV or TSV, plain or gzipped.

    A header names the columns (see ``columns_of``). Without one, the label is in the first column
    and the text in the last, of two or three; other numbers of columns need ``text_column``. Texts
    such as "null" or "NA" are texts. Quotes in a TSV are text, unless they enclose a cell.

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
    names: list[str] = []  # of the columns
    has_header = False
    places: dict[str, int] = {}
    cells: dict[str, list[str]] = {"inputs": []}  # at these places
    numbers = array("q")
    firsts: set[str] = set()  # in the first column: it may count the rows, or be the text
    unsure = not form.label_first and (form.labelled or form.text_column is None)
    reader = None
    try:
        with _open(path, newline="") as f:
            reader = csv.reader(_lines(f, path), **style)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if not any(cell.strip() for cell in row):
                    raise DataError(f"{where}: the row is empty; remove it.")
                row = [_unquoted(cell) for cell in row] if tabs else row
                if not names:
                    has_header = _is_header(row, form)
                    names = row if has_header else _numbered_columns(len(row), form)
                    places = columns_of(names, where, form)
                    cells = {part: [] for part in places}
                    if has_header:
                        continue
                if len(row) != len(names):
                    remedy = "no text may hold a tab" if tabs else "quote texts that hold commas"
                    raise DataError(
                        f"{where}: {len(row)} columns, the rows before have {len(names)}; {remedy}."
                    )
                if len(numbers) == MAX_ROWS // 2:
                    raise DataError(f"{where}: more than {MAX_ROWS // 2:,} rows; split the file.")
                for part, place in places.items():
                    cell = row[place]
                    cells[part].append(cell if part == "inputs" else sys.intern(cell))
                numbers.append(reader.line_num)
                if unsure and len(row) > 1 and not has_header:
                    firsts.add(row[0].strip())
    except csv.Error as error:
        line = f", near line {reader.line_num}" if reader else ""
        raise DataError(f"{path}{line}: cannot be read as UTF-8 CSV ({error}).") from error
    are_numbers = all(map(str.isdigit, firsts))
    is_index = are_numbers and len(firsts) == len(numbers)
    if len(names) > 2 and is_index and (len(firsts) > 1 or "0" in firsts):
        raise DataError(
            f"{path}: its first column holds a different number in every row: is it an index "
            "(index,text,label) or the label (label,title,text)? Give the file a header."
        )
    if not (form.labelled or are_numbers) and len(firsts) > len({*cells["inputs"]}):
        raise DataError(
            f"{path}: without a header that it knows, the last column would be the text, but it "
            "repeats itself more often than the first. Say which is the text (--text-column 0), or "
            "give the file a header: text."
        )
    if has_header and form.labelled:
        name = names[places["labels"]].strip()
        if name in map(str.strip, cells["labels"]):
            raise DataError(
                f"{path}, line 1: '{shortened(name)}' is a class, too; is this line a row or a "
                "header? Give the file a header: label,text."
            )
    return rows(**cells, form=form, where=str(path), lines=numbers, first=None)


def _unquoted(cell: str) -> str:
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell


def _is_header(row: Sequence[str], form: Form) -> bool:
    """Whether a first row is a header: one cell is the named ``text_column``, else a usual name for
    labels or, if labels are not needed, for texts."""
    cells = plain_names(row)
    named = form.text_column.strip().lower() if isinstance(form.text_column, str) else ""
    if named in cells and named and not named.isdigit():
        return True
    known = [c for c in cells if c in (*LABEL_COLUMNS, *TEXT_COLUMNS, *PAIR_COLUMNS)]
    of_labels = any(c in LABEL_COLUMNS for c in cells) and (len(known) > 1 or len(row) == 2)
    return not any(c.isdigit() for c in cells) and (of_labels or bool(known and not form.labelled))


def _numbered_columns(width: int, form: Form) -> list[str]:
    """Names for the columns of a file without a header: the label is the first, of few columns the
    text the last, and the others are called by their numbers."""
    names = [str(i) for i in range(width)]
    if form.text_column is None and width < 4:
        names[-1] = "text"
    if form.labelled and width > 1:
        names[0] = "label"
    return names


TEXT_READERS: dict[str, Callable[[Path, Form], Rows]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
}


# ---- Parquet and images -----------------------------------------------------------------------


def _parquet(path: Path, form: Form) -> Rows:
    """Columns of a Parquet file; its names of classes are those of a ``ClassLabel``."""
    with opened(path) as file:
        columns = file.schema_arrow.names
        chosen = {part: columns[i] for part, i in columns_of(columns, str(path), form).items()}
        cells: dict[str, list[Any]] = {part: [] for part in chosen}
        room = max(MAX_PLAIN, MAX_GROWTH * path.stat().st_size)
        for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME, columns=[*chosen.values()]):
            for part, name in chosen.items():
                column = batch.column(name)
                if hasattr(column, "dictionary_decode"):  # a repeated text may be stored once
                    column = column.dictionary_decode()
                room -= column.nbytes
                if room < 0:
                    raise DataError(f"{path}: expands to more than {MAX_GROWTH} times its size.")
                cells[part] += column.to_pylist()
        names = label_names(file.schema_arrow, path, chosen["labels"]) if form.labelled else ()
    return rows(**cells, form=form, where=str(path), first=None, names=names)


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


def _image_folder(folder: Path, form: Form) -> Rows:
    """Images below ``folder``; with labels, those of a folder per class."""
    if not form.labelled:
        return rows(_images(folder), form=form, where=str(folder))
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
    return rows([p for p, _ in images], labels, form=form, where=str(folder), first=None)
