"""Progress as plain text on stderr: readable in a terminal, in a log and in a committed notebook
(which drops stderr)."""

import sys
import warnings
from collections.abc import Iterable

from tqdm import tqdm

from .distributed import rank

# transformers asks for a widget bar in every notebook; text is what we want, so its absence is no
# news.
warnings.filterwarnings("ignore", message="IProgress not found")


def progress(iterable: Iterable | None = None, *, desc: str, total: int | None = None) -> tqdm:
    """A text progress bar for work longer than two seconds, updated every two seconds; under
    torchrun in the first process only."""
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        file=sys.stderr,
        mininterval=2.0,
        delay=2.0,
        ncols=90,
        ascii=True,
        disable=rank() > 0,
    )
