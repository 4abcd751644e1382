"""One notebook through papermill: ``python -m mergelib.execute IN OUT PARAMETERS.json``; the runner's child process.

Shows a line per section and whatever the notebook writes to stderr (progress, warnings), not its printed results.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import nbformat


class _Relay(logging.Handler):
    """papermill logs a notebook's stderr as warnings and announces cells as infos."""

    def __init__(self, sections: dict[int, str]):
        super().__init__()
        self.sections = sections

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        started = re.match(r"Executing Cell (\d+)", text)
        if started and int(started[1]) in self.sections:
            print(self.sections[int(started[1])], flush=True)
        elif record.levelno >= logging.WARNING and text.strip():
            print(re.split(r"[\r\n]", text.rstrip())[-1] if "it/s" in text or "s/it" in text else text.rstrip(), flush=True)


def main(source: str, target: str, parameters_file: str) -> int:
    """Execute ``source`` into ``target``; returns papermill's verdict as an exit code."""
    from papermill import PapermillExecutionError, execute_notebook

    cells = nbformat.read(source, as_version=4).cells
    headings = {i + 1: c.source.splitlines()[0].lstrip("# ") for i, c in enumerate(cells)
                if c.cell_type == "markdown" and c.source.startswith("## ")}
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Relay(headings))
    logger.propagate = False
    try:
        execute_notebook(source, target, parameters=json.loads(Path(parameters_file).read_text()), kernel_name="python3",
                         cwd=Path(source).parent, log_output=True, progress_bar=False, start_timeout=120,
                         autosave_cell_every=0)
    except PapermillExecutionError:
        return 1  # the runner shows the traceback from the saved notebook
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
