"""Tasks from the Hugging Face hub: registry in ``hub.yaml``, commits and fingerprints in a lock file.

The first fetch of a data set writes what it got to ``hub.lock.json``: commit, rows, rows without text, digest of the
labels in their order. Later fetches ask for that commit and must find the same rows and labels. Only data files are
read, never code from a repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..errors import DataError, MergelibError, OfflineError, UnknownNameError
from ..hub import lock
from ..hub.client import COMMIT, TIMEOUT_S, kinds, no_answer, refusal, said
from ..hub.lock import LockedEntry, SplitFacts
from ..types import Split, digest
from .local import LABEL_NAMES

if TYPE_CHECKING:
    from datasets import Dataset

REGISTRY = Path(__file__).with_name("hub.yaml")
FORMATS = ("parquet", "csv")
SUBSAMPLE_SEED = 20_241_219
BLOCK = 10_000  # rows that become Python strings at a time


class HubEntry(BaseModel):
    """One data set of the registry; ``hub.yaml`` explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    card: str
    config: str | None
    revision: str | None
    splits: dict[Literal["train", "test"], str]
    rows: dict[Literal["train", "test"], int] | None
    label: str
    first_label: Literal[0, 1]
    text: tuple[str, ...]
    label_names_from: str | None
    licence: str | None
    citation: str | None
    variants: tuple[str, ...]


def registry() -> dict[str, HubEntry]:
    """Task name -> its data set on the hub."""
    return {
        name: HubEntry.model_validate(raw)
        for name, raw in yaml.safe_load(REGISTRY.read_text("utf-8")).items()
    }


def hub_splits(
    name: str,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    lock_path: Path | str | None = None,
) -> tuple[tuple[str, ...], Split, Split]:
    """Label names, train and test split of task ``name`` from the hub, or from the client's cache when offline.

    ``n_train`` and ``n_test`` keep that many rows, drawn by a seeded permutation that looks at no label; without them
    all rows come in their order. The parts of a text are stripped and joined by one space, missing and empty parts
    skipped. A row without any text is dropped (and, in a subsample, replaced by the next row of the permutation); the
    lock file counts them over the whole split.

    Raises ``UnknownNameError`` for a task without a registry entry; ``OfflineError`` when the hub does not answer and
    the cache has no copy of the revision; ``StoreError`` when the lock file cannot be written; ``DataError`` when the
    data are not what the registry or the lock file says: repository, revision, format, columns, class names, labels,
    rows.
    """
    for what, n in (("n_train", n_train), ("n_test", n_test)):
        if n is not None and n < 1:
            raise DataError(f"{what} = {n}; give a positive number of rows, or None for all.")
    known = registry()
    if name not in known:
        raise UnknownNameError("task on the hub", name, known)
    entry, label_names = known[name], LABEL_NAMES[name]
    path = Path(lock_path) if lock_path else lock.default_path()
    locked = lock.locked(path, name, entry.id, entry.revision, "hub.yaml")

    parts, revision = _fetch(name, entry, locked.revision if locked else entry.revision)
    if locked and not (locked.train and locked.test):
        locked = None  # only the commit was settled
    labels = [_labels(name, entry, part, label_names) for part in parts]
    # Rows without text are counted once: that reads every text, the other facts only the labels.
    empty = (
        [locked.train.empty, locked.test.empty]
        if locked
        else [_count_empty(part, entry.text) for part in parts]
    )
    facts = [
        SplitFacts(rows=len(part), empty=e, labels=digest(label.numpy().astype("<i8").tobytes()))
        for part, label, e in zip(parts, labels, empty, strict=True)
    ]
    found = LockedEntry(id=entry.id, revision=revision, train=facts[0], test=facts[1])
    _verify(name, entry, found, locked, path)
    splits = [
        _sample(name, entry, part, label, n, seed=SUBSAMPLE_SEED + i)
        for i, (part, label, n) in enumerate(zip(parts, labels, (n_train, n_test), strict=True))
    ]
    if not locked:
        lock.add(path, name, found)
    return label_names, splits[0], splits[1]


def _fetch(name: str, entry: HubEntry, wanted: str | None) -> tuple[list[Dataset], str]:
    """Train and test data and the commit they come from: ``wanted``, or today's when that is None."""
    import datasets
    from huggingface_hub import HfApi

    revision, reason = wanted, None
    # Both libraries raise what their transport raises, beyond any common base class; hence the bare Exception twice.
    try:
        revision = HfApi().dataset_info(entry.id, revision=wanted, timeout=TIMEOUT_S).sha
    except Exception as error:
        reason = no_answer(error)
        if not reason:
            raise _refused(name, entry, wanted, error) from error
    try:
        with _cache_only(reason is not None):
            # The prefix keeps the client from taking a folder of that name for the data set.
            parts = datasets.load_dataset(
                f"hf://datasets/{entry.id}",
                entry.config,
                revision=revision,
                split=[entry.splits["train"], entry.splits["test"]],
            )
    except Exception as error:
        lost = no_answer(error)
        if reason:
            raise _offline(name, entry, reason) from error
        if lost:
            raise _offline(
                name, entry, f"{lost} during the download; files that were complete are kept"
            ) from error
        raise _refused(name, entry, revision, error) from error

    commits = {Path(file["filename"]).parent.name for part in parts for file in part.cache_files}
    if len(commits) != 1 or not COMMIT.fullmatch(commit := commits.pop()):
        raise DataError(
            f"Task '{name}': the cached copy of {entry.id} does not say which commit it is. Delete it from "
            f"{datasets.config.HF_DATASETS_CACHE} and fetch again."
        )
    # When a download fails the client may give its newest cached copy instead, whatever commit was asked for.
    if revision and COMMIT.fullmatch(revision) and commit != revision:
        raise _offline(
            name,
            entry,
            f"{reason or 'the download failed'}, the cache's newest copy is commit {commit}, "
            f"not {revision}",
        )
    formats = {part.info.builder_name for part in parts}
    if not formats <= set(FORMATS):
        raise DataError(
            f"Task '{name}': {entry.id} holds {', '.join(sorted(map(str, formats)))} files; only "
            f"{' and '.join(FORMATS)} are read. Name another copy in hub.yaml, or use --text-dir."
        )
    return parts, commit


@contextmanager
def _cache_only(on: bool) -> Iterator[None]:
    """Let ``datasets`` look in its cache only: once the hub did not answer, its own retries take half a minute."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = on or before
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _offline(name: str, entry: HubEntry, reason: str) -> OfflineError:
    return OfflineError(
        f"Task '{name}': {entry.id} is not to be had: {reason}, and the cache cannot stand in. "
        "Connect once (HF_HUB_OFFLINE unset), or give local files with --text-dir."
    )


def _refused(name: str, entry: HubEntry, revision: str | None, error: Exception) -> MergelibError:
    """The hub answered, but not with the data."""
    import datasets
    from huggingface_hub import constants

    at = f"{entry.id} at {revision or 'its newest revision'}"
    why = refusal(error, "data set", entry.card)
    if "revision is gone" in why:
        why += f". Known variants: {_variants(entry)}. Delete the lock entry to take the newest"
    elif why:
        why += "" if "hf auth login" in why else ". Correct hub.yaml or use --text-dir"
    elif kinds(error) & {"DatasetGenerationError", "ArrowInvalid", "UnicodeDecodeError"}:
        why = (
            "a file is not what its name says (a saved error page?). Delete the data set's folders from "
            f"{constants.HF_HUB_CACHE} and {datasets.config.HF_DATASETS_CACHE} and fetch again"
        )
    else:
        why = f"the client refused it. See {entry.card}; correct hub.yaml or use --text-dir"
    return DataError(f"Task '{name}': {at} cannot be loaded: {why}. ({said(error)})")


def _labels(name: str, entry: HubEntry, data: Dataset, label_names: Sequence[str]) -> Tensor:
    """0-based labels of all rows, after checks of columns, class names and range."""
    import pyarrow as pa

    expected = [entry.label, *entry.text]
    if missing := [c for c in expected if c not in data.column_names]:
        raise DataError(
            f"Task '{name}': {entry.id} has no column {', '.join(missing)}. "
            f"Found: {', '.join(data.column_names)}; expected: {', '.join(expected)}. "
            f"Correct hub.yaml after a look at {entry.card}."
        )
    table = data.data
    for c in entry.text:
        kind = table.column(c).type
        if not (
            pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
        ):
            raise DataError(
                f"Task '{name}': column {c} of {entry.id} holds {kind}, not text. Correct hub.yaml."
            )
    names = getattr(data.features[entry.label], "names", None)
    if names and [_plain(n) for n in names] != [_plain(n) for n in label_names]:
        raise DataError(
            f"Task '{name}': {entry.id} names its classes {', '.join(names)}; expected, in this order: "
            f"{', '.join(label_names)}. Known variants: {_variants(entry)}."
        )
    column = table.column(entry.label)
    if column.null_count:
        raise DataError(
            f"Task '{name}': {column.null_count} rows of {entry.id} have no {entry.label}; "
            "name another copy in hub.yaml."
        )
    try:
        numbers = column.cast(pa.int64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"Task '{name}': column {entry.label} of {entry.id} holds {column.type}, not integers "
            f"({error}). Correct hub.yaml."
        ) from error
    labels = torch.from_numpy(numbers.copy()) - entry.first_label
    if not len(labels):
        raise DataError(
            f"Task '{name}': a split of {entry.id} is empty. Clear the cache and fetch again."
        )
    low, high = int(labels.min()) + entry.first_label, int(labels.max()) + entry.first_label
    last = entry.first_label + len(label_names) - 1
    if low < entry.first_label or high > last:
        raise DataError(
            f"Task '{name}': labels of {entry.id} run from {low} to {high}, expected {entry.first_label} "
            f"to {last}. Correct first_label in hub.yaml, or this is another data set. "
            f"Known variants: {_variants(entry)}."
        )
    return labels


def _plain(class_name: str) -> str:
    """A class name without the spellings in which copies differ: case, spaces, plural."""
    return re.sub(r"[\W_]", "", class_name).lower().rstrip("s")


def _variants(entry: HubEntry) -> str:
    return "; ".join(entry.variants) or "none"


def _count_empty(data: Dataset, columns: Sequence[str]) -> int:
    """Rows without text in any of the columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    empty = None
    for c in columns:
        # Text by text and in Arrow: nothing is copied, so millions of reviews fit.
        text = data.data.column(c)
        text = text.cast(pa.string()) if pa.types.is_null(text.type) else text
        blank = pc.fill_null(
            pc.or_(pc.utf8_is_space(text), pc.equal(pc.binary_length(text), 0)), True
        )
        empty = blank if empty is None else pc.and_(empty, blank)
    return int(pc.sum(empty).as_py() or 0)


def _sample(
    name: str, entry: HubEntry, data: Dataset, labels: Tensor, n: int | None, *, seed: int
) -> Split:
    """All rows with text in their order, or n of them by a seeded permutation, drawn before they become strings."""
    whole = n is None or n >= len(data)
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(len(data)) if whole else torch.randperm(len(data), generator=generator)
    n = len(order) if whole else n
    columns = data.select_columns(list(entry.text))
    texts: list[str] = []
    kept: list[int] = []
    at = 0
    while len(texts) < n and at < len(order):
        rows = order[at : at + min(BLOCK, n - len(texts))].tolist()
        at += len(rows)
        block = columns.select(rows)[:]
        for row, parts in zip(rows, zip(*(block[c] for c in entry.text), strict=True), strict=True):
            if text := join_parts(parts):
                texts.append(text)
                kept.append(row)
    if not texts:
        raise DataError(
            f"Task '{name}': no row of {entry.id} has text in {', '.join(entry.text)}. Correct hub.yaml."
        )
    return Split(tuple(texts), labels[torch.tensor(kept)])


def join_parts(parts: Sequence[str | None]) -> str:
    """The parts that are left after stripping, joined by one space."""
    return " ".join(p for part in parts if part and (p := part.strip()))


def _verify(
    name: str, entry: HubEntry, found: LockedEntry, locked: LockedEntry | None, path: Path
) -> None:
    """Compare with the lock file or, at a first fetch, with the row counts of the registry."""
    differences = []
    for split in ("train", "test"):
        here: SplitFacts = getattr(found, split)
        if locked:
            there: SplitFacts = getattr(locked, split)
            if here.rows != there.rows:
                differences.append(f"{split} has {here.rows:,} rows, locked {there.rows:,}")
            elif here.labels != there.labels:
                differences.append(f"the labels of {split} differ in value or order")
        elif entry.rows and here.rows != entry.rows[split]:
            differences.append(f"{split} has {here.rows:,} rows, expected {entry.rows[split]:,}")
    if differences:
        remedy = (
            f"Clear the cache and fetch again, or delete the entry '{name}' from {path} if these data are meant"
            if locked
            else "If these data are meant, correct rows in hub.yaml"
        )
        raise DataError(
            f"Task '{name}': {entry.id} at {found.revision} is not the data set expected: "
            f"{', '.join(differences)}. Known variants: {_variants(entry)}. {remedy}."
        )
