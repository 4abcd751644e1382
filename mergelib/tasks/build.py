"""Splits to a ``Task``: a seeded validation split, seeded subsamples, images kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.errors import DataError
from ..core.store import Artifact, Store
from ..core.types import Split, Task, is_whole, shuffled
from ..profiles import TaskSettings

SPLIT_SEED = 20_241_218
IMAGES_VERSION = 1
SPLITS = ("train", "validation", "test")


def build_task(
    name: str,
    label_names: Sequence[str],
    train: Split,
    test: Split,
    *,
    n_validation: int,
    n_train: int | None = None,
    n_test: int | None = None,
    source: str,
    modality: str = "text",
    templates: tuple[str, ...] = (),
) -> Task:
    """A ``Task`` with a seeded validation split cut from train and, where limits are given, seeded
    subsamples.

    Args:
        name: The task's name.
        label_names: The C classes' names, in the order of the labels.
        train, test: Inputs with labels 0..C-1.
        n_validation: Rows that are cut from ``train``.
        n_train: Rows of ``train`` to keep after that; None keeps all.
        n_test: Rows of ``test`` to keep; None keeps all.
        source: Where the data come from.
        modality: "text" or "image".
        templates: Prompts for CLIP's zero-shot head, see ``Task``.

    Raises:
        DataError: ``train`` has too few rows, or a class has none.
    """
    if not is_whole(n_validation) or n_validation < 1:
        raise DataError(
            f"Task '{name}': n_validation is {n_validation!r}; lambda is chosen on validation "
            "rows, so cut at least one."
        )
    if len(train) <= n_validation:
        raise DataError(
            f"Task '{name}': {len(train)} training rows cannot give {n_validation} validation rows."
        )
    order = shuffled(len(train), SPLIT_SEED)
    validation, train = train.subset(order[:n_validation]), train.subset(order[n_validation:])
    train, test = (
        split if n is None or len(split) <= n else split.subset(shuffled(len(split), seed)[:n])
        for split, n, seed in ((train, n_train, SPLIT_SEED + 1), (test, n_test, SPLIT_SEED + 2))
    )
    return Task(name, tuple(label_names), train, validation, test, source, modality, templates)


def kept_images(
    name: str,
    label_names: Sequence[str],
    source: str,
    sizes: TaskSettings,
    store: Store,
    key: Mapping[str, Any],
    read: Callable[[], Sequence[Split]],
) -> Task:
    """An image task, made once; its images ``[N, 3, S, S]`` stay in the store's file until they are
    read.

    Args:
        name: The task's name.
        label_names: The classes' names, in the order of the labels.
        source: Where the images come from.
        sizes: Numbers of rows.
        store: Where the images are kept.
        key: Everything else that the images depend on.
        read: Gives train and test split; called only if the store lacks the images.
    """
    rows = sizes.model_dump(include={"n_train", "n_validation", "n_test"})  # in this order

    def artifact() -> Artifact:
        task = build_task(name, label_names, *read(), **rows, source=source, modality="image")
        return Artifact(
            {
                f"{split}.{part}": getattr(getattr(task, split), part)
                for split in SPLITS
                for part in ("inputs", "labels")
            }
        )

    key = {"version": IMAGES_VERSION, "rows": [*rows.values()], **key}
    # One of several processes makes them; the others wait for its lock.
    store = Store(store.root)
    if store.peek("images", key) is None:
        store.get("images", key, artifact)
    # Mapped from its file: what was made is in memory, which eight sets at 224 pixels may not fit.
    tensors = store.peek("images", key).tensors
    splits = [Split(tensors[f"{split}.inputs"], tensors[f"{split}.labels"]) for split in SPLITS]
    return Task(name, tuple(label_names), *splits, source, "image")
