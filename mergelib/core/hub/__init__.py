"""The Hugging Face hub: pinned and verified downloads."""

from .download import cached_files, fetch, fetch_file, fetch_model, locked_revision, pin
from .lock import lock_path
from .repository import Repository, registry

__all__ = [
    "Repository",
    "cached_files",
    "fetch",
    "fetch_file",
    "fetch_model",
    "lock_path",
    "locked_revision",
    "pin",
    "registry",
]
