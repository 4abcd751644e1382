"""Ties: trim, elect signs, merge what agrees (Eq. 3; Yadav et al., 2023), piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import State
from .registry import method
from .states import cut, direction_of, merged_by, piece_size

Pieces = Callable[[], Iterator[tuple[Tensor, Sequence[Tensor]]]]
"""Yields the same pieces at every call: a part of theta_b ``[n]``, the same of the T experts."""

LOW_BITS = 16
SAMPLE = 1 << 18
GROUP = 8
DEVIATIONS = 5  # for a sample's rank: one threshold in two million lies outside


def _from_top(counts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Bin of the ``wanted``-th largest entry, and its rank in that bin: ``[T, bins], [T]``."""
    reached = counts.flip(-1).cumsum(-1)
    place = torch.searchsorted(reached, wanted.unsqueeze(-1))
    above = (reached - counts.flip(-1)).gather(-1, place)
    return counts.shape[-1] - 1 - place.squeeze(-1), wanted - above.squeeze(-1)


def counted_thresholds(pieces: Pieces, keep: float) -> Tensor:
    """The int(D * keep)-th largest \\|tau_t\\| of each expert, ``[T]`` float32; inf for none.

    Two passes. Magnitudes of floats order like their bits: a histogram of the high bits finds the
    bin, one of the low bits inside that bin the value itself, so nothing is sorted and memory does
    not grow with D.
    """

    def bits(base: Tensor, expert: Tensor) -> Tensor:
        return (expert.float() - base.float()).abs().view(torch.int32)

    high, n = 0, 0
    for base, experts in pieces():
        n += base.numel()
        rows = [(bits(base, e) >> LOW_BITS).bincount(minlength=1 << 15) for e in experts]
        high = high + torch.stack(rows)
    n_keep = int(n * keep)
    if n_keep == 0:
        return high.new_full((len(high),), torch.inf, dtype=torch.float32)
    bins, rank = _from_top(high, high.new_full((len(high),), n_keep))
    low = high.new_zeros(len(high), 1 << LOW_BITS)
    for base, experts in pieces():
        for t, expert in enumerate(experts):
            found = bits(base, expert)
            inside = found[found >> LOW_BITS == bins[t]] & ((1 << LOW_BITS) - 1)
            low[t] += inside.bincount(minlength=1 << LOW_BITS)
    return ((bins << LOW_BITS) + _from_top(low, rank)[0]).to(torch.int32).view(torch.float32)


def thresholds_between(
    pieces: Pieces, n_keep: int, low: Sequence[float], high: Sequence[float]
) -> list[float] | None:
    """The ``n_keep``-th largest \\|tau_t\\| of each expert, None unless strictly between bounds."""
    above, between = [0] * len(low), [[] for _ in low]
    room = None
    for base, experts in pieces():
        theta_b = base.float()
        if room is None or room.shape[1] < len(base):
            room = torch.empty(3, len(base), device=base.device)
        magnitude, reaches, inside = room[:, : len(base)]
        for t, expert in enumerate(experts):
            torch.sub(expert.float(), theta_b, out=magnitude).abs_()
            # Numbers 1 and 0 in place, and sums of them, are far quicker than masks, and a mask of
            # few far quicker than one of all.
            above[t] += reaches.copy_(magnitude).ge_(high[t]).sum().long()
            inside.copy_(magnitude).gt_(low[t]).sub_(reaches)
            some = magnitude
            if len(base) % GROUP == 0:
                some = magnitude.view(GROUP, -1)[:, inside.view(GROUP, -1).sum(0) > 0]
            between[t].append(some[(some > low[t]) & (some < high[t])])
    result = []
    for count, values in zip(above, map(torch.cat, between), strict=True):
        rank = n_keep - int(count)
        if not 1 <= rank <= len(values):
            return None
        result.append(float(values.kthvalue(len(values) - rank + 1).values))
    return result


def thresholds(
    base: State, experts: Sequence[State], keep: float, names: Sequence[str]
) -> list[float]:
    """The int(D * keep)-th largest \\|tau_t\\| of each expert over the whole encoder; inf for none.

    A sample says between which magnitudes it lies; one pass counts those above and keeps those
    between. Where the sample errs, or many magnitudes are equal, ``counted_thresholds`` finds it.
    """
    total = sum(base[n].numel() for n in names)
    n_keep = int(total * keep)
    if n_keep == 0:
        return [math.inf] * len(experts)
    # Every so-many-th entry; odd, so that it does not fall on the same columns of every row.
    step = total // SAMPLE | 1
    states = [[s[n].detach().reshape(-1)[::step].float() for n in names] for s in (base, *experts)]
    theta_b, *thetas = map(torch.cat, states)
    sample = (torch.stack(thetas) - theta_b).abs_()
    size = sample.shape[1]
    if size == total:
        return sample.kthvalue(total - n_keep + 1).values.tolist()
    rank = size * n_keep / total
    spread = DEVIATIONS * math.sqrt(rank * (1 - n_keep / total)) + 1
    low, high = (
        [end] * len(experts) if not 1 <= r <= size else sample.kthvalue(r).values.tolist()
        for r, end in ((int(size - rank - spread), -1.0), (int(size - rank + spread) + 1, math.inf))
    )

    def pieces() -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
        return ((b, parts) for b, *parts in cut([base, *experts], names))

    result = thresholds_between(pieces, n_keep, low, high)
    return counted_thresholds(pieces, keep).tolist() if result is None else result


def trim(base: Tensor, experts: Sequence[Tensor], smallest: Sequence[float], out: Tensor) -> Tensor:
    """``out [T, n]``, overwritten with tau_t where it is at least ``smallest[t]`` in magnitude."""
    theta_b = base.float()
    for row, expert, least in zip(out, experts, smallest, strict=True):
        if not math.isinf(least):
            least = float(torch.tensor(least).nextafter(torch.tensor(-1.0)))
        # 0 in [-least, least]
        torch.ops.aten.hardshrink.out(torch.sub(expert.float(), theta_b, out=row), least, out=row)
    return out


def add_up(rows: Tensor, out: Tensor) -> Tensor:
    """The sum of ``rows [T, n]`` in order; ``sum(0)`` changes its order towards a row's end."""
    if out.data_ptr() != rows.data_ptr():
        out.copy_(rows[0])
    for row in rows[1:]:
        out += row
    return out


def elect(trimmed: Tensor, overall: float, out: Tensor) -> tuple[Tensor, Tensor]:
    """Signs in {-1, 1} of the columns of ``trimmed [T, n]``, and the sum of those not 0.

    The sign is that of the summed values, not a vote. A column that sums to exactly 0 takes the
    sign of ``overall``, the sum of all elected signs, and is negative if that is 0, too (as in the
    original).
    """
    signs = add_up(trimmed, out).sign_()
    votes = signs.sum()
    return signs.add_(0.5 if overall > 0 else -0.5).sign_(), votes


def merge_piece(
    base: Tensor,
    experts: Sequence[Tensor],
    smallest: Sequence[float],
    overall: float,
    combine: Literal["sum", "mean"],
    room: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A piece ``[n]`` of the merged task vector, in ``room [T + 1, >= n]``, and ``elect``'s sum."""
    if room is None:
        room = torch.empty(len(experts) + 1, len(base), device=base.device)
    trimmed = trim(base, experts, smallest, room[:-1, : len(base)])
    signs, votes = elect(trimmed, overall, room[-1, : len(base)])
    agreeing = trimmed.mul_(signs).clamp_(min=0)
    kept = agreeing.sign().sum(0).clamp_(min=1) if combine == "mean" else None
    total = add_up(agreeing, agreeing[0])
    if kept is not None:
        total.div_(kept)
    return total.mul_(signs), votes


def merged_vectors(
    base: State,
    experts: Sequence[State],
    target: State,
    *,
    keep: float,
    combine: Literal["sum", "mean"],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ties' merged task vector piece by piece (``states.Summed``).

    In the first pass columns that sum to 0 keep the negatives. Where entries cancelled and the
    overall sign turns out to be positive, their pieces are done again.
    """
    names = list(target)
    smallest = thresholds(base, experts, keep, names)
    room = torch.empty(len(experts) + 1, piece_size(target, names), device=target[names[0]].device)
    all_votes, cancelled = [], []
    for b, *parts, out in cut([base, *experts, target], names):
        total, votes = merge_piece(b, parts, smallest, -1, combine, room)
        all_votes.append(votes)
        # Of columns that sum to 0, something is left only if entries cancelled.
        cancelled.append(total.sign().sum() - votes)
        yield b, total, out
    if int(torch.stack(all_votes).long().sum()) > 0:
        again = torch.stack(cancelled).tolist()
        for b, *parts, out in compress(cut([base, *experts, target], names), again):
            yield b, merge_piece(b, parts, smallest, 1, combine, room)[0], out


def ties_streamed(
    pieces: Pieces, *, lam: float = 0.3, keep: float = 0.2, combine: str = "sum"
) -> Iterator[Tensor]:
    """``ties`` of weights on disk, in four passes: thresholds (two), overall sign, merge."""

    def parts(base: Tensor, experts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
        return ((b, rest) for b, *rest in cut([{"": t} for t in (base, *experts)], [""]))

    def all_parts() -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
        return (part for piece in pieces() for part in parts(*piece))

    smallest = counted_thresholds(all_parts, keep).tolist()
    overall = sum(int(merge_piece(*part, smallest, -1, combine)[1]) for part in all_parts())
    for piece in pieces():
        yield torch.cat(
            [
                merge_piece(b, rest, smallest, overall, combine)[0].mul_(lam).add_(b)
                for b, rest in parts(*piece)
            ]
        )


def _checked(keep: float, combine: str) -> None:
    if combine not in ("sum", "mean"):
        raise ConfigError(f"Ties: combine must be 'sum' or 'mean', not '{combine}'.")
    if not 0 < keep <= 1:
        raise ConfigError(f"Ties: keep must be a fraction in (0, 1], not {keep}.")


def trimmed_and_elected(base: Tensor, experts: Sequence[Tensor], keep: float) -> Tensor:
    """The task vectors that Ties sums: trimmed, and without entries against the elected sign, ``[T,
    D]``.

    Args:
        base: theta_b, flat ``[D]``.
        experts: The T theta_t, flat ``[D]``.
        keep: Kept fraction of each tau_t.

    Raises:
        ConfigError: ``keep`` lies outside (0, 1].
    """
    _checked(keep, "sum")
    smallest = thresholds({"": base}, [{"": e} for e in experts], keep, [""])
    trimmed = trim(base, experts, smallest, base.new_empty(len(experts), len(base)))
    votes = elect(trimmed, 0, torch.empty_like(base))[1]
    signs = elect(trimmed, float(votes), torch.empty_like(base))[0]
    return torch.where(trimmed * signs > 0, trimmed, 0.0)


def ties_direction(
    base: State,
    experts: Sequence[State],
    *,
    keep: float = 0.2,
    combine: Literal["sum", "mean"] = "sum",
) -> dict[str, Tensor]:
    """The merged task vector before scaling, float32.

    Args:
        base: theta_b.
        experts: The T theta_t.
        keep: Kept fraction of each tau_t, over the whole encoder at once. Entries that tie with
            the smallest kept magnitude are kept too, so that the result does not depend on their
            order. (The original keeps one entry more: it compares with the next smaller one.)
        combine: "sum" is the paper's form (the original's dis-sum), "mean" the original's default,
            over the kept entries of a column.

    Raises:
        ConfigError: An option is out of range.
    """
    _checked(keep, combine)
    return direction_of(merged_vectors, base, experts, keep=keep, combine=combine)


@method("ties", label="Ties", short="Ties", direction=ties_direction)
def ties(
    base: State,
    experts: Sequence[State],
    *,
    lam: float = 0.3,
    keep: float = 0.2,
    combine: Literal["sum", "mean"] = "sum",
) -> dict[str, Tensor]:
    """theta_m = theta_b + lam * sum_t tau_t^Ties. Eq. 3; options as of ``ties_direction``."""
    _checked(keep, combine)
    return merged_by(merged_vectors, base, experts, lam, keep=keep, combine=combine)
