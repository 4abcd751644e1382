"""Images in every form, and image tasks from local Parquet folders, in the layout in which the
`datasets` library writes them."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..core.documents import user_path
from ..core.errors import DataError, first_five, shortened
from ..core.progress import progress
from ..core.types import Split, shuffled

LAYOUT = "<image-dir>/<task>/{train,test}.parquet"
# Decoders of plain pixels; others in Pillow start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
# 8 bits a channel: wider ones would be clipped, not scaled.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
MAX_PIXELS = 4096 * 4096  # a few compressed bytes can claim far more pixels, and use up the memory
MAX_ROWS = 10_000_000  # run-length encoding can represent far more rows in a few bytes
MAX_CLASSES = 10_000  # a larger label is a typo, and its names would use up memory
ROWS_AT_A_TIME = 256
SEED = 20_241_220


def task_folder(folder: Path | str, name: str, expected: str = "") -> Path:
    """The folder of task ``name``. Raises ``DataError``, naming what is there, where it is not."""
    path = user_path(Path(folder) / name)
    if not path.is_dir():
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        names = ", ".join(sorted(p.name for p in siblings if p.is_dir())) or "nothing"
        raise DataError(f"No folder {path}. Found {names} beside it.{expected}")
    return path


def find_parquet(folder: Path, split: str) -> Path:
    """``<folder>/<split>.parquet``. Raises ``DataError`` when it does not exist."""
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"No {path.name} in {folder}. Expected {LAYOUT}.")
    return path


def decode_image(x: Any, size: int, where: str) -> Tensor:
    """One image (see ``open_image``) as uint8 ``[3, size, size]``: its central square, resized
    (bicubic). Raises ``DataError``."""
    image = ImageOps.fit(open_image(x, where), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def open_image(x: Any, where: str) -> Image.Image:
    """An image as a PIL image in RGB, upright: grey becomes three equal channels, transparency is
    dropped.

    Args:
        x: A file, its bytes, a ``{"bytes", "path"}`` of datasets, a PIL image or a uint8 array
            (``[H, W]``, ``[H, W, 3]`` or ``[3, H, W]``). A text is always a file's name: no URL is
            fetched.
        where: File and row, with which messages begin.

    Raises:
        DataError: It is no image of ``FORMATS``, is truncated, has more than ``MAX_PIXELS`` or
            channels with more than 8 bits.
    """
    if isinstance(x, Mapping):
        x = x.get("bytes") or x.get("path")
    try:
        with warnings.catch_warnings():  # our limit is stricter than Pillow's
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(x, bytes):
                x = Image.open(io.BytesIO(x), formats=FORMATS)
            elif isinstance(x, str | os.PathLike):
                where, x = str(x), Image.open(user_path(x), formats=FORMATS)
            elif not isinstance(x, Image.Image):
                pixels = np.asarray(x)
                if pixels.shape[0] == 3 != pixels.shape[-1]:
                    pixels = pixels.transpose(1, 2, 0)
                x = Image.fromarray(pixels)
        width, height = x.size  # from the file's header: no pixel has been decoded yet
        if width * height > MAX_PIXELS:
            raise DataError(
                f"{where}: an image of {width} x {height}; at most {MAX_PIXELS:,} pixels are "
                "decoded. Store it smaller."
            )
        if x.mode not in MODES:
            raise DataError(f"{where}: pixels of mode {x.mode}; store it with 8 bits a channel.")
        return ImageOps.exif_transpose(x).convert("RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise errors without a common class
        raise DataError(
            f"{where}: the image cannot be decoded as {', '.join(FORMATS)}, a PIL image or uint8 "
            f"[H, W, 3] ({error}); replace it or remove the row."
        ) from error


def read_parquet(
    path: Path | Sequence[Path],
    size: int,
    *,
    limit: int | None = None,
    seed: int = 0,
    desc: str = "",
) -> tuple[Split, tuple[str, ...]]:
    """Images and labels of one Parquet file, or of several that are one split.

    Column ``image`` holds the bytes of an image file, by themselves or as the field ``bytes`` of a
    struct; column ``label`` holds integers from 0.

    Args:
        path: The file or files.
        size: Height and width S of the images; see ``decode_image``.
        limit: Rows to keep, drawn without using labels, in the files' order; the others are not
            decoded.
        seed: Of that draw.
        desc: Turns on a progress line.

    Returns:
        Images uint8 ``[N, 3, S, S]`` with labels, and the label names of the ``ClassLabel`` in the
        schema's metadata, none where there is none.

    Raises:
        DataError: With file, row (counted from 0) and remedy: a file that is not Parquet, a column
            that is missing or has another type, a missing image, a label that is missing or outside
            the stored names' range, files with different names.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    labels, names = zip(*map(_labels_and_names, paths), strict=True)
    _check_names(paths, names)
    labels = torch.from_numpy(np.concatenate(labels))
    chosen = set(shuffled(len(labels), seed)[:limit].tolist())
    images = torch.empty(len(chosen), 3, size, size, dtype=torch.uint8)
    bar, found = progress(desc=desc, total=len(chosen)), 0
    for row, (where, value) in enumerate(cell for one in paths for cell in _cells(one)):
        if row in chosen:
            images[found] = decode_image(_bytes_of(value, where), size, where)
            found += 1
            bar.update()
    return Split(images, labels[sorted(chosen)]), names[0]


def _cells(path: Path) -> Iterator[tuple[str, pa.Scalar]]:
    """Each cell of column ``image``, with its place for messages."""
    with opened(path) as file:
        batches = file.iter_batches(batch_size=ROWS_AT_A_TIME, columns=["image"])
        for i, value in enumerate(value for batch in batches for value in batch.column("image")):
            yield f"{path}, row {i}", value


def _check_names(places: Sequence[Any], names: Sequence[tuple[str, ...]]) -> None:
    """Raise ``DataError`` if one of these places names its classes otherwise than the first."""
    for place, other in zip(places, names, strict=True):
        if other != names[0]:
            raise DataError(
                f"{place} and {places[0]} name their classes differently "
                f"({first_five(other) or 'none'} and {first_five(names[0]) or 'none'}); "
                "give all files the same ClassLabel."
            )


def _bytes_of(value: pa.Scalar, where: str) -> bytes:
    with suppress(ValueError, pa.ArrowException):  # a struct's path that is not UTF-8
        data = value.as_py()
        data = data.get("bytes") if isinstance(data, dict) else data
        if isinstance(data, bytes):
            return data
    raise DataError(
        f"{where}: no image bytes; embed the file's bytes, by themselves or as the field "
        "'bytes' of a struct; a path alone is not followed."
    )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An open Parquet file. Errors of its reader in the block become ``DataError``."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except DataError:
        raise
    # ValueError: a schema whose names are not UTF-8
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet ({shortened(str(error), 200)}); "
            "write it again with datasets."
        ) from error


def _labels_and_names(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels of all rows ``[N]`` and the stored names, after checks of both columns; no image
    is read."""
    with opened(path) as file:
        schema = file.schema_arrow
        for column in ("image", "label"):
            if schema.names.count(column) != 1:
                raise DataError(
                    f"{path}: no column '{column}' (or more than one) among "
                    f"{', '.join(schema.names) or 'none'}; it needs image (the bytes of an image "
                    "file) and label (an integer from 0)."
                )
        kind = schema.field("label").type
        if not pa.types.is_integer(kind):
            raise DataError(
                f"{path}: column 'label' is {kind}; number the classes from 0 "
                "and store their names as a ClassLabel."
            )
        n = file.metadata.num_rows
        if not 0 < n <= MAX_ROWS:
            raise DataError(
                f"{path}: {f'more than {MAX_ROWS:,}' if n else 'no'} rows; "
                "keep those that are needed."
            )
        names = label_names(schema, path)
        column = file.read(columns=["label"]).column("label")
        labels = column.cast(pa.int64()).fill_null(-1).to_numpy()
    highest = len(names) or MAX_CLASSES
    for row in np.flatnonzero((labels < 0) | (labels >= highest))[:1]:
        known = "it names" if names else "it names no classes, and at most"
        raise DataError(
            f"{path}, row {row}: label {column[int(row)]}; labels run from 0 to {highest - 1} "
            f"({known} {highest} classes). Correct or remove the row."
        )
    return labels, names


def label_names(schema: pa.Schema, path: Path, column: str = "label") -> tuple[str, ...]:
    """The names of the ``ClassLabel`` that `datasets` keeps as JSON in the schema's metadata; none
    where there is none."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return ()
    try:
        names = json.loads(raw)["info"]["features"][column].get("names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: its 'huggingface' metadata cannot be read ({error!r}); "
            "write the file again with datasets."
        ) from error
    if names is None:
        return ()
    texts = isinstance(names, list) and all(isinstance(n, str) and n.strip() for n in names)
    if not (texts and 0 < len(names) == len(set(names))):
        raise DataError(
            f"{path}: its label names are {str(names)[:80]}; "
            "a list of different, non-empty texts is needed."
        )
    return tuple(names)


def read_splits(
    parts: Mapping[str, Path | Sequence[Path]],
    size: int,
    n_train: int | None,
    n_test: int | None,
    desc: str = "",
) -> tuple[tuple[str, ...], Split, Split]:
    """Stored label names, train and test split.

    Args:
        parts: "train" and "test" -> the file or files of the split.
        size: Height and width S of the images.
        n_train, n_test: Rows to keep, drawn by fixed seeds; None keeps all.
        desc: Turns on progress lines.

    Raises:
        DataError: Splits that name their classes differently, and whatever ``read_parquet``
            refuses.
    """
    train, test = (
        read_parquet(parts[split], size, limit=n, seed=seed, desc=desc and f"{desc} {split}")
        for split, n, seed in (("train", n_train, SEED), ("test", n_test, SEED + 1))
    )
    _check_names([*parts.values()], [train[1], test[1]])
    return train[1], train[0], test[0]


def parquet_splits(
    image_dir: Path | str,
    name: str,
    size: int,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
) -> tuple[tuple[str, ...], Split, Split]:
    """Label names, train and test split of task ``name`` under ``image_dir``; see ``read_splits``.

    Args:
        image_dir: The folder that holds the task's folder.
        name: The task's name. Without stored names, its classes are numbered.
        size: Height and width S of the images.
        n_train, n_test: Rows to keep, drawn by fixed seeds; None keeps all.

    Raises:
        DataError: A missing folder or file, naming what is there.
    """
    folder = task_folder(image_dir, name, f" Expected {LAYOUT}.")
    parts = {split: find_parquet(folder, split) for split in ("train", "test")}
    names, train, test = read_splits(parts, size, n_train, n_test)
    n = 1 + int(max(train.labels.max(), test.labels.max()))
    return names or tuple(f"class {c}" for c in range(n)), train, test
