"""Image tasks from the Hugging Face hub: Parquet files that ``mergelib.hub`` fetches and verifies, class names of ``images.yaml``.

A split is read from the files whose names begin with its own, ``train-00000-of-00002.parquet``, as datasets writes them. Images are
decoded and resized once: the store keeps the three splits of a task.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from ..errors import DataError, UnknownNameError
from ..hub import fetch_files, lock
from ..hub.files import file_hash, registry
from ..profiles import Profile
from ..store import Artifact, Store
from ..types import Split, Task, digest
from .parquet import SUBSAMPLE_SEED, read_parquet

NAMES = Path(__file__).with_name("images.yaml")
IMAGES_VERSION = 1
SPLITS = ("train", "validation", "test")


def class_names(name: str) -> tuple[str, ...]:
    """The classes of an image set in the order of their labels. Raises ``UnknownNameError``."""
    known = yaml.safe_load(NAMES.read_text("utf-8"))
    if name not in known:
        raise UnknownNameError("image task on the hub", name, known)
    return tuple(known[name])


def hub_images(name: str, profile: Profile, store: Store) -> Task:
    """Task ``name`` as ``profile`` wants it: uint8 images ``[N, 3, S, S]`` that stay in the store's file until they are read.

    Raises what ``mergelib.hub.fetch_files`` and ``read_parquet`` raise, and ``DataError`` for a set that does not number its classes as
    ``images.yaml`` does.
    """
    names, files = class_names(name), {}
    repository = registry()[name]
    locked = lock.locked(
        lock.default_path(), name, repository.id, repository.revision, "files.yaml"
    )
    if locked and locked.files:  # the files themselves are not needed once they were decoded
        hashes = {path: fact.sha256 for path, fact in locked.files.items()}
    else:
        files = fetch_files(name)
        hashes = {path: file_hash(file) for path, file in files.items()}
    sizes = profile.tasks
    key = {
        "version": IMAGES_VERSION,
        "files": hashes,
        "classes": digest(*names),
        "size": profile.encoder.image_size,
        "rows": [sizes.n_train, sizes.n_validation, sizes.n_test],
    }

    def make() -> Artifact:
        task = _read(name, names, files or fetch_files(name), profile)
        return Artifact(
            {
                f"{split}.{part}": getattr(getattr(task, split), part)
                for split in SPLITS
                for part in ("inputs", "labels")
            }
        )

    store = Store(
        store.root
    )  # of several processes one decodes, and the others wait for its lock: there is nothing to make together
    if store.peek("images", key) is None:
        store.get("images", key, make)
    made = store.peek(
        "images", key
    )  # mapped from its file, while what was made is in memory, which eight sets at 224 pixels may not fit into
    splits = [
        Split(made.tensors[f"{split}.inputs"], made.tensors[f"{split}.labels"]) for split in SPLITS
    ]
    return Task(name, names, *splits, source="hub", modality="image")


def _read(name: str, names: tuple[str, ...], files: dict[str, Path], profile: Profile) -> Task:
    from . import build_task

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
        source="hub",
        modality="image",
    )


def check_names(
    name: str, names: tuple[str, ...], stored: tuple[str, ...] | None, highest: int, path: Path
) -> None:
    """Raises ``DataError`` where a file has another number of classes than ``names``, or stores one of ``names`` in another place. Other
    spellings of a class ("AnnualCrop") are not compared: ``names`` are made for prompts."""
    n = len(stored) if stored else highest + 1
    if (stored and n != len(names)) or n > len(names):
        raise DataError(
            f"Task '{name}': {path} has {n} classes, {NAMES.name} {len(names)}. It is another data set, or {NAMES.name} is wrong."
        )
    place = {_plain(c): i for i, c in enumerate(names)}
    for i, c in enumerate(stored or ()):
        if place.get(_plain(c), i) != i:
            raise DataError(
                f"Task '{name}': class {i} is '{c}' in {path}, and {place[_plain(c)]} in {NAMES.name}. Order {NAMES.name} as the files "
                "do: heads are made from its names."
            )


def _plain(class_name: str) -> str:
    return re.sub(r"[\W_]", "", class_name).lower()
