"""Inputs and labelled data from files, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..documents import user_path
from ..errors import DataError

LIMIT_SEED = 11
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


def _is_csv(path: Path) -> bool:
    return path.name.endswith((".csv", ".csv.gz"))


def _existing(path: str | Path) -> Path:
    found = user_path(path)
    if not found.exists():
        raise DataError(f"There is no file or folder '{path}'.")
    return found


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)


def read_inputs(path: str | Path, is_image: bool, text_column: int | None = None) -> list[Any]:
    """Unlabelled inputs: a folder of images at any depth, a text per line of a .txt, or the texts of a CSV (README, "Real text").

    Raises ``DataError`` naming the file.
    """
    found = _existing(path)
    if is_image:
        inputs: Sequence[Any] = _images(found) if found.is_dir() else []
    elif _is_csv(found):
        from ..tasks.local import read_csv

        return list(read_csv(found, text_column=text_column).inputs)
    elif found.suffix == ".txt":
        try:
            inputs = [
                line for line in found.read_text(encoding="utf-8").splitlines() if line.strip()
            ]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"'{path}' cannot be read as UTF-8 text ({error}).") from error
    else:
        inputs = []
    if not inputs:
        raise DataError(
            f"'{path}' holds no inputs: "
            + (
                "a folder with .png, .jpg, ... files is read."
                if is_image
                else ".txt with a text per line, .csv or .csv.gz is read."
            )
        )
    return list(inputs)


def read_labelled(
    path: str | Path, is_image: bool, text_column: int | None = None, limit: int = 0
) -> tuple[list[Any], list[Any]]:
    """Inputs and labels: a CSV with a 1-based label first, or a folder per label name with images. ``limit``
    keeps so many rows, drawn at random with a fixed seed.

    Raises ``DataError`` naming the file.
    """
    found = _existing(path)
    if not is_image and _is_csv(found):
        from ..tasks.local import read_csv

        split = read_csv(found, text_column=text_column)
        rows = list(zip(split.inputs, split.labels.tolist(), strict=True))
    elif is_image and found.is_dir():
        rows = [
            (p, folder.name)
            for folder in sorted(found.iterdir())
            if folder.is_dir()
            for p in _images(folder)
        ]
    else:
        rows = []
    if not rows:
        raise DataError(
            f"'{path}' holds no labelled inputs: "
            + (
                "a folder per label name, with images in it, is read."
                if is_image
                else ".csv or .csv.gz with a 1-based label first is read."
            )
        )
    if limit and limit < len(rows):
        from ..protocols import uniform_order

        rows = [rows[i] for i in uniform_order(len(rows), limit, LIMIT_SEED).tolist()]
    return [x for x, _ in rows], [y for _, y in rows]
