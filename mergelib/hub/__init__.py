"""Between the Hugging Face hub and this disk: what is fetched (``files.yaml``, ``mergelib/tasks/hub.yaml``), verified and locked."""

from .files import check_files, fetch_file, fetch_files, fetch_model, locked_revision
from .lock import default_path

__all__ = [
    "check_files",
    "default_path",
    "fetch_file",
    "fetch_files",
    "fetch_model",
    "locked_revision",
]
