"""Tasks. Each source gives label names, a train and a test split; this module makes a ``Task`` of
them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..core import paths
from ..core.errors import DataError
from ..core.store import Store
from ..core.types import Split, Task, is_whole
from ..profiles import Profile
from . import hub, hub_images, miniature, released
from .build import build_task, kept_images
from .data import rows_of
from .local import LAYOUTS, local_splits
from .miniature import images
from .parquet import decode_image, parquet_splits
from .rows import as_split, named_splits

__all__ = ["build_task", "image_task", "load_task", "rows_of", "task"]


def task(
    name: str, train: Any, test: Any, *, n_validation: int, source: str = "rows given in Python"
) -> Task:
    """A ``Task`` from texts of your own.

    Args:
        name: the task's name.
        train, test: inputs with labels, names or numbers, in any form that ``tasks.rows_of``
            takes: pairs (text, label), two lists, a DataFrame, a Dataset, a file.
        n_validation: rows that are cut from ``train``.
        source: where the data come from.

    Returns:
        The task. Its classes are train's, in a ``ClassLabel``'s order or that of sorted names.

    Raises:
        DataError: an input or label that cannot be used, a label that ``train`` does not have, a
            single class, or fewer than ``n_validation`` spare rows.

    Example:
        >>> train = [("a fine film", "+"), ("no good", "-"), ("a joy", "+"), ("poor", "-")]
        >>> test = [("a good film", "+"), ("no joy", "-")]
        >>> task = mergelib.task("reviews", train, test, n_validation=1)
        >>> task.label_names, len(task.train), len(task.validation), len(task.test)
        (('+', '-'), 3, 1, 2)
    """
    return _own_task(name, train, test, n_validation=n_validation, source=source)


def image_task(
    name: str,
    train: Any,
    test: Any,
    *,
    size: int,
    n_validation: int,
    templates: str | Sequence[str] = "a photo of a {}",
    source: str = "images given in Python",
) -> Task:
    """A ``Task`` from images of your own.

    Args:
        name, n_validation, source: as for ``task``.
        train, test: images with labels in any form that ``tasks.rows_of`` takes, such as a folder
            that holds a folder of images per class.
        size: S, the pixels a side of what the encoder reads; others are resized.
        templates: prompts that CLIP's zero-shot head puts each class's name into, with spaces for
            its underscores; other encoders learn theirs.

    Returns:
        The task, its images uint8 ``[N, 3, S, S]``, its classes as ``task`` finds them.

    Raises:
        DataError: as ``task``, and for an image that cannot be read.

    Example:
        >>> import numpy as np
        >>> rows = [(np.full((9, 9, 3), i, np.uint8), "dark") for i in range(9)]
        >>> rows += [(255 - image, "light") for image, _ in rows]
        >>> task = mergelib.image_task("walls", rows[::2], rows[1::2], size=8, n_validation=2)
        >>> task.label_names, task.train.inputs.shape
        (('dark', 'light'), torch.Size([7, 3, 8, 8]))
    """
    if not is_whole(size) or size < 1:
        raise DataError(f"Task '{name}': size is a whole number of pixels, not {size!r}.")
    return _own_task(
        name,
        train,
        test,
        size,
        n_validation=n_validation,
        source=source,
        modality="image",
        templates=(templates,) if isinstance(templates, str) else tuple(templates),
    )


def _own_task(name: str, train: Any, test: Any, size: int = 0, **more: Any) -> Task:
    """A ``Task`` of texts or, with a ``size``, of images."""
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{name!r} cannot name a task; use a text.")
    read = [
        rows_of(data, is_image=bool(size), where=f"Task '{name}', {split}")
        for split, data in (("train", train), ("test", test))
    ]
    names, *labels = named_splits(*read, name)
    if len(names) < 2:
        raise DataError(f"Task '{name}': only one class ({names[0]}); two are needed.")
    splits = []
    for rows, classes in zip(read, labels, strict=True):
        inputs: Any = tuple(rows.inputs)
        if size:
            images = [decode_image(x, size, rows.at(i)) for i, x in enumerate(inputs)]
            inputs = torch.stack(images)
        splits.append(Split(inputs, torch.tensor(classes)))
    return build_task(name, names, *splits, **more)


def miniature_task(name: str, profile: Profile) -> Task:
    """A task of the miniature world; see ``mergelib.tasks.miniature``."""
    sizes = profile.tasks
    test = miniature.generate(name, sizes.n_test, seed=1)
    train = miniature.generate(
        name, sizes.n_train + sizes.n_validation, seed=2, exclude={t for t, _ in test}
    )
    splits = [as_split(*zip(*rows, strict=True)) for rows in (train, test)]
    return build_task(
        name,
        miniature.TEXT_TASKS[name],
        *splits,
        n_validation=sizes.n_validation,
        source=f"miniature world {miniature.WORLD_VERSION}",
    )


def miniature_images(name: str, profile: Profile, store: Store) -> Task:
    """A task of the miniature image world (``mergelib.tasks.miniature.images``), drawn once:
    ``store`` keeps the pictures."""
    sizes, names = profile.tasks, images.IMAGE_TASKS[name]
    source = f"miniature image world {images.IMAGE_WORLD_VERSION}"
    key = {"world": images.IMAGE_WORLD_VERSION, "task": name}

    def read() -> Sequence[Split]:
        train = images.generate(name, sizes.n_train + sizes.n_validation, seed=2)
        return Split(*train), Split(*images.generate(name, sizes.n_test, seed=1))

    return kept_images(name, names, source, sizes, store, key, read)


def miniature_corpus(profile: Profile, tasks: Sequence[Task]) -> list[str]:
    """The unlabelled pre-training corpus: no document of any validation or test split is in it."""
    held_out = {text for t in tasks for split in (t.validation, t.test) for text in split.inputs}
    return miniature.corpus(profile.encoder.pretraining.documents, seed=3, exclude=held_out)


def load_task(name: str, profile: Profile, store: Store | None = None) -> Task:
    """The profile's task, from the source that the profile names.

    Args:
        name: the task's name.
        profile: the source, the numbers of rows and, of images, their size.
        store: where decoded images are kept; default: the machine's store.

    Raises:
        DataError: local files without a folder in the profile, or data that cannot be used.
    """
    sizes, store = profile.tasks, store or Store(paths.store_root())
    is_image, folder = sizes.modality == "image", getattr(sizes, f"{sizes.modality}_dir")
    limits = {"n_train": sizes.n_train + sizes.n_validation, "n_test": sizes.n_test}
    if sizes.source == "miniature":
        return miniature_images(name, profile, store) if is_image else miniature_task(name, profile)
    if sizes.source == "released":
        splits = released.released_splits(name, profile.released_dir)
    elif sizes.source != "local":
        if is_image:
            return hub_images.hub_images(name, profile, store)
        splits = hub.hub_splits(name, **limits, sample=bool(sizes.sample))
    elif not folder:
        raise DataError(
            f"Profile '{profile.name}' reads local {sizes.modality}s: "
            f"give --{sizes.modality}-dir FOLDER with {LAYOUTS[sizes.modality]}."
        )
    elif is_image:
        splits = parquet_splits(folder, name, profile.encoder.image_size, **limits)
    else:
        splits = local_splits(folder, name, text_column=sizes.text_column)
    rows = sizes.model_dump(include={"n_train", "n_validation", "n_test"})
    return build_task(
        name, *splits, **rows, source=hub.SOURCES[sizes.source], modality=sizes.modality
    )
