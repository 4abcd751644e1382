"""Image tasks from the Hugging Face hub: files of ``core.hub``, classes of ``images.yaml``.

A split is read from the files whose names begin with its own, ``train-00000-of-00002.parquet``, as
datasets writes them. Images are decoded and resized once: the store keeps the three splits.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from ..core.errors import DataError, UnknownNameError
from ..core.hub import fetch, pin, registry
from ..core.store import Store
from ..core.types import Task, digest
from ..profiles import Profile
from .build import build_task, kept_images
from .hub import SOURCES
from .parquet import SUBSAMPLE_SEED, read_parquet

NAMES = Path(__file__).with_name("images.yaml")


def class_names(name: str) -> tuple[str, ...]:
    """The classes of an image set in the order of their labels. Raises ``UnknownNameError``."""
    known = yaml.safe_load(NAMES.read_text("utf-8"))
    if name not in known:
        raise UnknownNameError("image task on the hub", name, known)
    return tuple(known[name])


def hub_images(name: str, profile: Profile, store: Store) -> Task:
    """Return an image task of the hub with uint8 images ``[N, 3, S, S]``.

    They stay in the store's file until they are read.

    Args:
        name: The task's name in the registry.
        profile: Numbers of rows and the images' size.
        store: Where the decoded splits are kept.

    Raises:
        DataError: The set does not number its classes as ``images.yaml`` does.
        MergelibError: As ``mergelib.core.hub.fetch`` and ``read_parquet`` do.
    """
    names, sizes = class_names(name), profile.tasks
    repository = registry()[name].model_copy(update={"sample": sizes.sample})
    key = {
        "revision": pin(repository),  # once it is decoded, its files are not needed
        "classes": digest(*names),
        "size": profile.encoder.image_size,
        "rows": [sizes.n_train, sizes.n_validation, sizes.n_test],
        **({"sample": True} if repository.sample else {}),
    }

    def make() -> Task:
        return _read(name, names, fetch(repository), profile)

    return kept_images(name, names, SOURCES[sizes.source], store, key, make)


def _read(name: str, names: tuple[str, ...], files: dict[str, Path], profile: Profile) -> Task:
    sizes, read = profile.tasks, []
    for i, (split, limit) in enumerate(
        (("train", sizes.n_train + sizes.n_validation), ("test", sizes.n_test))
    ):
        parts = [files[path] for path in sorted(files) if Path(path).name.startswith(f"{split}-")]
        rows, stored = read_parquet(
            parts,
            profile.encoder.image_size,
            limit=limit,
            seed=SUBSAMPLE_SEED + i,
            desc=f"decode {name} {split}",
        )
        check_names(name, names, stored, int(rows.labels.max()), parts[0])
        read.append(rows)
    return build_task(
        name,
        names,
        *read,
        n_train=sizes.n_train,
        n_validation=sizes.n_validation,
        n_test=sizes.n_test,
        source=SOURCES[sizes.source],
        modality="image",
    )


def check_names(
    name: str, names: tuple[str, ...], stored: tuple[str, ...] | None, highest: int, path: Path
) -> None:
    """Raise ``DataError`` if a file's classes differ from ``names``, or have another order.

    Spellings ("AnnualCrop") are not compared: ``names`` are worded for prompts.
    """
    n = len(stored) if stored else highest + 1
    if (stored and n != len(names)) or n > len(names):
        raise DataError(
            f"Task '{name}': {path} has {n} classes, {NAMES.name} {len(names)}. It is another data "
            f"set, or {NAMES.name} is wrong."
        )
    place = {_plain(c): i for i, c in enumerate(names)}
    for i, c in enumerate(stored or ()):
        if place.get(_plain(c), i) != i:
            raise DataError(
                f"Task '{name}': class {i} is '{c}' in {path}, and {place[_plain(c)]} in "
                f"{NAMES.name}. Order {NAMES.name} as the files do: heads are made from its names."
            )


def _plain(class_name: str) -> str:
    return re.sub(r"[\W_]", "", class_name).lower()
