"""Image tasks from the Hugging Face hub: files of ``core.hub``, classes of ``images.yaml``.

A split is read from the files whose names begin with its own, ``train-00000-of-00002.parquet``, as
datasets writes them. Images are decoded and resized once: the store keeps the three splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.documents import own_yaml
from ..core.errors import DataError, check_name
from ..core.hub import fetch, pin, registry
from ..core.store import Store
from ..core.types import Split, Task, digest
from ..profiles import Profile
from .build import kept_images
from .hub import SOURCES, plain
from .parquet import read_splits

NAMES = "images.yaml"


def class_names(name: str) -> tuple[str, ...]:
    """The classes of an image set in the order of their labels. Raises ``UnknownNameError``."""
    known = own_yaml(__file__, NAMES)
    check_name("image task on the hub", name, known)
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
    size, n_train = profile.encoder.image_size, sizes.n_train + sizes.n_validation
    key = {
        "revision": pin(repository),  # once it is decoded, its files are not needed
        "classes": digest(*names),
        "size": size,
        **({"sample": True} if repository.sample else {}),
    }

    def read() -> Sequence[Split]:
        files = fetch(repository)
        parts = {
            split: [files[p] for p in sorted(files) if Path(p).name.startswith(f"{split}-")]
            for split in ("train", "test")
        }
        stored, *splits = read_splits(parts, size, n_train, sizes.n_test, f"decode {name}")
        highest = int(max(split.labels.max() for split in splits))
        check_names(name, names, stored, highest, parts["train"][0])
        return splits

    return kept_images(name, names, SOURCES[sizes.source], sizes, store, key, read)


def check_names(
    name: str, names: tuple[str, ...], stored: Sequence[str], highest: int, path: Path
) -> None:
    """Raise ``DataError`` if a file's classes differ from ``names``, or have another order.

    Spellings ("AnnualCrop") are not compared: ``names`` are worded for prompts.
    """
    n = len(stored) if stored else highest + 1
    if (stored and n != len(names)) or n > len(names):
        raise DataError(
            f"Task '{name}': {path} has {n} classes, {NAMES} {len(names)}. It is another data "
            f"set, or {NAMES} is wrong."
        )
    place = {plain(c): i for i, c in enumerate(names)}
    for i, c in enumerate(stored):
        if place.get(plain(c), i) != i:
            raise DataError(
                f"Task '{name}': class {i} is '{c}' in {path}, and {place[plain(c)]} in "
                f"{NAMES}. Order {NAMES} as the files do: heads are made from its names."
            )
