"""The project as committed. A run rewrites figures/ with its machine's last digits, JupyterLab
saves into notebooks/: neither is a fault."""

import atexit
import io
import shutil
import subprocess
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from mergelib.core import paths


def git(*arguments: str) -> bytes | None:
    """What git says about this project, also to another user than its owner; None where there is no
    git or no commit."""
    root = paths.root()
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True)
    return done.stdout if done.returncode == 0 else None


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
