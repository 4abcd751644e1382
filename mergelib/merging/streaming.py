"""The same methods piece by piece, for weights on disk that need not be in memory together.

A streaming form takes ``pieces``, a function that yields the same pieces each time it is called: a flat part of theta_b
``[n]`` and the same part of the T experts, all float32. It yields the merged pieces in that order. A method without a
streaming form needs all weights at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import Method
from .arithmetic import task_arithmetic, weight_averaging
from .states import cut
from .ties import Pieces, add_up, counted_thresholds, merge_piece, ties, trim_piece


def elementwise(function: Callable, pieces: Pieces, **options: Any) -> Iterator[Tensor]:
    """A method that treats every number by itself: the method, on one piece after the other."""
    for base, experts in pieces():
        yield function({"piece": base}, [{"piece": e} for e in experts], **options)["piece"]


def ties_streamed(
    function: Callable, pieces: Pieces, *, lam: float = 0.3, keep: float = 0.2, combine: str = "sum"
) -> Iterator[Tensor]:
    """Ties in four passes: two for the thresholds over the whole encoder, one for the overall sign that columns summing to 0
    take, one that merges."""

    def parts(base: Tensor, experts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
        return ((b, rest) for b, *rest in cut([{"": t} for t in (base, *experts)], [""]))

    def all_parts() -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
        return (part for piece in pieces() for part in parts(*piece))

    smallest = counted_thresholds(all_parts, keep).tolist()
    overall = 0

    def merged(base: Tensor, experts: Sequence[Tensor]) -> Tensor:
        trimmed = trim_piece(base, experts, smallest, base.new_empty(len(experts), len(base)))
        signs = (
            add_up(trimmed, torch.empty_like(base))
            .sign_()
            .add_(0.5 if overall > 0 else -0.5)
            .sign_()
        )
        return merge_piece(trimmed, signs, combine).mul_(lam).add_(base)

    for base, experts in all_parts():
        trimmed = trim_piece(base, experts, smallest, base.new_empty(len(experts), len(base)))
        overall += int(add_up(trimmed, torch.empty_like(base)).sign_().long().sum())
    for base, experts in pieces():
        yield torch.cat([merged(*part) for part in parts(base, experts)])


# By function, not by name: a method registered anew under an old name must not inherit the old one's streaming form.
STREAMED: dict[Callable, Callable[..., Iterator[Tensor]]] = {
    weight_averaging: elementwise,
    task_arithmetic: elementwise,
    ties: ties_streamed,
}


def can_stream(method: Method) -> bool:
    """Whether the method has a streaming form."""
    return method.function in STREAMED


def stream(method: Method, pieces: Pieces, **options: Any) -> Iterator[Tensor]:
    """The merged pieces. Raises what the method raises for unknown or impossible options, before anything is read."""
    method.check_options(options)
    one = {"piece": torch.zeros(1)}
    method.function(one, [one], **options)  # the method itself knows which values it refuses
    return STREAMED[method.function](method.function, pieces, **options)
