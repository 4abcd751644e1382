"""Progress as plain text on stderr: readable in a terminal, in a log and in a committed notebook
(which drops stderr)."""

import sys
import warnings
from collections.abc import Iterable

from tqdm import tqdm

from .distributed import rank

# transformers warns in every notebook that widget bars are missing; we want text bars, so the
# warning is noise.
warnings.filterwarnings("ignore", message="IProgress not found")


def progress(iterable: Iterable | None = None, *, desc: str, total: int | None = None) -> tqdm:
    """A text progress bar for work longer than two seconds, updated every two seconds; under
    torchrun in the first process only, and without ``desc`` nowhere."""
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        file=sys.stderr,
        mininterval=2.0,
        delay=2.0,
        ncols=90,
        ascii=True,
        disable=rank() > 0 or not desc,
    )
