"""What every test of hostile input asks: a result or an error of ours that says something, soon."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mergelib.core.errors import MergelibError

# of this process's own time: a case takes milliseconds, and a busy machine does not make it take
# more
SECONDS = 20
WALL = 300  # for what waits instead of computing
LONGEST = 4_000  # characters of a message


@contextmanager
def in_time() -> Iterator[None]:
    """Raises ``TimeoutError`` in a block that does not end."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"nothing after {SECONDS} s of computing, or {WALL} s of waiting")

    timers = {
        signal.ITIMER_PROF: (signal.SIGPROF, SECONDS),
        signal.ITIMER_REAL: (signal.SIGALRM, WALL),
    }
    before = {number: signal.signal(number, ring) for number, _ in timers.values()}
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def typed(call: Callable[[], Any], *offenders: str) -> Any:
    """What ``call`` gives, or the ``MergelibError`` that it raises, which must be short and hold
    ``offenders``. Anything else passes on."""
    try:
        with in_time():
            return call()
    except MergelibError as error:
        message = str(error)
        assert message.strip() and len(message) < LONGEST, message[:200]
        for offender in offenders:
            assert offender in message, f"{offender} is not named by: {message[:300]}"
        return error


class Planted:
    """Whoever unpickles it makes a folder."""

    def __init__(self, trap: Path):
        self.trap = str(trap)

    def __reduce__(self):
        return os.mkdir, (self.trap,)


def plant(path: Path, trap: Path, *, zipped: bool = True) -> Path:
    """A pickle at ``path`` that makes ``trap`` when it is run: as torch saves it, or bare."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if zipped:
        torch.save({"weight": torch.zeros(2), "x": Planted(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Planted(trap)))
    return path
