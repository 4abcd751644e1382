"""One notebook through papermill: ``python -m mergelib.run.execute IN OUT PARAMETERS``, which are
JSON; the runner's child process.

It shows a line per section and the notebook's stderr (progress, warnings), but not its printed
results.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill import PapermillExecutionError, execute_notebook

from ..core import paths
from ..core.manifest import NO_ROOM

PROGRESS = re.compile(r"\d+(?:\.\d+)?(?:it/s|s/it)")
EVERY = 10.0  # seconds between two progress lines


class _Relay(logging.Handler):
    """papermill logs a notebook's stderr as warnings and cells as infos."""

    def __init__(self, sections: dict[int, str]):
        super().__init__()
        self.sections, self.shown = sections, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().rstrip()
        started = re.match(r"Executing Cell (\d+)", text)
        if started and int(started[1]) in self.sections:
            print(self.sections[int(started[1])], flush=True)
        elif record.levelno < logging.WARNING or not text.strip() or "[IPKernelApp]" in text:
            return
        elif PROGRESS.search(text):
            if time.monotonic() - self.shown > EVERY:
                self.shown = time.monotonic()
                print(re.split(r"[\r\n]", text)[-1], flush=True)
        else:
            print(text, flush=True)


def end_with(parent: int) -> None:
    """End this process, kernel first, as soon as ``parent`` is no longer its parent: a runner that
    is killed outright cannot clean up, and the next run would find the old notebook still
    running."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10.0)  # for the kernel
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class OwnKernel(AsyncKernelManager):
    """A manager whose kernel uses this interpreter, whatever kernels the user's Jupyter has under
    that name."""

    kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3 (ipykernel)",
        language="python",
    )


def main(source: str, target: str, parameters: str) -> int:
    """Execute ``source`` into ``target``; returns papermill's verdict as an exit code, or
    ``NO_ROOM``."""
    end_with(os.getppid())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cells = nbformat.read(source, as_version=4).cells
    headings = {
        i + 1: c.source.splitlines()[0].lstrip("# ")
        for i, c in enumerate(cells)
        if c.cell_type == "markdown" and c.source.startswith("## ")
    }
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Relay(headings))
    logger.propagate = False
    try:
        execute_notebook(
            source,
            target,
            parameters=json.loads(parameters),
            kernel_name="python3",
            kernel_manager_class=OwnKernel,
            cwd=Path(source).parent,
            log_output=True,
            progress_bar=False,
            start_timeout=120,
            autosave_cell_every=0,
        )
    except PapermillExecutionError:
        return 1  # the runner shows the traceback from the saved notebook
    except OSError as error:
        if not paths.refused_by_disk(error):
            raise
        Path(target).unlink(missing_ok=True)  # half of it may have been written
        return NO_ROOM
    except KeyboardInterrupt:  # maybe because there is no runner any more
        Path(target).unlink(missing_ok=True)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
