"""Methods that work piece by piece, for weights on disk that need not be in memory together.

A streaming form takes ``pieces`` (``ties.Pieces``, float32) and yields the merged pieces in their
order. A method without a streaming form needs all weights at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from .arithmetic import task_arithmetic, weight_averaging
from .registry import Method
from .ties import Pieces, ties, ties_streamed


def elementwise(function: Callable, pieces: Pieces, **options: Any) -> Iterator[Tensor]:
    """For a method that treats every number separately: apply it to one piece after the other."""
    for base, experts in pieces():
        yield function({"piece": base}, [{"piece": e} for e in experts], **options)["piece"]


# Keyed by function, not by name: a method registered again under an old name must not inherit the
# old one's streaming form.
STREAMED: dict[Callable, Callable[..., Iterator[Tensor]]] = {
    weight_averaging: partial(elementwise, weight_averaging),
    task_arithmetic: partial(elementwise, task_arithmetic),
    ties: ties_streamed,
}


def can_stream(method: Method) -> bool:
    """Whether the method has a streaming form."""
    return method.function in STREAMED


def stream(method: Method, pieces: Pieces, **options: Any) -> Iterator[Tensor]:
    """Yield the merged pieces; invalid options raise as in the method, before anything is read."""
    method.check_options(options)
    return STREAMED[method.function](pieces, **options)
