"""What a profile needs from the hub, each with what is known of it and what is cached: data sets, files of repositories, base models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, MergelibError, OfflineError, UnknownNameError
from ..profiles import load_profile, variant_names
from ..tasks import hub as data_sets
from ..tasks.hub import HubEntry
from . import files, lock
from .client import offline
from .files import Listed, Repository
from .lock import FileFacts, LockedEntry

TABLES = (
    ".parquet",
    ".csv",
    ".csv.gz",
)  # of a data set's repository; the formats that mergelib/tasks/hub.py reads


@dataclass(frozen=True)
class FileRow:
    """One file for a listing; None: unverified."""

    key: str
    path: str
    size: int | None
    sha256: str | None
    cached: bool


@dataclass(frozen=True)
class Source:
    """One data set or repository by its name in the registries."""

    name: str
    entry: Repository | HubEntry

    @property
    def is_data_set(self) -> bool:
        """Whether ``datasets`` reads it as a task; else it is a repository whose files are taken one by one."""
        return isinstance(self.entry, HubEntry)

    @property
    def is_base_model(self) -> bool:
        """Whether transformers reads it."""
        return not self.is_data_set and self.entry.is_model

    @property
    def kind(self) -> str:
        """Where the hub keeps it: "dataset" or "model"."""
        return "dataset" if self.is_data_set else self.entry.kind

    def locked(self) -> LockedEntry | None:
        """Its entry of the lock file. Raises ``DataError``."""
        return lock.read(lock.default_path()).get(self.name)

    def rows(self) -> list[FileRow]:
        """Its files as registry and lock file know them, without network."""
        locked = self.locked()
        facts = locked.files if locked else {}
        known = {} if self.is_data_set else self.entry.named
        rows = []
        for key in [*known, *(k for k in facts if k not in known)]:
            fact, said = facts.get(key), known.get(key)
            here = bool(fact and self._cached(locked.revision, fact.path))
            rows.append(
                FileRow(
                    key,
                    fact.path if fact else said.path,
                    fact.size if fact else said.size,
                    fact.sha256 if fact else said.sha256,
                    here,
                )
            )
        return rows

    def is_cached(self) -> bool:
        """Whether all of it is there at the locked commit, so that no network is needed; its bytes are not read."""
        locked = self.locked()
        if not locked:
            return False
        if self.is_data_set:
            import datasets

            return bool(locked.train) and any(
                datasets.config.HF_DATASETS_CACHE.glob(f"*/*/*/{locked.revision}/dataset_info.json")
            )
        rows = self.rows()
        return bool(rows) and all(r.cached for r in rows)

    def to_fetch(self) -> tuple[int, int, int]:
        """Files, their bytes, and those not in the client's cache, as the hub lists them now. Raises what ``fetch`` raises."""
        if self.is_data_set:
            locked = self.locked()
            revision, listing = files.hub_listing(
                self.name,
                self.entry.id,
                "dataset",
                locked.revision if locked else self.entry.revision,
                self.entry.card,
            )
            wanted = {p: f for p, f in listing.items() if p.endswith(TABLES)}
        else:
            revision, chosen = files.list_files(self.name, self.entry)
            wanted = dict(chosen.values())
        sizes = {p: f.size or 0 for p, f in wanted.items()}
        return (
            len(sizes),
            sum(sizes.values()),
            sum(s for p, s in sizes.items() if not self._cached(revision, p)),
        )

    def fetch(self) -> str:
        """Download what is not cached, verify all, complete the lock file; the commit. Raises ``MergelibError``."""
        if not self.is_data_set:
            files.fetch_files(self.name, repository=self.entry)
        else:
            data_sets.hub_splits(self.name, n_train=1, n_test=1)
            self._lock_tables(self.locked())
        return self.locked().revision

    def check(self) -> dict[str, str]:
        """Compare what is cached with the lock file, without network: part -> what is wrong, an empty text where nothing is."""
        if not self.is_data_set:
            return files.check_files(self.name, repository=self.entry)
        locked = self.locked()
        if not locked or not locked.train:
            return {"": "never fetched"}
        # datasets reads its own copy; the files that this was made from may have been deleted to save room
        result = {r.key: "; ".join(self._wrong(locked, r.key)) for r in self.rows() if r.cached}
        try:
            with offline():
                data_sets.hub_splits(self.name, n_train=1, n_test=1)
            result["rows and labels"] = ""
        except OfflineError:
            result["rows and labels"] = "not in the cache"
        except MergelibError as error:
            result["rows and labels"] = str(error)
        return result

    def _cached(self, revision: str, path: str) -> Path | None:
        return files.cached_path(self.entry.id, self.kind, revision, path)

    def _wrong(self, locked: LockedEntry, key: str, listed: Listed | None = None) -> list[str]:
        claims = [("the hub lists", listed.size, listed.hash)] if listed else []
        if fact := locked.files.get(key):
            claims.append(("the lock file has", fact.size, fact.sha256))
        return files.wrong_with(self._cached(locked.revision, key), claims)

    def _lock_tables(self, locked: LockedEntry) -> None:
        """Verify and lock the files that ``datasets`` downloaded, as far as they are still there."""
        try:
            _, listing = files.hub_listing(
                self.name, self.entry.id, "dataset", locked.revision, self.entry.card
            )
        except OfflineError:
            return  # rows and labels were verified, from the cache
        found = {}
        for path, listed in listing.items():
            if path.endswith(TABLES) and (file := self._cached(locked.revision, path)):
                if wrong := self._wrong(locked, path, listed):
                    raise DataError(
                        f"'{self.name}': {path} of {self.entry.id} is not the file expected: {'; '.join(wrong)}. Delete the data set's "
                        "folders from the caches of huggingface_hub and datasets and fetch again."
                    )
                found[path] = FileFacts(
                    path=path, size=file.stat().st_size, sha256=files.file_hash(file)
                )
        lock.add(
            lock.default_path(),
            self.name,
            LockedEntry(id=locked.id, revision=locked.revision, files=found),
        )


def needed(
    profile: str, overrides: dict[str, Any] | None = None, variants: Sequence[str] | None = None
) -> list[Source]:
    """Everything that ``profile`` with ``overrides`` reads from the hub, as it is (variant "") and in its variants, or in those of ``variants``
    alone. Raises what ``load_profile`` raises."""
    found: dict[str, Repository | HubEntry] = {}
    repositories = files.registry()
    for variant in ("", *variant_names(profile)) if variants is None else variants:
        loaded = load_profile(profile, overrides, variant)
        tasks, encoder = loaded.tasks, loaded.encoder
        if tasks.source == "hub":
            known = data_sets.registry() if tasks.modality == "text" else repositories
            found |= {n: known[n] for n in tasks.names if n in known}
        for wanted, name in (
            (loaded.experts, "released_checkpoints"),
            (tasks.source, "released_data"),
        ):
            if wanted == "released" and not loaded.released_dir and name in repositories:
                found[name] = repositories[name]
        if encoder.base and not Path(encoder.base).expanduser().exists():
            found.update(
                [
                    files.base_model(
                        encoder.base,
                        encoder.revision,
                        "clip" if encoder.kind == "clip" else "transformers",
                    )
                ]
            )
    return [Source(name, entry) for name, entry in found.items()]


def named(names: Sequence[str], profile: str) -> list[Source]:
    """The sources of these names, of the registries or among those that ``profile`` needs; all of the latter when no name is given. Raises
    ``UnknownNameError``."""
    own = {s.name: s for s in needed(profile)}
    if not names:
        return list(own.values())
    known = {n: Source(n, e) for n, e in {**data_sets.registry(), **files.registry()}.items()} | own
    for name in names:
        if name not in known:
            raise UnknownNameError("data set or repository of the hub", name, known)
    return [known[n] for n in dict.fromkeys(names)]
