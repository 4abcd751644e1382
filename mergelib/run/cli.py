"""``python -m mergelib``: run notebooks, manage the store and downloads from the hub, merge and
re-align your own models."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from ..core import paths
from ..core.errors import MergelibError
from .parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    args = build_parser().parse_args(argv)
    try:
        function = args.function
        if isinstance(function, str):
            module, _, name = function.partition(":")
            function = getattr(import_module(f"mergelib.{module}"), name)
        code = function(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has closed the pipe, as in `data list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print(
            "\nInterrupted. What is complete is kept; run the same command to continue.",
            file=sys.stderr,
        )
        return 128 + signal.SIGINT
    except MergelibError as error:
        print(f"mergelib: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mergelib"):
            raise
        print(f"mergelib: {error}. Install the pinned packages: ./run_all.sh", file=sys.stderr)
    except OSError as error:
        if not paths.refused_by_disk(error):
            raise
        print(
            f"mergelib: {error}. Free space, or choose folders that you can write to "
            "(MERGELIB_STORE, MERGELIB_OUTPUT, TMPDIR).",
            file=sys.stderr,
        )
    return 2
