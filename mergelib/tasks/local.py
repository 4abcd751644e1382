"""Tasks from local CSV folders in the layout of the official pipeline."""

from __future__ import annotations

from pathlib import Path

from ..core.documents import own_yaml
from ..core.errors import DataError
from ..core.types import Split
from .data import read_csv
from .parquet import LAYOUT, task_folder
from .rows import Form, as_split, named_splits

LABEL_NAMES: dict[str, tuple[str, ...]] = {
    task: tuple(names) for task, names in own_yaml(__file__, "texts.yaml").items()
}
"""Label names of the five text sets in the order of their published numbering."""


LAYOUTS = {"text": "<task>/{train,test}.csv[.gz]", "image": LAYOUT.partition("/")[2]}
"""What a folder of local files holds, by modality."""


def find_csv(folder: Path, split: str) -> Path:
    """``<folder>/<split>.csv`` or ``.csv.gz``. Raises ``DataError`` naming both."""
    for path in (folder / f"{split}.csv", folder / f"{split}.csv.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"No {split}.csv or {split}.csv.gz in {folder}. Expected <text-dir>/{LAYOUTS['text']}."
    )


def local_splits(
    text_dir: Path | str, name: str, *, text_column: int | None = None
) -> tuple[tuple[str, ...], Split, Split]:
    """Label names, train and test split of task ``name`` under ``text_dir``.

    Args:
        text_dir: The folder that holds the task's folder.
        name: The task's name. If it is not among ``LABEL_NAMES``, the classes are those of its
            train file.
        text_column: The text's column, counted from 0; by default as ``read_csv`` finds it.

    Raises:
        DataError: A missing folder or file (listing what exists), and whatever ``read_csv`` and
            ``named_splits`` raise.
    """
    folder = task_folder(text_dir, name)
    form = Form(text_column=text_column, label_first=name in LABEL_NAMES)
    train, test = (read_csv(find_csv(folder, split), form) for split in ("train", "test"))
    names, *labels = named_splits(train, test, name, LABEL_NAMES.get(name, ()))
    splits = map(as_split, (train.inputs, test.inputs), labels)
    return tuple(f"class {n}" if n.isdigit() else n for n in names), *splits
