"""What is classified. Each source gives label names, a train and a test split; here they become a ``Task``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from .. import paths
from ..errors import DataError
from ..profiles import Profile
from ..store import Store
from ..types import Split, Task
from .local import local_splits

SPLIT_SEED = 20_241_218


def cut(split: Split, n: int, *, seed: int) -> tuple[Split, Split]:
    """Two disjoint seeded parts: n rows, and the rest."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.subset(order[:n]), split.subset(order[n:])


def build_task(
    name: str,
    label_names: Sequence[str],
    train: Split,
    test: Split,
    *,
    n_train: int | None,
    n_validation: int,
    n_test: int | None,
    source: str,
    modality: str = "text",
) -> Task:
    """A ``Task`` with a seeded validation split cut from train and, where limits are given, seeded subsamples.

    Raises ``DataError`` when train has too few rows, or a class has none.
    """
    if not isinstance(n_validation, int) or n_validation < 1:
        raise DataError(
            f"Task '{name}': n_validation is {n_validation}; lambda is chosen on validation rows, so cut at least one."
        )
    if len(train) <= n_validation:
        raise DataError(
            f"Task '{name}': {len(train)} training rows cannot give {n_validation} validation rows."
        )
    validation, rest = cut(train, n_validation, seed=SPLIT_SEED)
    if n_train is not None and len(rest) > n_train:
        rest = cut(rest, n_train, seed=SPLIT_SEED + 1)[0]
    if n_test is not None and len(test) > n_test:
        test = cut(test, n_test, seed=SPLIT_SEED + 2)[0]
    return Task(name, tuple(label_names), rest, validation, test, source, modality)


def task(
    name: str,
    train: Sequence[tuple[str, str]],
    test: Sequence[tuple[str, str]],
    *,
    n_validation: int,
    source: str = "rows given in Python",
) -> Task:
    """A ``Task`` from rows ``(text, label name)``; ``n_validation`` rows are cut from ``train``. Classes are numbered in the
    order of their sorted names. Raises ``DataError`` for an empty text, or a label that ``train`` does not have."""
    names = sorted({label for _, label in train})
    numbers = {label: i for i, label in enumerate(names)}
    for split_name, rows in (("train", train), ("test", test)):
        for i, (text, label) in enumerate(rows):
            if label not in numbers:
                raise DataError(
                    f"Task '{name}': label {label!r} of {split_name} row {i} is not among train's {names}."
                )
            if not text.strip():
                raise DataError(
                    f"Task '{name}': the text of {split_name} row {i} is empty; remove the row."
                )
    splits = [
        Split(
            tuple(t for t, _ in rows), torch.tensor([numbers[y] for _, y in rows], dtype=torch.long)
        )
        for rows in (train, test)
    ]
    return build_task(
        name, names, *splits, n_train=None, n_validation=n_validation, n_test=None, source=source
    )


def miniature_task(name: str, profile: Profile) -> Task:
    """A task of the miniature world; see ``mergelib.tasks.miniature``."""
    from . import miniature

    sizes = profile.tasks
    test = miniature.generate(name, sizes.n_test, seed=1)
    train = miniature.generate(
        name, sizes.n_train + sizes.n_validation, seed=2, exclude={t for t, _ in test}
    )
    splits = [
        Split(tuple(t for t, _ in rows), torch.tensor([y for _, y in rows]))
        for rows in (train, test)
    ]
    return build_task(
        name,
        miniature.TEXT_TASKS[name],
        *splits,
        n_train=None,
        n_validation=sizes.n_validation,
        n_test=None,
        source=f"miniature world {miniature.WORLD_VERSION}",
    )


@cache  # drawing takes some seconds, and a notebook with two patch sizes has the same pictures twice
def _drawn(name: str, n_train: int, n_test: int) -> tuple[Split, Split]:
    from .miniature import images

    return Split(*images.generate(name, n_train, seed=2)), Split(
        *images.generate(name, n_test, seed=1)
    )


def miniature_images(name: str, profile: Profile) -> Task:
    """A task of the miniature image world; see ``mergelib.tasks.miniature.images``."""
    from .miniature import images

    sizes = profile.tasks
    train, test = _drawn(name, sizes.n_train + sizes.n_validation, sizes.n_test)
    return build_task(
        name,
        images.IMAGE_TASKS[name],
        train,
        test,
        n_train=None,
        n_validation=sizes.n_validation,
        n_test=None,
        source=f"miniature image world {images.IMAGE_WORLD_VERSION}",
        modality="image",
    )


def miniature_corpus(profile: Profile, tasks: Sequence[Task]) -> list[str]:
    """The unlabelled pre-training corpus: no document of any validation or test split is in it."""
    from . import miniature

    held_out = {text for t in tasks for split in (t.validation, t.test) for text in split.inputs}
    return miniature.corpus(profile.encoder.pretraining.documents, seed=3, exclude=held_out)


def load_task(name: str, profile: Profile, store: Store | None = None) -> Task:
    """The task as the profile wants it, from whichever source the profile names; ``store``, by default the machine's, keeps decoded images."""
    sizes = profile.tasks
    if sizes.source == "miniature":
        return (miniature_images if sizes.modality == "image" else miniature_task)(name, profile)
    if sizes.source == "hub" and sizes.modality == "image":
        from .hub_images import hub_images

        return hub_images(name, profile, store or Store(paths.store_root()))
    if sizes.source == "hub":
        from .hub import hub_splits

        splits = hub_splits(name, n_train=sizes.n_train + sizes.n_validation, n_test=sizes.n_test)
        return build_task(
            name,
            *splits,
            n_train=sizes.n_train,
            n_validation=sizes.n_validation,
            n_test=sizes.n_test,
            source="hub",
        )
    if sizes.source == "released":
        from .released import released_splits

        return build_task(
            name,
            *released_splits(name, profile.released_dir),
            n_train=sizes.n_train,
            n_validation=sizes.n_validation,
            n_test=sizes.n_test,
            source="released CSV files",
        )
    if sizes.modality == "image":
        from .parquet import LAYOUT, parquet_splits

        if not sizes.image_dir:
            raise DataError(
                f"Profile '{profile.name}' reads local images: give --image-dir FOLDER with {LAYOUT.partition('/')[2]}."
            )
        splits = parquet_splits(
            sizes.image_dir,
            name,
            profile.encoder.image_size,
            n_train=sizes.n_train + sizes.n_validation,
            n_test=sizes.n_test,
        )
        return build_task(
            name,
            *splits,
            n_train=sizes.n_train,
            n_validation=sizes.n_validation,
            n_test=sizes.n_test,
            source="local files",
            modality="image",
        )
    if not sizes.text_dir:
        raise DataError(
            f"Profile '{profile.name}' reads local files: give --text-dir FOLDER with "
            "<task>/{train,test}.csv[.gz]."
        )
    label_names, train, test = local_splits(sizes.text_dir, name, text_column=sizes.text_column)
    return build_task(
        name,
        label_names,
        train,
        test,
        n_train=sizes.n_train,
        n_validation=sizes.n_validation,
        n_test=sizes.n_test,
        source="local files",
    )
