"""Activations of an encoder: mean and deviation of every channel at every site, and their collapse.

Statistics run over inputs and over real tokens: padding, which ``attention_mask`` marks, is left
out, so they do not depend on which inputs share a batch. (The authors' code has no padding.) Images
have no padding. Deviations are population deviations (ddof 0), as in a batch norm. Activations stay
float32; statistics per channel are float64.

Variance collapse is how much of the experts' variance is left in a merge. The average of T
activations of equal variance and pairwise correlation rho has (1 + (T - 1) rho) / T of it: 1/T if
the experts' channels are uncorrelated. A norm restores a common factor, but not single channels or
shifted means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import DataError, first_five
from ..core.types import State, below
from .correction import watched
from .sites import Site

Batch = Mapping[str, Tensor]
EPS = 1e-10  # at most this variance: the channel is dead
SILENT = 1e-3  # at most this share of the median variance of its site: the channel says nothing


@dataclass(frozen=True)
class Statistics:
    """Per site ``mean`` and ``std`` over inputs and real tokens, ``[c]`` float64."""

    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """One flat dict, ``mean.<site>`` and ``std.<site>``."""
        return {f"{part}.{n}": t for part, ts in vars(self).items() for n, t in ts.items()}

    @classmethod
    def of(cls, tensors: State) -> Statistics:
        """The statistics that ``tensors()`` came from."""
        return cls(below(tensors, "mean."), below(tensors, "std."))


def real_tokens(batch: Batch, values: Tensor) -> Tensor:
    """Which of ``values [B, L, c]`` belong to real tokens: bool ``[B, L]``."""
    return batch.get("attention_mask", torch.ones_like(values[..., 0])).bool()


def passes(
    module: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    see: Callable[[str, Tensor, Tensor], None],
) -> None:
    """Forward passes that show each site's name, activations ``[B, L, c]`` and real tokens to
    ``see``."""

    def show(site: Site, y: Tensor) -> None:
        see(site.name, y, real_tokens(batch, y))

    with watched(module.transformer, sites, show):
        for batch in batches:
            module(**batch)


def check_finite(names: Iterable[str]) -> None:
    """Raises ``DataError`` if there are sites whose activations are not finite."""
    if bad := list(names):
        raise DataError(
            f"Activations at {first_five(bad)} are not finite; "
            "the encoder's weights or these inputs are damaged."
        )


def mean_and_deviation(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (population) deviation of ``rows [M, c]`` per column, ``[c]`` float64.

    No float64 copy is made: rows are centred in float32 before they are squared, so that a large
    mean does not swamp a small deviation; the mean that rounding leaves is measured on the centred
    rows and subtracted again.
    """
    rows = rows.float()
    centre = rows.mean(0)
    centred = rows - centre
    offset = centred.mean(0).double()
    variance = centred.square_().mean(0).double() - offset.square()
    return centre.double() + offset, variance.clamp(min=0).sqrt()


class _Moments:
    """Mean and squared deviations of rows ``[M, c]``, merged batch by batch (Chan et al., 1983)."""

    def __init__(self) -> None:
        self.n, self.mean, self.m2 = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        n, (mean, std) = len(rows), mean_and_deviation(rows)
        m2 = n * std.square()
        delta, total = mean - self.mean, self.n + n
        self.mean = self.mean + delta * (n / total)
        self.m2 = self.m2 + m2 + delta.square() * (self.n * n / total)
        self.n = total


@torch.no_grad()
def measure(module: nn.Module, sites: Sequence[Site], batches: Sequence[Batch]) -> Statistics:
    """Statistics of an encoder over all batches; memory does not grow with their number.

    Args:
        module: Takes ``module(**batch)``, in evaluation mode; its part ``transformer`` has the
            sites.
        sites: Where to measure.
        batches: Inputs.

    Raises:
        DataError: Activations are not finite.
    """
    moments = {s.name: _Moments() for s in sites}
    passes(module, sites, batches, lambda name, y, real: moments[name].add(y[real]))
    check_finite(n for n, m in moments.items() if not torch.isfinite(m.m2).all())
    return Statistics(
        {n: m.mean for n, m in moments.items()},
        {n: (m.m2 / m.n).sqrt() for n, m in moments.items()},
    )


@dataclass(frozen=True)
class InputMoments:
    """Sums for a bootstrap over inputs; memory grows with their number N.

    ``tokens [N]`` counts real tokens; ``total`` and ``square`` are per site the sums over them of y
    and of y^2, ``[N, c]`` float64.
    """

    tokens: Tensor
    total: Mapping[str, Tensor]
    square: Mapping[str, Tensor]

    def variance(self, site: str, weights: Tensor) -> Tensor:
        """Variances ``[B, c]`` at a site when input i counts ``weights [B, N]`` times."""
        n = (weights @ self.tokens).unsqueeze(1)
        mean = weights @ self.total[site] / n
        return (weights @ self.square[site] / n - mean.square()).clamp(min=0)


@torch.no_grad()
def input_moments(
    module: nn.Module, sites: Sequence[Site], batches: Sequence[Batch]
) -> InputMoments:
    """``InputMoments`` of an encoder, inputs in the order of ``batches``."""
    parts = {s.name: [] for s in sites}

    def add(name: str, y: Tensor, real: Tensor) -> None:
        y = y.double() * real.unsqueeze(-1)
        parts[name].append((real.sum(1).double(), y.sum(1), y.square().sum(1)))

    passes(module, sites, batches, add)
    joined = {n: [torch.cat(part) for part in zip(*p, strict=True)] for n, p in parts.items()}
    tokens = joined[sites[0].name][0]
    return InputMoments(tokens, *({n: j[i] for n, j in joined.items()} for i in (1, 2)))


def _live(expert: Tensor, site: str) -> Tensor:
    """Which channels are neither dead nor silent in the expert, of variances ``[c]``."""
    alive = expert > max(SILENT * float(expert.median()), EPS)
    if not alive.any():
        raise DataError(
            f"No channel of the expert varies at {site}, "
            "so there is no variance to compare with; use other inputs."
        )
    return alive


def variance_ratio(merged: Statistics, expert: Statistics) -> dict[str, float]:
    """Per site the mean over channels of Var_m,c / Var_t,c; far below 1 is collapse.

    Channels that are dead (variance at most ``EPS``) or silent in the expert are left out:
    released encoders have a few whose variance is 1e-4 of the others', and a ratio to it is of
    no use.

    Raises:
        DataError: No channel of the expert is alive.
    """
    ratios = {}
    for n, std in merged.std.items():
        alive = _live(expert.std[n].square(), n)
        ratios[n] = float((std.square() / expert.std[n].square())[alive].mean())
    return ratios


def resampled_ratio(merged: InputMoments, expert: InputMoments, weights: Tensor) -> Tensor:
    """``variance_ratio``, averaged over sites, when input i counts ``weights [B, N]`` times.

    Both measured on the same inputs, each of which counts once where it is decided which channels
    are left out. Returns ``[B]`` float64. Raises as ``variance_ratio``.
    """
    weights, ratios = weights.to(merged.tokens), []
    for n in merged.total:
        alive = _live(expert.variance(n, torch.ones_like(weights[:1]))[0], n)
        part = merged.variance(n, weights)[:, alive] / expert.variance(n, weights)[:, alive]
        ratios.append(part.mean(1))
    return torch.stack(ratios).mean(0)
