"""Where things are, found from the package so that a notebook works from any folder."""

import os
from pathlib import Path


def root() -> Path:
    """The project's folder (the one that holds ``notebooks/``)."""
    return Path(__file__).resolve().parent.parent


def store_root() -> Path:
    """Computed artifacts. ``MERGELIB_STORE`` moves them."""
    return Path(os.environ.get("MERGELIB_STORE") or root() / ".cache" / "store")


def output_root() -> Path:
    """Folder that receives ``figures/`` and ``build/``. ``MERGELIB_OUTPUT`` moves both (the tests do)."""
    return Path(os.environ.get("MERGELIB_OUTPUT") or root())


def figures(profile: str) -> Path:
    return output_root() / "figures" / profile


def build(profile: str) -> Path:
    return output_root() / "build" / profile


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file."""
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_bytes(content)
    tmp.replace(path)
