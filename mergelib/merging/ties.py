"""Ties: trim, elect signs, merge what agrees (Eq. 3; Yadav et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..types import State
from . import method
from .states import cut, direction_of, flat_task_vectors, merged_by, piece_size


def trim(tau: Tensor, keep: float) -> Tensor:
    """``tau [D]`` with all but the int(D * keep) largest magnitudes set to 0.

    Entries that tie with the smallest kept magnitude are kept too, so that the result does not depend on their order.
    (The original code keeps one entry more: it compares with the next smaller magnitude.)
    """
    n_keep = int(tau.numel() * keep)
    if n_keep == 0:
        return torch.zeros_like(tau)
    magnitude = tau.abs()
    threshold = magnitude.kthvalue(tau.numel() - n_keep + 1).values
    return torch.where(magnitude >= threshold, tau, 0.0)


def trim_all(base: State, experts: Sequence[State], keep: float, names: Sequence[str]) -> Tensor:
    """Each tau_t over the whole encoder, trimmed, ``[T, D]`` float32. Raises ``ConfigError`` for ``keep`` outside (0, 1]."""
    if not 0 < keep <= 1:
        raise ConfigError(f"Ties: keep is a fraction in (0, 1], not {keep}.")
    return torch.stack([trim(tau, keep) for tau in flat_task_vectors(base, experts, names)])


def elect(trimmed: Tensor) -> Tensor:
    """``trimmed [T, D] -> signs [D]`` in {-1, 0, 1}: the sign of the summed values, not a vote.

    A column that sums to exactly 0 takes the network's overall sign, that of the sum of all elected signs, as in the
    original code.
    """
    signs = trimmed.sum(0).sign()
    return torch.where(signs == 0, signs.sum().sign(), signs)


def agreeing(trimmed: Tensor, signs: Tensor) -> Tensor:
    """``[T, D], [D] -> [T, D]`` bool: the entries that carry the elected sign. An elected sign of 0, possible only when the
    overall sign is 0, keeps the negatives, as upstream."""
    return torch.where(signs > 0, trimmed > 0, trimmed < 0)


def disjoint_merge(trimmed: Tensor, signs: Tensor, combine: Literal["sum", "mean"]) -> Tensor:
    """``[T, D], [D] -> [D]``: of each column the entries that carry the elected sign, summed or averaged (over the kept
    non-zero entries)."""
    agrees = agreeing(trimmed, signs)
    total = torch.where(agrees, trimmed, 0.0).sum(0)
    return total if combine == "sum" else total / agrees.sum(0).clamp(min=1)


# ---- the same in pieces -----------------------------------------------------------------------------------------------------

Pieces = Callable[[], Iterator[tuple[Tensor, Sequence[Tensor]]]]
"""A function that yields the same pieces each time: a part of theta_b ``[n]`` and the same part of the T experts."""

LOW_BITS = 16
SAMPLE = 1 << 18
GROUP = 8
DEVIATIONS = 5  # of a sample's rank: one threshold in two million lies outside


def _from_top(counts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Bin that holds the ``wanted``-th largest entry, and its rank among the bin's own: ``[T, bins], [T] -> [T], [T]``."""
    reached = counts.flip(-1).cumsum(-1)
    place = torch.searchsorted(reached, wanted.unsqueeze(-1))
    above = (reached - counts.flip(-1)).gather(-1, place)
    return counts.shape[-1] - 1 - place.squeeze(-1), wanted - above.squeeze(-1)


def counted_thresholds(pieces: Pieces, keep: float) -> Tensor:
    """The int(D * keep)-th largest \\|tau_t\\| of each expert, ``[T]`` float32; inf where int(D * keep) is 0.

    Two passes. Magnitudes of floats order like their bits: a histogram of the high bits finds the bin, one of the low bits
    inside that bin finds the value itself, so nothing is sorted and memory does not grow with D.
    """
    high, n = None, 0
    for base, experts in pieces():
        n += base.numel()
        counts = torch.stack(
            [
                ((e.float() - base.float()).abs().view(torch.int32) >> LOW_BITS).bincount(
                    minlength=1 << 15
                )
                for e in experts
            ]
        )
        high = counts if high is None else high + counts
    n_keep = int(n * keep)
    if n_keep == 0:
        return torch.full((len(high),), torch.inf, device=high.device)
    bins, rank = _from_top(high, torch.full((len(high),), n_keep, device=high.device))
    low = torch.zeros(len(high), 1 << LOW_BITS, dtype=torch.long, device=high.device)
    for base, experts in pieces():
        for t, expert in enumerate(experts):
            bits = (expert.float() - base.float()).abs().view(torch.int32)
            low[t] += (bits & ((1 << LOW_BITS) - 1))[bits >> LOW_BITS == bins[t]].bincount(
                minlength=1 << LOW_BITS
            )
    return ((bins << LOW_BITS) + _from_top(low, rank)[0]).to(torch.int32).view(torch.float32)


def sampled_magnitudes(
    base: State, experts: Sequence[State], names: Sequence[str], size: int
) -> Tensor:
    """\\|tau_t\\| at ``size`` random places of the encoder, the same for all experts, ``[T, size]``; all of it where D is smaller."""
    lengths = [base[n].numel() for n in names]
    total, generator = (
        sum(lengths),
        torch.Generator().manual_seed(0),
    )  # the outcome does not depend on it, only the time
    places = (
        torch.arange(total)
        if total <= size
        else torch.randint(total, (size,), generator=generator).sort().values
    )
    starts = [0, *accumulate(lengths)]
    bounds, rows = torch.searchsorted(places, torch.tensor(starts)).tolist(), []
    for name, start, (first, last) in zip(names, starts, pairwise(bounds), strict=False):
        inside = (places[first:last] - start).to(base[name].device)
        b = base[name].detach().reshape(-1)[inside].float()
        rows.append(
            torch.stack([e[name].detach().reshape(-1)[inside].float() - b for e in experts]).abs_()
        )
    return torch.cat(rows, 1)


def thresholds_between(
    pieces: Pieces, n_keep: int, low: Sequence[float], high: Sequence[float]
) -> list[float] | None:
    """The ``n_keep``-th largest \\|tau_t\\| of each expert if each lies strictly between its two bounds, else None. One pass."""
    above, between = [0] * len(low), [[] for _ in low]
    room = None
    for base, experts in pieces():
        theta_b = base.float()
        if room is None or room.shape[1] < len(base):
            room = torch.empty(3, len(base), device=base.device)
        magnitude, reaches, inside = room[:, : len(base)]
        for t, expert in enumerate(experts):
            torch.sub(expert.float(), theta_b, out=magnitude).abs_()
            # Numbers 1 and 0 in place, and sums of them, are far quicker than masks, and a mask of few far quicker than one of all.
            above[t] += reaches.copy_(magnitude).ge_(high[t]).sum().long()
            inside.copy_(magnitude).gt_(low[t]).sub_(reaches)
            some = (
                magnitude
                if len(base) % GROUP
                else magnitude.view(GROUP, -1)[:, inside.view(GROUP, -1).sum(0) > 0]
            )
            between[t].append(some[(some > low[t]) & (some < high[t])])
    found = []
    for count, values in zip(above, map(torch.cat, between), strict=True):
        rank = n_keep - int(count)
        if not 1 <= rank <= len(values):
            return None
        found.append(float(values.kthvalue(len(values) - rank + 1).values))
    return found


def thresholds(
    base: State, experts: Sequence[State], keep: float, names: Sequence[str]
) -> list[float]:
    """The int(D * keep)-th largest \\|tau_t\\| of each expert over the whole encoder; inf where int(D * keep) is 0.

    A random sample says between which magnitudes it lies; one pass counts those above and keeps those between. Where the sample
    errs, or many magnitudes are equal, ``counted_thresholds`` finds it.
    """
    total = sum(base[n].numel() for n in names)
    n_keep = int(total * keep)
    if n_keep == 0:
        return [math.inf] * len(experts)
    sample = sampled_magnitudes(base, experts, names, SAMPLE)
    size = sample.shape[1]
    if size == total:
        return sample.kthvalue(total - n_keep + 1).values.tolist()
    rank, spread = (
        size * n_keep / total,
        DEVIATIONS * math.sqrt(size * (n_keep / total) * (1 - n_keep / total)) + 1,
    )
    low, high = (
        [end] * len(experts) if not 1 <= r <= size else sample.kthvalue(r).values.tolist()
        for r, end in ((int(size - rank - spread), -1.0), (int(size - rank + spread) + 1, math.inf))
    )

    def pieces() -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
        return ((b, parts) for b, *parts in cut([base, *experts], names))

    found = thresholds_between(pieces, n_keep, low, high)
    return counted_thresholds(pieces, keep).tolist() if found is None else found


def trim_piece(
    base: Tensor, experts: Sequence[Tensor], smallest: Sequence[float], rows: Tensor
) -> Tensor:
    """``rows [T, n]``, overwritten with the trimmed tau_t: what is at least ``smallest[t]`` in magnitude."""
    theta_b = base.float()
    for row, expert, least in zip(rows, experts, smallest, strict=True):
        below = (
            least if math.isinf(least) else float(torch.tensor(least).nextafter(torch.tensor(-1.0)))
        )
        torch.ops.aten.hardshrink.out(
            torch.sub(expert.float(), theta_b, out=row), below, out=row
        )  # 0 in [-below, below]
    return rows


def add_up(rows: Tensor, out: Tensor) -> Tensor:
    """The sum over T of ``rows [T, n]``, one after the other: ``sum(0)`` changes its order towards the end of a row."""
    if out.data_ptr() != rows.data_ptr():
        out.copy_(rows[0])
    for row in rows[1:]:
        out += row
    return out


def merge_piece(trimmed: Tensor, signs: Tensor, combine: Literal["sum", "mean"]) -> Tensor:
    """``disjoint_merge`` of ``trimmed [T, n]``, which it overwrites, for ``signs [n]`` in {-1, 1}."""
    agreeing_only = trimmed.mul_(signs).clamp_(min=0)
    kept = agreeing_only.sign().sum(0).clamp_(min=1) if combine == "mean" else None
    total = add_up(agreeing_only, agreeing_only[0])
    if kept is not None:
        total.div_(kept)
    return total.mul_(signs)


def merged_vectors(
    base: State,
    experts: Sequence[State],
    target: State,
    *,
    keep: float,
    combine: Literal["sum", "mean"],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ties' merged task vector piece by piece (``states.Summed``).

    In the first pass columns that sum to 0 keep the negatives. Where entries cancelled and the overall sign turns out to be
    positive, their pieces are done again.
    """
    names = list(target)
    smallest = thresholds(base, experts, keep, names)
    room = torch.empty(len(experts) + 1, piece_size(target, names), device=target[names[0]].device)
    rows, sums, votes, cancelled = room[:-1], room[-1], [], []
    for b, *parts, out in cut([base, *experts, target], names):
        trimmed = trim_piece(b, parts, smallest, rows[:, : len(b)])
        signs = add_up(trimmed, sums[: len(b)]).sign_()
        votes.append(signs.sum())
        total = merge_piece(trimmed, signs.sub_(0.5).sign_(), combine)  # 0 becomes -1
        cancelled.append(
            total.sign().sum() - votes[-1]
        )  # of columns that sum to 0 only where entries cancelled anything is left
        yield b, total, out
    if not int(torch.stack(votes).long().sum()) > 0:
        return
    again = torch.stack(cancelled).tolist()
    for (b, *parts, out), differs in zip(cut([base, *experts, target], names), again, strict=True):
        if differs:
            trimmed = trim_piece(b, parts, smallest, rows[:, : len(b)])
            yield (
                b,
                merge_piece(
                    trimmed, add_up(trimmed, sums[: len(b)]).sign_().add_(0.5).sign_(), combine
                ),
                out,
            )


def _checked(keep: float, combine: str) -> None:
    if combine not in ("sum", "mean"):
        raise ConfigError(f"Ties: combine is 'sum' or 'mean', not '{combine}'.")
    if not 0 < keep <= 1:
        raise ConfigError(f"Ties: keep is a fraction in (0, 1], not {keep}.")


def ties_direction(
    base: State,
    experts: Sequence[State],
    *,
    keep: float = 0.2,
    combine: Literal["sum", "mean"] = "sum",
) -> dict[str, Tensor]:
    """The merged task vector before scaling, float32. ``keep``: kept fraction of each tau_t, over the whole encoder at
    once. ``combine="sum"`` is the paper's form (the original's dis-sum), ``"mean"`` the original's default."""
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
    """theta_m = theta_b + lam * sum_t tau_t^Ties. Eq. 3. Raises ``ConfigError`` for options out of range."""
    _checked(keep, combine)
    return merged_by(merged_vectors, base, experts, lam, keep=keep, combine=combine)
