"""Inputs and labels in the usual Python forms, and the single rule by which labels become
classes."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ..core.errors import DataError, first_five, shortened
from ..core.types import Split

SINGLE, MULTI, REGRESSION = (  # what a label may be, in transformers' words
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
LABEL_COLUMNS = ("label", "labels", "class", "class index", "category", "target")
TEXT_COLUMNS = ("text", "texts", "sentence", "content", "description", "review", "document", "body")
IMAGE_COLUMNS = ("image", "img")
PAIRS_OF_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text", "text_pair"),
    ("question", "sentence"),
    ("question", "passage"),
)
# A text next to one of these is half of an input.
PAIR_COLUMNS = {c for pair in PAIRS_OF_COLUMNS for c in pair} - {"text", "sentence", "passage"}
NAMES_OF_NUMBERS = ("label_text", "label_name")
FILE = {"bytes", "path"}  # of an image, as datasets keeps it
MARK = "\ufeff"  # byte-order mark; what reads a file otherwise than we do may leave it
NUL = "it holds NUL characters, as UTF-16 does when it is read as UTF-8"


class Pair(NamedTuple):
    """Two texts that are classified together."""

    text: str
    text_pair: str


@dataclass(frozen=True)
class Form:
    """What data are read as.

    ``labelled``: with labels. ``is_image``: images, else texts or pairs of texts. ``text_column``:
    a table's column of the text, its name or its number from 0. ``problem``: what a label may be, a
    key of ``READERS``; those that are not of one class each become tuples. ``keep_empty``: a text
    may be empty. ``label_first``: the first column of a table without a header is known to be the
    label.
    """

    labelled: bool = True
    is_image: bool = False
    text_column: str | int | None = None
    problem: str = SINGLE
    keep_empty: bool = False
    label_first: bool = False


TEXTS = Form()


@dataclass(frozen=True)
class Rows:
    """N inputs with their labels, before these are matched with a model's or a task's classes.

    ``inputs`` are texts, pairs of them, or images as files, bytes, PIL images or arrays. ``labels``
    are all names, all numbers or all tuples, empty without labels. ``names`` are the data's own
    names of the numbers 0, 1, ... (a ``ClassLabel``). ``first`` is the number of the first class;
    None if the file does not say. ``where`` and ``lines`` (of the file) are for messages.
    """

    inputs: Sequence[Any]
    labels: Sequence[str] | Sequence[int] = ()
    names: tuple[str, ...] = ()
    first: int | None = 0
    where: str = "The data"
    lines: Sequence[int] = ()

    def at(self, i: int) -> str:
        """The place of input ``i``, for messages."""
        return f"{self.where}, " + (f"line {self.lines[i]}" if self.lines else f"row {i}")

    def texts(self) -> list[str]:
        """The labels as names: the data's own, or the numbers as text."""
        return [self.names[y] if self.names else str(y) for y in self.labels]


def rows(
    inputs: Iterable[Any],
    labels: Iterable[Any] | None = None,
    told: Sequence[Any] = (),
    second: Iterable[Any] | None = None,
    *,
    form: Form = TEXTS,
    **more: Any,
) -> Rows:
    """Checked ``Rows``. A byte-order mark before a text or label is left out.

    Args:
        inputs: Texts, pairs of texts or images.
        labels: Names or numbers; None without labels.
        told: Names of the numbers, in a column of their own.
        second: The pairs' second texts, in a column of their own.
        form: What they are read as.
        more: Fields of ``Rows``.

    Raises:
        DataError: Naming the row: an input of another kind, an empty text or one that is no Unicode
            or holds a NUL, a missing label, one that is neither name nor whole number, names among
            numbers, a number with two names.
    """
    if second is not None:
        inputs = map(Pair, inputs, second)
    elif labels is not None and not form.is_image:
        inputs = (Pair(*x) if isinstance(x, tuple | list) and len(x) == 2 else x for x in inputs)
    data = Rows([x.lstrip(MARK) if isinstance(x, str) else x for x in inputs], **more)
    for i, x in enumerate(data.inputs):
        if reason := _odd_input(x, form):
            raise DataError(f"{data.at(i)}: {reason}.")
    if not data.inputs:
        raise DataError(f"{data.where}: no inputs. The data set is empty.")
    if not form.is_image and len(set(map(type, data.inputs))) > 1:
        raise DataError(f"{data.where}: single texts among pairs of texts; give one or the other.")
    if labels is None:
        return data
    raw = list(labels)
    if len(raw) != len(data.inputs):
        raise DataError(
            f"{data.where}: {len(data.inputs)} inputs but {len(raw)} labels; "
            "give one label per input."
        )
    names = data.names
    if len(told) and not names:
        raw, names = _told_names(raw, told, data)
    read, expected = READERS[form.problem]
    cleaned = [read(y) for y in raw]
    for i, y in enumerate(cleaned):
        if y is None:
            raise DataError(
                f"{data.at(i)}: label {shortened(raw[i])} ({type(raw[i]).__name__}); a label "
                f"is {expected}. Correct or remove the row."
            )
        if type(y) is not type(cleaned[0]):
            raise DataError(
                f"{data.at(i)}: label {y!r} among labels such as {cleaned[0]!r}; "
                "give all of them as names, or all as numbers."
            )
        if isinstance(y, str):
            names = ()
        elif names and isinstance(y, int) and not 0 <= y < len(names):
            raise DataError(
                f"{data.at(i)}: label {y}; labels run from 0 to {len(names) - 1} (it names "
                f"{len(names)} classes). Correct or remove the row."
            )
    return replace(data, labels=cleaned, names=names)


def _odd_input(x: Any, form: Form) -> str:
    """Why ``x`` cannot be an input; an empty text if it can."""
    if form.is_image:
        odd = x is None or isinstance(x, bool | int | float)
        return f"an image is a file, bytes, a PIL image or an array, not {_kind(x)}" if odd else ""
    if isinstance(x, Pair):
        return next(filter(None, (_odd_input(part, form) for part in x)), "")
    if not isinstance(x, str):
        return f"a text model takes texts, not {_kind(x)}"
    if not (form.keep_empty or x.strip()):
        return "an empty text (the text is empty); remove the row"
    try:
        x.encode()
    except UnicodeEncodeError as error:
        return f"the text contains half a character ({x[error.start]!r}); decode its file again"
    return f"{NUL}; decode its file again, with encoding='utf-16'" if "\0" in x else ""


def _label(y: Any) -> str | int | None:
    """A name or a number; None for anything else."""
    if hasattr(y, "as_py"):  # Arrow
        y = y.as_py()
    elif hasattr(y, "item") and getattr(y, "ndim", 1) == 0:  # numpy, torch
        y = y.item()
    if isinstance(y, str):
        return None if _odd_input(y, TEXTS) else y.lstrip(MARK).strip() or None
    if isinstance(y, bool):
        return str(y)
    if isinstance(y, float) and y.is_integer():
        return int(y)
    return y if isinstance(y, int) and abs(y) < 10**9 else None


def _parts(y: Any) -> list[Any]:
    y = y.as_py() if hasattr(y, "as_py") else y
    y = y.tolist() if hasattr(y, "tolist") else y
    return [*y] if isinstance(y, list | tuple | set | frozenset) else [y]


def _labels(y: Any) -> tuple[str | int, ...] | None:
    """The names or numbers of several classes; in a text, "|" stands between them. An empty text
    means none."""
    if isinstance(y, str):
        y = y.split("|") if y.strip() else []
    names = tuple(map(_label, _parts(y)))
    return None if None in names else names


def _numbers(y: Any) -> tuple[float, ...] | None:
    try:
        values = tuple(map(float, _parts(y)))
    except (TypeError, ValueError):
        return None
    return values if all(map(math.isfinite, values)) else None


READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    SINGLE: (_label, "a class's name or whole number"),
    MULTI: (_labels, "a list of classes' names or whole numbers, in a text 'one|other'"),
    REGRESSION: (_numbers, "a finite number"),
}


def _told_names(
    labels: list[Any], told: Sequence[Any], data: Rows
) -> tuple[list[Any], tuple[str, ...]]:
    """Numbers, and the names of 0, 1, ..., if another column names each of them uniquely; else the
    labels as they are."""
    numbers = [int(y) if isinstance(y, str) and _counts(y) else y for y in map(_label, labels)]
    if not all(isinstance(y, int) and y >= 0 for y in numbers):
        return labels, ()
    named: dict[int, str] = {}
    for i, (y, name) in enumerate(zip(numbers, map(_label, told), strict=True)):
        if name is not None and named.setdefault(y, str(name)) != str(name):
            raise DataError(
                f"{data.at(i)}: class {y} is called {str(name)!r}, and before {named[y]!r}; "
                "correct it, or leave the column of names out."
            )
    if len(set(named.values())) < len(named):
        return labels, ()
    return numbers, tuple(named.get(c, f"LABEL_{c}") for c in range(max(numbers) + 1))


# ---- shapes -----------------------------------------------------------------------------------


def from_python(data: Any, form: Form, **more: Any) -> Rows:
    """``Rows`` from Python objects: a list of pairs (also a generator or zip), a pair of lists, a
    table with named columns (DataFrame, ``datasets.Dataset``, dict of lists, list of dicts or named
    tuples), or, without labels, a list of inputs.

    Raises ``DataError`` that shows the shape it got and one that works.
    """
    features = getattr(data, "features", None)
    if hasattr(data, "__iter__") and not hasattr(data, "__len__"):
        streamed = features and hasattr(data, "decode")  # by datasets: images stay files
        data = list(data.decode(False) if streamed else data)
    if isinstance(data, list | tuple) and data:
        records = [r._asdict() if hasattr(r, "_asdict") else r for r in data]
        if all(isinstance(r, Mapping) and not (form.is_image and {*r} <= FILE) for r in records):
            data = {c: [r.get(c) for r in records] for c in records[0]}
    columns = getattr(data, "columns", getattr(data, "column_names", None))
    if isinstance(data, Mapping):
        columns = list(data)
        if any(hasattr(v, "column_names") or hasattr(v, "columns") for v in data.values()):
            raise DataError(
                f"{more['where']}: several splits ({_listed(columns)}); "
                f"choose one: data[{next(iter(data))!r}]."
            )
    if columns is not None:
        features = features if isinstance(features, Mapping) else {}
        return _from_table(data, list(columns), features, form, more)
    if hasattr(data, "tolist") and not form.is_image:
        data = data.tolist()
    if not hasattr(data, "__iter__") or isinstance(data, str | bytes | set | frozenset):
        raise _misshapen(_kind(data), form, more)
    if form.labelled and _are_two_columns(data, form, more["where"]):
        return rows(*data, form=form, **more)
    for i, row in enumerate(data):
        sequence = isinstance(row, tuple | list) and not isinstance(row, Pair)
        if sequence is not form.labelled or (sequence and len(row) != 2):
            item = _kind(row, inside=True)
            raise _misshapen(
                f"a {_kind(data)} of {len(data)}, whose item {i} is {item}", form, more
            )
    if not form.labelled:
        return rows(data, form=form, **more)
    return rows((x for x, _ in data), [y for _, y in data], form=form, **more)


def _misshapen(got: str, form: Form, more: Mapping[str, Any]) -> DataError:
    noun = "image" if form.is_image else "text"
    shapes = f"a list of {noun}s, a DataFrame or Dataset with a column '{noun}'"
    if form.labelled:
        shapes = (
            f"[({noun}, label), ...], ([{noun}, ...], [label, ...]), a DataFrame or Dataset with "
            f"columns '{noun}' and 'label'"
        )
    files = "a folder of images" if form.is_image else "a file's name (.csv, ...)"
    return DataError(f"{more['where']}: got {got}. Give {shapes}, or {files}.")


def _are_two_columns(data: Any, form: Form, where: str) -> bool:
    """Whether two items are all inputs and all labels, rather than two rows of an input and its
    label. Raises ``DataError`` if they could be both."""
    if not isinstance(data, list | tuple) or len(data) != 2 or any(map(_is_no_column, data)):
        return False
    if not all(isinstance(item, list | tuple) and len(item) == 2 for item in data):
        return True

    def fits(inputs: Sequence[Any], labels: Sequence[Any]) -> bool:
        usable = not any(_odd_input(x, replace(form, keep_empty=True)) for x in inputs)
        return usable and len({type(_label(y)) for y in labels} - {type(None)}) < 2

    as_columns, as_rows = fits(*data), fits(*zip(*data, strict=True))
    if as_columns is not as_rows:
        return as_columns
    forms = type(data), *map(type, data)
    if as_columns and forms not in ((tuple, list, list), (list, tuple, tuple)):
        raise DataError(
            f"{where}: this is two by two: rows or columns? Two rows are "
            "[(input, label), (input, label)], two columns ([input, input], [label, label])."
        )
    return forms == (tuple, list, list)


def _is_no_column(x: Any) -> bool:
    return isinstance(x, str | Mapping) or hasattr(x, "columns") or not hasattr(x, "__len__")


def plain_names(names: Sequence[Any]) -> list[str]:
    """Names of columns without a byte-order mark, blanks around them and capitals."""
    return [str(n).lstrip(MARK).strip().lower() for n in names]


def columns_of(names: Sequence[Any], where: str, form: Form) -> dict[str, int]:
    """Which of the named columns are what ``rows`` takes: its ``inputs``, ``labels``, the numbers'
    names as ``told`` and the ``second`` texts of pairs, as far as there are any. Raises
    ``DataError`` listing the columns."""
    plain = plain_names(names)
    labels = [n for n in LABEL_COLUMNS if n in plain]
    if form.labelled and len(labels) > 1 and (labels[0] != "label" or labels[1] == "labels"):
        raise DataError(
            f"{where}: {labels[0]} and {labels[1]} may both hold the labels; it has "
            f"{_listed(names)}. Rename the right one to 'label'."
        )
    label = plain.index(labels[0]) if labels else None
    candidates = [i for i in range(len(plain)) if i != label and plain[i] not in NAMES_OF_NUMBERS]
    inputs = IMAGE_COLUMNS if form.is_image else TEXT_COLUMNS
    usual = [plain.index(n) for n in inputs if n in plain]
    pairs = [] if form.is_image else [p for p in PAIRS_OF_COLUMNS if {*p} <= {*plain}]
    second = None
    if form.text_column is not None and not form.is_image:
        column = str(form.text_column).strip().lower()
        free = [i for i in range(len(plain)) if i != label or not form.labelled]
        usual = [i for i in free if plain[i] == column]
        usual = usual or [i for i in candidates if str(i) == column]
        if not usual:
            raise DataError(
                f"{where}: the text column {form.text_column} does not exist or holds the labels "
                f"(--text-column, a number counts from 0); it has {_listed(names)}."
            )
    elif len(pairs) == 1:
        first, second = map(plain.index, pairs[0])
        usual = [first]
    elif PAIR_COLUMNS & {*plain}:
        usual = []
    elif not usual and len(candidates) == 1:
        usual = candidates
    if len({*plain}) < len(plain):
        raise DataError(
            f"{where}: two columns with the same name among {_listed(names)}; rename one."
        )
    if len(usual) != 1 or (form.labelled and label is None):
        raise DataError(
            f"{where}: a data set needs a column "
            f"{'image' if form.is_image else 'text'}{' and a column label' * form.labelled}; "
            f"it has {_listed(names)}. Rename them, say which is the text (--text-column), or give "
            "lists: (data[...], data[...]). In a .csv commas separate columns, in a .tsv tabs."
        )
    places = {"inputs": usual[0], "second": second}
    if form.labelled:
        told = next((i for i, name in enumerate(plain) if name in NAMES_OF_NUMBERS), None)
        places |= {"labels": label, "told": told}
    return {part: place for part, place in places.items() if place is not None}


def _from_table(
    data: Any, columns: list[Any], features: Mapping[Any, Any], form: Form, more: Mapping[str, Any]
) -> Rows:
    """``Rows`` of named columns, whatever library holds them."""
    chosen = {part: columns[i] for part, i in columns_of(columns, more["where"], form).items()}
    kind = features.get(chosen["inputs"])
    if type(kind).__name__ == "Image" and hasattr(data, "cast_column"):  # decoded here, one by one
        data = data.cast_column(chosen["inputs"], type(kind)(decode=False))
    cells = {part: _values(data, column) for part, column in chosen.items()}
    names = getattr(features.get(chosen.get("labels")), "names", None)
    return rows(**cells, form=form, **more, names=tuple(names or ()))


def _values(data: Any, column: Any) -> list[Any]:
    values = data[column]
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise DataError(
            f"Column '{shortened(str(column))}' is {_kind(values)}; "
            "give a list per column, or a list of dicts."
        )
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


def _kind(x: Any, inside: bool = False) -> str:
    """A description of something, for messages."""
    if inside and isinstance(x, tuple | list):
        return f"({', '.join(map(_kind, x[:3]))}{', ...' if len(x) > 3 else ''})"
    missing = x is None or (isinstance(x, float) and x != x)
    return "a missing value" if missing else type(x).__name__


def _listed(names: Sequence[Any]) -> str:
    return first_five(list(map(str, names))) or "none"


# ---- classes ----------------------------------------------------------------------------------


def numbered(data: Rows, names: Sequence[str], owner: str, first_label: int | None) -> list[int]:
    """The 0-based class of every row among ``names``, those of ``owner``.

    Labels are matched by name if both sides have names (ignoring case and blanks). Names such as
    LABEL_0, LABEL_1, ... are only numbers; then, and for data without names, labels are numbers:
    from 0 in Python and if a 0 occurs, from ``first_label`` if given, and from 1 if a file's
    numbers fit in no other way.

    Raises ``DataError`` for a label that ``owner`` does not have and for everything ambiguous: two
    classes with the same name, numbers that fit in two ways.
    """
    labels: Sequence[Any] = data.labels
    names, n = tuple(map(str, names)), len(names)
    if data.names:
        if _has_names(data.names) and _has_names(names):
            labels = data.texts()
        elif len(data.names) == n and not _counts_otherwise(data.names):
            return list(data.labels)
        else:
            raise DataError(
                f"{data.where}: {len(data.names)} classes ({first_five(data.names)}), and "
                f"'{owner}' has {n} ({first_five(names)}); they cannot be matched by name."
            )
    of_names = isinstance(labels[0], str)
    texts = {str(y): y for y in labels}
    counted = all(map(_counts, texts))
    by_name = None if counted and first_label is not None else _by_name(texts, names)
    readings = [by_name] if by_name else []
    guess = data.first is None and not _has_names(names)
    if counted and (not of_names or not by_name or guess):
        firsts = (0, 1) if of_names or data.first is None else (data.first,)
        for first in firsts if first_label is None else (first_label,):
            places = {t: int(t) - first for t in texts}
            if min(places.values()) >= 0 and max(places.values()) < n:
                readings.append(places)
    if not readings:
        name, low = _odd(texts, names), first_label or int(counted and data.first is None)
        low = 0 if "0" in texts else low
        shown = shortened(texts[name]) if isinstance(texts[name], str) else texts[name]
        is_header = name == labels[0] and not name[:1].isdigit()
        raise DataError(
            f"{data.at(labels.index(texts[name]))}: Label {shown!r} is none of "
            f"'{owner}'s: {low}..{n - 1 + low} or {first_five(names)}."
            + ("" if _has_names(names) or counted else f" '{owner}' does not name its classes.")
            + (" A header calls its columns label and text." if is_header else "")
        )
    if any(-1 in places.values() for places in readings):
        name = next(t for t, place in readings[0].items() if place == -1)
        raise DataError(
            f"{data.where}: label {name!r}, and two classes of '{owner}' have this name "
            f"({first_five(names)}); give numbers from 0 instead."
        )
    if any(places != readings[0] for places in readings):
        low, high = min(texts, key=int), max(texts, key=int)
        raise DataError(
            f"{data.where}: numbers from {low} to {high} can count '{owner}'s {n} classes "
            f"({first_five(names)}) in two ways, and nothing says which. Write names instead, or "
            "say what the first class is called: --first-label 0 or 1; in Python, (inputs, numbers "
            "from 0)."
        )
    return [readings[0][str(y)] for y in labels]


def targets(
    data: Rows, names: Sequence[str], owner: str, problem: str, first_label: int | None = None
) -> torch.Tensor:
    """The labels of every row as ``owner``'s head predicts them: classes ``[N]``, see ``numbered``;
    for several classes (0 or 1) or numbers ``[N, C]`` float32.

    Args:
        data: N labelled rows.
        names: The names of the head's C outputs.
        owner: The task or model that has the head, for messages.
        problem: What the head predicts: a key of ``READERS``.
        first_label: The number of the first class in a file, see ``numbered``.

    Raises:
        DataError: A label that ``owner`` does not have; also lists of zeros and ones that can be
            read in two ways.
    """
    if problem == SINGLE:
        return torch.tensor(numbered(data, names, owner, first_label))
    n, labels = len(names), data.labels
    hot = all(len(y) == n and {*y} <= {0, 1} for y in labels)
    if problem == REGRESSION or (hot and not (n == 2 and all({*y} == {0, 1} for y in labels))):
        row = next((i for i, y in enumerate(labels) if len(y) != n), None)
        if row is not None:
            raise DataError(f"{data.at(row)}: {len(labels[row])} numbers; '{owner}' predicts {n}.")
        return torch.tensor(labels, dtype=torch.float32)
    if hot:
        raise DataError(
            f"{data.where}: with two classes, [0, 1] can be the classes 0 and 1 or only the "
            "second; write the classes' names."
        )
    positions = [i for i, y in enumerate(labels) for _ in y]
    lines = [data.lines[i] for i in positions] if data.lines else ()
    flat = replace(data, labels=[c for y in labels for c in y], lines=lines)
    multi_hot = torch.zeros(len(labels), n)
    if positions:
        multi_hot[positions, numbered(flat, names, owner, first_label)] = 1.0
    return multi_hot


def _counts_otherwise(names: Sequence[str]) -> bool:
    """Whether the classes' names are numbers in another order."""
    numbers = [int(n) for n in names if _counts(n)]
    return len(numbers) == len(names) and numbers != sorted(numbers)


def _counts(label: str) -> bool:
    return label.isascii() and label.isdigit() and len(label) < 10


def _odd(texts: Iterable[str], names: Sequence[str]) -> str:
    """The label to show in a message: one that is not a name, or the highest number."""
    known = set(map(_folded, names))
    unknown = (t for t in texts if not _counts(t) and _folded(t) not in known)
    return next(unknown, None) or max(filter(_counts, texts), key=int)


def _has_names(names: Sequence[str]) -> bool:
    """Whether names are more than numbers: not LABEL_0, LABEL_1, ... or 1, 2, ... in order."""
    plain = [re.sub(r"(?i)^(label|class)[_ ]?", "", str(n).strip()) for n in names]
    return plain not in ([str(i + first) for i in range(len(plain))] for first in (0, 1))


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def _by_name(texts: Iterable[str], names: Sequence[str]) -> dict[str, int] | None:
    """Label -> class, -1 for a name of two classes; None if a label belongs to no class."""
    for plain in (str, _folded):
        places: dict[str, int] = {}
        for i, name in enumerate(map(plain, names)):
            places[name] = -1 if name in places else i
        if all(plain(t) in places for t in texts):
            return {t: places[plain(t)] for t in texts}
    return None


def named_splits(
    train: Rows, test: Rows, owner: str, names: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[int], list[int]]:
    """Label names and both splits' classes, counted from 0.

    Args:
        train, test: Labelled rows of single texts or images.
        owner: The task's name, for messages.
        names: The classes' names. By default, classes are train's, in the order of its
            ``ClassLabel``, else sorted; both splits are then matched by name.

    Raises:
        DataError: A label that train does not have, pairs of texts, which a study's encoder does
            not read, and what ``numbered`` raises.
    """
    if isinstance(train.inputs[0], Pair):
        raise DataError(
            f"{train.where}: pairs of texts are for models of your own (merge, align, evaluate); "
            "a task has single texts."
        )
    if names:
        values = {*map(str, train.labels), *map(str, test.labels)}
        first = next((f for f, t in ((0, "0"), (1, str(len(names)))) if t in values), None)
        first = first if all(map(_counts, values)) else None
        return tuple(names), *(numbered(rows, names, owner, first) for rows in (train, test))
    texts = train.texts()
    counts = Counter(texts)
    single = [label for label, n in counts.items() if n == 1]
    if train.first is None and single == texts[:1] and len(counts) > 2:
        raise DataError(
            f"{train.at(0)}: class {texts[0]!r} has only this row. If it is a header, name "
            "its columns label and text; else give the class more rows."
        )
    digits = set(filter(_counts, counts))
    if 0 < len(digits) < len(counts) and train.first is None:
        outlier = next(t for t in texts if (t in digits) is (len(digits) * 2 < len(counts)))
        raise DataError(
            f"{train.at(texts.index(outlier))}: label {outlier!r} among names and numbers; "
            "give all labels as names, or all as numbers."
        )
    if isinstance(train.inputs[0], str) and len(counts) > len(set(train.inputs)):
        raise DataError(
            f"{train.where}: {len(counts)} classes, more than different inputs; "
            "text and label seem to be swapped."
        )
    names = sorted(counts)
    if len(digits) == len(counts):
        names.sort(key=len)  # numbers
    if train.names:
        names = [name for name in train.names if name in counts]
    places = {name: i for i, name in enumerate(names)}
    for i, label in enumerate(test.texts()):
        if label not in places:
            raise DataError(
                f"{test.at(i)}: label {label!r} is not among train's {first_five(names)}."
            )
    return tuple(names), [places[t] for t in texts], [places[t] for t in test.texts()]


def as_split(inputs: Sequence[Any], labels: Sequence[int]) -> Split:
    """Inputs and 0-based classes as a ``Split``."""
    return Split(tuple(inputs), torch.tensor(labels, dtype=torch.long))
