"""Ties: trim, elect signs, merge what agrees (Eq. 3; Yadav et al., 2023), piece by piece."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Literal

import torch
from torch import Tensor

from ..core.types import State
from .options import ShareAboveZero
from .registry import method
from .states import Experts, Tensors, assembled, cut

Pieces = Callable[[], Iterator[tuple[Tensor, Sequence[Tensor]]]]
"""Yields the same pieces at every call: a part of theta_b ``[n]``, the same of the T experts."""

STEP = 199  # every so-many-th number is sampled; no width of a layer is a multiple of it
DEVIATIONS = 5  # for a sample's rank: one threshold in two million lies outside
GROUP = 8


def select(
    pieces: Pieces, n_keep: int, low: Sequence[float], high: Sequence[float]
) -> list[float] | None:
    """The ``n_keep``-th largest \\|tau_t\\| of each expert, None unless strictly between bounds."""
    above, between = [0] * len(low), [[] for _ in low]
    for base, experts in pieces():
        magnitude, reaches, inside = torch.empty(3, len(base), device=base.device)
        for t, expert in enumerate(experts):
            torch.sub(expert.float(), base.float(), out=magnitude).abs_()
            # Numbers 1 and 0 in place, and sums of them, are far quicker than masks, and a mask of
            # few far quicker than one of all.
            above[t] += reaches.copy_(magnitude).ge_(high[t]).sum().long()
            inside.copy_(magnitude).gt_(low[t]).sub_(reaches)
            candidates = magnitude
            if len(base) % GROUP == 0:
                candidates = magnitude.view(GROUP, -1)[:, inside.view(GROUP, -1).sum(0) > 0]
            between[t].append(candidates[(candidates > low[t]) & (candidates < high[t])])
    bounds = []
    for count, values in zip(above, map(torch.cat, between), strict=True):
        rank = n_keep - int(count)
        if not 1 <= rank <= len(values):
            return None
        bounds.append(float(values.kthvalue(len(values) - rank + 1).values))
    return bounds


def thresholds(pieces: Pieces, keep: float) -> list[float]:
    """The int(D * keep)-th largest \\|tau_t\\| of each expert, D numbers in all; inf for none.

    A sample says between which magnitudes it lies; a second pass counts those above and sorts those
    between. Where the sample errs, or many magnitudes are equal, all are sorted: the result is
    exact, whatever the sample, but memory then grows with D.
    """
    total, sample = 0, []
    for base, experts in pieces():
        total += len(base)
        sample.append(torch.stack([e[::STEP].float() for e in experts]) - base[::STEP].float())
    magnitudes, n_keep = torch.cat(sample, 1).abs_(), int(total * keep)
    n_experts, size = magnitudes.shape
    if n_keep == 0:
        return [math.inf] * n_experts
    share = n_keep / total
    middle, spread = size * (1 - share), DEVIATIONS * math.sqrt(size * share * (1 - share)) + 1
    low, high = (
        magnitudes.kthvalue(rank).values.tolist() if 1 <= rank <= size else [end] * n_experts
        for rank, end in ((int(middle - spread), -1.0), (int(middle + spread) + 1, math.inf))
    )
    everything = [-1.0] * n_experts, [math.inf] * n_experts
    return select(pieces, n_keep, low, high) or select(pieces, n_keep, *everything)


def add_up(rows: Tensor, out: Tensor) -> Tensor:
    """The sum of ``rows [T, n]`` in order; ``sum(0)`` changes its order towards a row's end."""
    if out.data_ptr() != rows.data_ptr():
        out.copy_(rows[0])
    for row in rows[1:]:
        out += row
    return out


def trim_and_elect(
    base: Tensor,
    experts: Sequence[Tensor],
    smallest: Sequence[float],
    overall: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """tau_t where it is at least ``smallest[t]`` in magnitude, else 0, ``[T, n]``; the elected
    signs ``[n]``, -1 or 1; and the sum of those not 0.

    The sign is that of the summed values, not a vote. A column that sums to exactly 0 takes the
    sign of ``overall``, the sum of all elected signs, and is negative if that is 0, too (as in the
    original).
    """
    rows = torch.empty(len(experts) + 1, len(base), device=base.device)
    theta_b, below = base.float(), torch.tensor(smallest).nextafter(torch.tensor(-1.0)).tolist()
    for row, expert, largest in zip(rows[:-1], experts, below, strict=True):
        # 0 in [-largest, largest]
        torch.ops.aten.hardshrink.out(torch.sub(expert.float(), theta_b, out=row), largest, out=row)
    signs = add_up(rows[:-1], rows[-1]).sign_()
    votes = signs.sum()
    return rows[:-1], signs.add_(0.5 if overall > 0 else -0.5).sign_(), votes


def merge_piece(
    base: Tensor,
    experts: Sequence[Tensor],
    smallest: Sequence[float],
    overall: float,
    combine: str,
) -> tuple[Tensor, Tensor]:
    """A piece ``[n]`` of the merged task vector, and the sum of elected signs."""
    trimmed, signs, votes = trim_and_elect(base, experts, smallest, overall)
    agreeing = trimmed.mul_(signs).clamp_(min=0)
    kept = agreeing.sign().sum(0).clamp_(min=1) if combine == "mean" else None
    total = add_up(agreeing, agreeing[0])
    if kept is not None:
        total.div_(kept)
    return total.mul_(signs), votes


def merged_vectors(
    base: State, experts: Experts, target: State, *, keep: float, combine: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ties' merged task vector piece by piece (``states.Summed``).

    In the first pass columns that sum to 0 keep the negatives. Where entries cancelled and the
    overall sign turns out to be positive, their pieces are done again.
    """
    names = list(target)
    smallest = thresholds(lambda: ((b, e) for b, *e in cut([base, *experts], names)), keep)
    all_votes, cancelled = [], []
    for b, *parts, out in cut([base, *experts, target], names):
        total, votes = merge_piece(b, parts, smallest, -1, combine)
        all_votes.append(votes)
        # Of columns that sum to 0, something is left only if entries cancelled.
        cancelled.append(total.sign().sum() - votes)
        yield b, total, out
    if int(torch.stack(all_votes).long().sum()) > 0:
        again = torch.stack(cancelled).tolist()
        for b, *parts, out in compress(cut([base, *experts, target], names), again):
            yield b, merge_piece(b, parts, smallest, 1, combine)[0], out


def ties_streamed(
    pieces: Pieces, *, lam: float = 0.3, keep: float = 0.2, combine: str = "sum"
) -> Iterator[Tensor]:
    """``ties`` of weights on disk, in four passes: thresholds (two), overall sign, merge."""
    smallest = thresholds(pieces, keep)
    overall = sum(int(merge_piece(*piece, smallest, -1, combine)[1]) for piece in pieces())
    for base, experts in pieces():
        total, _ = merge_piece(base, experts, smallest, overall, combine)
        yield total.mul_(lam).add_(base)


def trimmed_and_elected(base: Tensor, experts: Sequence[Tensor], keep: float) -> Tensor:
    """The task vectors that Ties sums: trimmed, and without entries against the elected sign, ``[T,
    D]``.

    Args:
        base: theta_b, flat ``[D]``.
        experts: The T theta_t, flat ``[D]``.
        keep: Kept fraction of each tau_t.
    """
    smallest = thresholds(lambda: iter([(base, experts)]), keep)
    votes = trim_and_elect(base, experts, smallest, 0)[2]
    trimmed, signs, _ = trim_and_elect(base, experts, smallest, float(votes))
    return torch.where(trimmed * signs > 0, trimmed, 0.0)


def ties_direction(
    base: State,
    experts: Experts,
    *,
    keep: ShareAboveZero = 0.2,
    combine: Literal["sum", "mean"] = "sum",
) -> Tensors:
    """The merged task vector before scaling, float32.

    Args:
        base: theta_b.
        experts: The T theta_t.
        keep: Kept fraction of each tau_t, over the whole encoder at once. Entries that tie with
            the smallest kept magnitude are kept too, so that the result does not depend on their
            order. (The original keeps one entry more: it compares with the next smaller one.)
        combine: "sum" is the paper's form (the original's dis-sum), "mean" the original's default,
            over the kept entries of a column.
    """
    return assembled(merged_vectors, base, experts, keep=keep, combine=combine)


@method("ties", label="Ties", short="Ties", direction=ties_direction, paper="2306.01708")
def ties(
    base: State,
    experts: Experts,
    *,
    lam: float = 0.3,
    keep: ShareAboveZero = 0.2,
    combine: Literal["sum", "mean"] = "sum",
) -> Tensors:
    """theta_m = theta_b + lam * sum_t tau_t^Ties. Eq. 3; options as of ``ties_direction``."""
    return assembled(merged_vectors, base, experts, lam, keep=keep, combine=combine)
