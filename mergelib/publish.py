"""For maintainers: refresh the committed notebooks from a run, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nbformat

from . import paths
from .runner import Item

MAX_BYTES = 1_000_000
MACHINE_FOLDERS = ("/home/", "/Users/", "/root/", "/tmp/")


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook as it may be committed: no injected cell, no timings, no widget state, no stderr, counts 1..n."""
    cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    count = 0
    for cell in cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            output.pop("transient", None)
            if "metadata" in output:
                output.metadata = {}
    notebook.cells = cells
    notebook.metadata = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def publish(profile: str, items: Sequence[Item]) -> list[Path]:
    """Write the executed notebooks of ``profile`` over the committed ones. Raises ``ValueError`` for a notebook that is
    too large, holds an error, or shows a path of this machine."""
    written = []
    for item in items:
        notebook = normalise(nbformat.read(paths.build(profile) / "notebooks" / f"{item.id}.ipynb", as_version=4))
        nbformat.validate(notebook)
        text = nbformat.writes(notebook, version=4, indent=1, ensure_ascii=False) + "\n"
        if len(text) > MAX_BYTES:
            raise ValueError(f"{item.id}: {len(text)} bytes; committed notebooks stay under {MAX_BYTES}.")
        machine = [d for d in MACHINE_FOLDERS if d in text]
        if machine or '"output_type": "error"' in text:
            raise ValueError(f"{item.id}: it shows {machine or 'an error'}; mend the notebook before publishing.")
        paths.write_whole(item.path, text.encode())
        written.append(item.path)
    return written
