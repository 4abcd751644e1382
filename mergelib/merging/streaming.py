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
from .states import add_scaled
from .ties import disjoint_merge, ties

Pieces = Callable[[], Iterator[tuple[Tensor, Sequence[Tensor]]]]
LOW_BITS = 16


def elementwise(function: Callable, pieces: Pieces, **options: Any) -> Iterator[Tensor]:
    """A method that treats every number by itself: the method, on one piece after the other."""
    for base, experts in pieces():
        yield function({"piece": base}, [{"piece": e} for e in experts], **options)["piece"]


def _from_top(counts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Bin that holds the ``wanted``-th largest entry, and its rank among the bin's own: ``[T, bins], [T] -> [T], [T]``."""
    reached = counts.flip(-1).cumsum(-1)
    place = torch.searchsorted(reached, wanted.unsqueeze(-1))
    above = (reached - counts.flip(-1)).gather(-1, place)
    return counts.shape[-1] - 1 - place.squeeze(-1), wanted - above.squeeze(-1)


def magnitude_thresholds(pieces: Pieces, keep: float) -> Tensor:
    """The int(D * keep)-th largest \\|tau_t\\| of each expert, ``[T]`` float32; inf where int(D * keep) is 0.

    Two passes. Magnitudes of floats order like their bits: a histogram of the high bits finds the bin, one of the low bits
    inside that bin finds the value itself, so nothing is sorted and memory does not grow with D.
    """
    high, n = None, 0
    for base, experts in pieces():
        n += base.numel()
        counts = torch.stack([((e - base).abs().view(torch.int32) >> LOW_BITS).bincount(minlength=1 << 15) for e in experts])
        high = counts if high is None else high + counts
    n_keep = int(n * keep)
    if n_keep == 0:
        return torch.full((len(high),), torch.inf, device=high.device)
    bins, rank = _from_top(high, torch.full((len(high),), n_keep, device=high.device))
    low = torch.zeros(len(high), 1 << LOW_BITS, dtype=torch.long, device=high.device)
    for base, experts in pieces():
        for t, expert in enumerate(experts):
            bits = (expert - base).abs().view(torch.int32)
            low[t] += (bits & ((1 << LOW_BITS) - 1))[bits >> LOW_BITS == bins[t]].bincount(minlength=1 << LOW_BITS)
    return ((bins << LOW_BITS) + _from_top(low, rank)[0]).to(torch.int32).view(torch.float32)


def _trimmed(base: Tensor, experts: Sequence[Tensor], thresholds: Tensor) -> Tensor:
    tau = torch.stack(list(experts)) - base
    return torch.where(tau.abs() >= thresholds.unsqueeze(-1), tau, 0.0)


def ties_streamed(function: Callable, pieces: Pieces, *, lam: float = 0.3, keep: float = 0.2, combine: str = "sum") -> Iterator[Tensor]:
    """Ties in four passes: two for the thresholds over the whole encoder, one for the overall sign that columns summing to 0
    take, one that merges."""
    thresholds = magnitude_thresholds(pieces, keep)
    overall = torch.zeros((), dtype=torch.long, device=thresholds.device)
    for base, experts in pieces():
        overall += _trimmed(base, experts, thresholds).sum(0).sign().long().sum()
    for base, experts in pieces():
        trimmed = _trimmed(base, experts, thresholds)
        signs = trimmed.sum(0).sign()
        direction = disjoint_merge(trimmed, torch.where(signs == 0, overall.sign().to(signs.dtype), signs), combine)
        yield add_scaled({"piece": base}, {"piece": direction}, lam)["piece"]


# By function, not by name: a method registered anew under an old name must not inherit the old one's streaming form.
STREAMED: dict[Callable, Callable[..., Iterator[Tensor]]] = {
    weight_averaging: elementwise, task_arithmetic: elementwise, ties: ties_streamed}


def can_stream(method: Method) -> bool:
    """Whether the method has a streaming form."""
    return method.function in STREAMED


def stream(method: Method, pieces: Pieces, **options: Any) -> Iterator[Tensor]:
    """The merged pieces. Raises what the method raises for unknown or impossible options, before anything is read."""
    method.check_options(options)
    one = {"piece": torch.zeros(1)}
    method.function(one, [one], **options)  # the method itself knows which values it refuses
    return STREAMED[method.function](method.function, pieces, **options)
