"""Whole files of a repository: huggingface_hub fetches, resumes and lists; this module compares the
bytes.

In its cache, the client names each blob after the hash that the hub reported (sha256 of large
files, git's sha1 of small ones). A file counts as fetched when its bytes have that hash.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

import huggingface_hub  # its functions are imported when they are first used

from ..errors import DataError, OfflineError, first_five
from .errors import as_ours
from .repository import BESIDE, REGISTRY, Repository


@dataclass(frozen=True)
class WholeFiles:
    """The wanted files of a repository at one commit, in the client's cache."""

    repository: Repository
    commit: str
    hashed = "hash that the hub listed"

    def fetch(self) -> dict[str, Path]:
        """Return every file by its name, fetched where it is missing or damaged."""
        files = self._files()
        for path in files.values():
            if self.damaged(path):
                self._replace(path)
        return files

    def kept(self) -> dict[str, Path]:
        """Return every file by its name, without network; an empty dict if any is missing."""
        try:
            return self._files(local_files_only=True)
        except (OfflineError, DataError):
            return {}

    def plan(self) -> tuple[int, int, int]:
        """Return how many files there are, their bytes, and those of files that are missing."""
        files = self._files(dry_run=True).values()
        missing = sum(file.file_size for file in files if file.will_download)
        return len(files), sum(file.file_size for file in files), missing

    @staticmethod
    def damaged(path: Path) -> bool:
        """Return whether a file's bytes do not match the hash in its blob's name."""
        blob = path.resolve().name
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob):
            return False  # a file system without links: the client kept no hash
        of_git = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        with path.open("rb") as f:
            found = hashlib.file_digest(f, "sha256" if len(blob) == 64 else lambda: of_git)
        return found.hexdigest() != blob

    def _files(self, **options: Any) -> dict[str, Any]:
        """Name -> path of all wanted files, or with ``dry_run``, the client's information about
        them.

        Raises ``DataError`` unless the repository has all wanted files.
        """
        repository = self.repository
        one_each = isinstance(repository.files, dict)
        for wanted in repository.wanted:
            patterns = {
                "allow_patterns": [*chain(*wanted.values())],
                "ignore_patterns": ["*/*"] if repository.is_base_model else [],
            }
            if repository.is_base_model:
                patterns["allow_patterns"] += BESIDE
            with as_ours(repository, self.commit):
                found = huggingface_hub.snapshot_download(
                    repository.id,
                    repo_type=repository.kind,
                    revision=self.commit,
                    **patterns,
                    **options,
                )
            if options.get("dry_run"):
                available = {file.filename: file for file in found}
            else:
                paths = sorted(p for p in Path(found).rglob("*") if p.is_file())
                available = {p.relative_to(found).as_posix(): p for p in paths}
            chosen = list(huggingface_hub.utils.filter_repo_objects(available, **patterns))
            fitting = {
                name: [f for f in chosen if any(fnmatch(f, end) for end in ends)]
                for name, ends in wanted.items()
            }
            lacking = [
                n for n, files in fitting.items() if not files or (len(files) > 1 and one_each)
            ]
            if not lacking and one_each:
                return {name: available[file] for name, (file,) in fitting.items()}
            if not lacking:
                return {file: available[file] for file in chosen}
        missing, files = wanted[lacking[0]][0], fitting[lacking[0]]
        has = f"{len(files)} files {first_five(files)} that end in" if files else "no file"
        raise DataError(
            f"'{repository.name}': {repository.id} at {self.commit} has {has} {missing}. "
            f"See {repository.card} and correct files in {REGISTRY.name}, or name another copy."
        )

    def _replace(self, path: Path) -> None:
        """Download one file again, and delete it if that does not help."""
        repository, commit = self.repository, self.commit
        name = path.relative_to(next(p for p in path.parents if p.name == commit)).as_posix()
        with as_ours(repository, commit, f"the copy of {name} in the cache is damaged, and "):
            huggingface_hub.hf_hub_download(
                repository.id, name, repo_type=repository.kind, revision=commit, force_download=True
            )
        if self.damaged(path):
            path.resolve().unlink()
            path.unlink()
            raise DataError(
                f"'{repository.name}': {name} of {repository.id} at {commit} does not have the "
                "hash that the hub lists. It was deleted from the cache; fetch again."
            )
