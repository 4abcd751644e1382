"""Image tasks from local Parquet folders, in the layout in which the `datasets` library writes
them."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..core.documents import user_path
from ..core.errors import DataError, shortened
from ..core.progress import progress
from ..core.types import Split

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
SUBSAMPLE_SEED = 20_241_220


def task_folder(folder: Path | str, name: str, expected: str = "") -> Path:
    """The folder of task ``name``. Raises ``DataError``, naming what is there, where it is not."""
    found = user_path(Path(folder) / name)
    if not found.is_dir():
        beside = found.parent.iterdir() if found.parent.is_dir() else ()
        there = ", ".join(sorted(p.name for p in beside if p.is_dir())) or "nothing"
        raise DataError(f"No folder {found}. Found {there} beside it.{expected}")
    return found


def find_parquet(folder: Path, split: str) -> Path:
    """``<folder>/<split>.parquet``. Raises ``DataError`` when it does not exist."""
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"No {path.name} in {folder}. Expected {LAYOUT}.")
    return path


def decode_image(x: Any, size: int, where: str) -> Tensor:
    """One image (see ``open_image``) as uint8 ``[3, size, size]``: its central square, resized
    (bicubic). Raises ``DataError``."""
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.fit(open_image(x, where), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def open_image(x: Any, where: str) -> Any:
    """A file, its bytes, a ``{"bytes", "path"}`` of datasets, a PIL image or a uint8 array (``[H,
    W]``, ``[H, W, 3]`` or ``[3, H, W]``) as a PIL image in RGB, upright. A text is always a file's
    name: no URL is fetched. Raises ``DataError`` that begins with ``where``."""
    from PIL import Image

    if isinstance(x, Mapping):
        x = x.get("bytes") or x.get("path")
    if isinstance(x, bytes):
        return read_image(io.BytesIO(x), where)
    if isinstance(x, str | os.PathLike):
        return read_image(user_path(x), str(x))
    if not isinstance(x, Image.Image):
        x = _from_array(x, where)
    return _upright(x, where)


def _from_array(x: Any, where: str) -> Any:
    import numpy as np
    from PIL import Image

    pixels = np.asarray(x)
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] != 3:
        pixels = pixels.transpose(1, 2, 0)
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not fits or not pixels.size:
        raise DataError(
            f"{where}: {type(x).__name__} {pixels.dtype} {list(pixels.shape)} is not an image; "
            f"give a file, a PIL image, or uint8 [H, W, 3]."
        )
    return Image.fromarray(pixels)


def _upright(image: Any, where: str) -> Any:
    """A PIL image in RGB: grey becomes three equal channels, transparency is dropped."""
    from PIL import ImageOps

    width, height = image.size  # from the file's header: no pixel has been decoded yet
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{where}: an image of {width} x {height}; at most {MAX_PIXELS:,} pixels are decoded. "
            "Store it smaller."
        )
    if image.mode not in MODES:
        raise DataError(f"{where}: pixels of mode {image.mode}; store it with 8 bits a channel.")
    return ImageOps.exif_transpose(image).convert("RGB")


def read_image(file: BinaryIO | Path, where: str) -> Any:
    """One image file as a PIL image in RGB, upright.

    Raises ``DataError`` that begins with ``where`` (file and row): bytes that are not an image of
    ``FORMATS``, a truncated image, more than ``MAX_PIXELS``, channels with more than 8 bits.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():  # our limit is stricter than Pillow's
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
        return _upright(image, where)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{where}: {error} At most {MAX_PIXELS:,} pixels are decoded; store it smaller."
        ) from error
    except Exception as error:  # Pillow's decoders raise errors without a common class
        raise DataError(
            f"{where}: the image cannot be decoded as {', '.join(FORMATS)} ({error}); "
            "replace it or remove the row."
        ) from error


def read_parquet(
    path: Path | Sequence[Path],
    size: int,
    *,
    limit: int | None = None,
    seed: int = 0,
    desc: str | None = None,
) -> tuple[Split, tuple[str, ...] | None]:
    """Images and labels of one Parquet file, or of several that are one split, and the label names
    stored there (``None`` where there are none).

    Column ``image`` holds the bytes of an image file, by themselves or as the field ``bytes`` of a
    struct; column ``label`` holds integers from 0. Names are those of the ``ClassLabel`` in the
    schema's metadata. Inputs are uint8 ``[N, 3, size, size]`` (see ``decode_image``). ``limit``
    keeps that many rows, drawn with ``seed`` and without using labels, in the files' order; the
    others are not decoded. ``desc`` turns on a progress line.

    Raises ``DataError`` with file, row (counted from 0) and remedy: a file that is not Parquet, a
    column that is missing or has another type, a missing image, a label that is missing or outside
    the stored names' range, files with different names.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    found = []
    for one in paths:
        with opened(one) as file:
            found.append(_labels_and_names(file, one))
        if found[-1][1] != found[0][1]:
            raise DataError(
                f"{one}: it names classes {_short(found[-1][1])}, {paths[0].name} "
                f"{_short(found[0][1])}; give all files the same ClassLabel."
            )
    chosen = _choose(sum(len(labels) for labels, _ in found), limit, seed)
    images = torch.empty(len(chosen), 3, size, size, dtype=torch.uint8)
    kept: list[int] = []
    first = 0  # of this file's rows, counted over all files
    with progress(desc=desc, total=len(chosen)) if desc else nullcontext() as bar:
        for one, (labels, _) in zip(paths, found, strict=True):
            rows = [row - first for row in chosen if first <= row < first + len(labels)]
            with opened(one) as file:
                for i, (row, data) in enumerate(_bytes_of(file, rows), start=len(kept)):
                    if data is None:
                        raise DataError(
                            f"{one}, row {row}: no image bytes; embed the file's bytes, a path "
                            f"alone is not followed."
                        )
                    images[i] = decode_image(data, size, f"{one}, row {row}")
                    if bar is not None:
                        bar.update()
            kept += [labels[row] for row in rows]
            first += len(labels)
    return Split(images, torch.tensor(kept, dtype=torch.long)), found[0][1]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An open Parquet file. Errors of its reader in the block become ``DataError``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        MemoryError,
    ) as error:  # ValueError: a schema whose names are not UTF-8
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: cannot be read as Parquet ({shortened(str(error), 200)}); write it again "
            f"with datasets."
        ) from error


def _labels_and_names(file: Any, path: Path) -> tuple[list[int], tuple[str, ...] | None]:
    """The labels of all rows and the stored names, after checks of both columns; no image is
    read."""
    import pyarrow as pa

    schema = file.schema_arrow
    for column, wanted in (("image", "the bytes of an image file"), ("label", "an integer from 0")):
        if schema.names.count(column) != 1:
            raise DataError(
                f"{path}: no column '{column}' (or more than one) among "
                f"{', '.join(schema.names) or 'none'}; it holds {wanted}."
            )
    kind = schema.field("label").type
    if not pa.types.is_integer(kind):
        raise DataError(
            f"{path}: column 'label' is {kind}; number the classes from 0 and store their names "
            f"as a ClassLabel."
        )
    if not _holds_bytes(schema.field("image").type):
        raise DataError(
            f"{path}: column 'image' is {schema.field('image').type}; store the bytes of an "
            f"image file, "
            "by themselves or as the field 'bytes' of a struct."
        )
    names = label_names(schema, path)
    labels: list[int | None] = []
    for batch in file.iter_batches(batch_size=MAX_ROWS // 10, columns=["label"]):
        labels += batch.column("label").to_pylist()
        if len(labels) > MAX_ROWS:
            raise DataError(
                f"{path}: more than {MAX_ROWS:,} rows; split it, and keep those that are needed."
            )
    _check_labels(labels, names, path)
    return labels, names


def parquet_splits(
    image_dir: Path | str,
    name: str,
    size: int,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
) -> tuple[tuple[str, ...], Split, Split]:
    """Label names, train and test split of task ``name`` under ``image_dir``; images as uint8 ``[N,
    3, size, size]``.

    ``n_train`` and ``n_test`` keep that many rows, drawn by fixed seeds. Without stored names
    classes are numbered. Raises ``DataError`` for a missing folder or file (naming what is there),
    splits that name their classes differently, and whatever ``read_parquet`` refuses.
    """
    folder = task_folder(image_dir, name, f" Expected {LAYOUT}.")
    (train, names), (test, test_names) = (
        read_parquet(find_parquet(folder, split), size, limit=limit, seed=SUBSAMPLE_SEED + i)
        for i, (split, limit) in enumerate((("train", n_train), ("test", n_test)))
    )
    if names != test_names:
        raise DataError(
            f"{folder}: train and test name their classes differently ({_short(names)} and "
            f"{_short(test_names)}); "
            "give both files the same ClassLabel."
        )
    if names is None:
        names = tuple(
            f"class {c}" for c in range(1 + int(max(train.labels.max(), test.labels.max())))
        )
    return names, train, test


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        if place < 0:
            return False
        kind = kind.field(place).type  # a nested struct is not an image
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def label_names(schema: Any, path: Path, column: str = "label") -> tuple[str, ...] | None:
    """The names of the ``ClassLabel`` that `datasets` keeps as JSON in the schema's metadata."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        names = json.loads(raw)["info"]["features"][column].get("names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: its 'huggingface' metadata cannot be read ({error!r}); write the file "
            f"again with datasets."
        ) from error
    if names is None:
        return None
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(n, str) and n.strip() for n in names)
        or len(set(names)) != len(names)
    ):
        raise DataError(
            f"{path}: its label names are {str(names)[:80]}; a list of different, non-empty "
            f"texts is needed."
        )
    return tuple(names)


def _check_labels(labels: list[int | None], names: tuple[str, ...] | None, path: Path) -> None:
    if not labels:
        raise DataError(f"{path}: no rows.")
    highest = len(names) if names else MAX_CLASSES
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < highest:
            known = (
                f"it names {highest} classes"
                if names
                else f"it names no classes, and at most {highest} are taken"
            )
            raise DataError(
                f"{path}, row {row}: label {label}; labels run from 0 to {highest - 1} "
                f"({known}). Correct or remove the row."
            )


def _choose(n: int, limit: int | None, seed: int) -> list[int]:
    """All n rows, or ``limit`` of them in ascending order."""
    if limit is None or n <= limit:
        return list(range(n))
    return (
        torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:limit]
        .sort()
        .values.tolist()
    )


def _bytes_of(file: Any, rows: list[int]) -> Iterator[tuple[int, bytes | None]]:
    """(row, image bytes) of the given ascending rows; one batch of the file is held at a time."""
    wanted = iter(rows)
    row = next(wanted, None)
    start = 0
    for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME, columns=["image"]):
        column = batch.column("image")
        while row is not None and row < start + len(column):
            value = column[row - start].as_py()
            yield row, value.get("bytes") if isinstance(value, dict) else value
            row = next(wanted, None)
        start += len(column)


def _short(names: tuple[str, ...] | None) -> str:
    return "none" if names is None else f"{len(names)}: {', '.join(names[:3])}, ..."
