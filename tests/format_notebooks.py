"""Code cells as ``ruff format`` gives them at the width that ``notebooks/ruff.toml`` sets:

    python tests/format_notebooks.py [NOTEBOOK ...]

In place; all notebooks and solutions when none is named. The parameters cell stays as it is:
papermill reads one definition a line, its help text behind it. So do outputs.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
WIDTH = tomllib.loads((FOLDER / "ruff.toml").read_text())["line-length"]


def formatted(path: Path) -> dict[str, str]:
    """What the code cells of the notebook at ``path`` should be, by cell id, without the parameters
    cell.

    Raises ``CalledProcessError`` for code that ruff cannot parse.
    """
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    notebook.cells = [
        c
        for c in notebook.cells
        if c.cell_type == "code" and "parameters" not in c.metadata.get("tags", [])
    ]
    # Named after a file of the folder, so that ruff finds the folder's settings.
    words = "-m ruff format --no-cache --stdin-filename".split()
    ruff = [sys.executable, *words, str(FOLDER / "cells.ipynb"), "-"]
    done = subprocess.run(
        ruff,
        input=nbformat.writes(notebook),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return {
        c.id: c.source for c in nbformat.reads(done.stdout, as_version=nbformat.NO_CONVERT).cells
    }


def main(paths: list[Path]) -> None:
    for path in paths or sorted(FOLDER.rglob("*.ipynb")):
        notebook, sources = nbformat.read(path, as_version=nbformat.NO_CONVERT), formatted(path)
        for cell in notebook.cells:
            cell.source = sources.get(cell.id, cell.source)
        path.write_text(
            nbformat.writes(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main([Path(p) for p in sys.argv[1:]])
