"""The project as committed. A run rewrites figures/ with its machine's last digits, JupyterLab
saves into notebooks/: neither is a fault."""

import atexit
import io
import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from mergelib.core import paths
from mergelib.tables.committed import git


@cache
def committed() -> Path:
    """The files of HEAD, unpacked once in a temporary folder; the project itself where there is no
    git."""
    archive = git("archive", "--format=zip", "HEAD")
    if archive is None:
        return paths.root()
    folder = Path(tempfile.mkdtemp(prefix="mergelib-committed-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    zipfile.ZipFile(io.BytesIO(archive)).extractall(folder)
    return folder
