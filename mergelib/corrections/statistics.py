"""What corrections are made of: mean and deviation of every channel at every site, over a task's inputs.

Statistics run over inputs and over REAL tokens: padding, which ``attention_mask`` marks, is left out, so they do not depend on what an input was
batched with. (The authors' code knows no padding.) Images have no padding. Deviations are those of the whole population (ddof 0), as in
a batch norm. Activations stay float32; what is kept per channel is float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from .correction import watched
from .sites import Site

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Statistics:
    """Per site: ``mean`` and ``std`` over inputs and real tokens, ``[c]`` float64; ``tokens``, how many there were."""

    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]
    tokens: int


def real_tokens(batch: Batch, values: Tensor) -> Tensor:
    """Which of ``values [B, L, c]`` belong to real tokens: bool ``[B, L]``."""
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
    return mask.bool()


def check_ready(module: nn.Module, sites: Sequence[Site], batches: Sequence[Batch]) -> None:
    """Raises ``ConfigError`` for a module in training mode or no sites, ``DataError`` for no inputs."""
    if module.training:
        raise ConfigError(
            "The encoder is in training mode, where dropout changes its activations; call .eval() first."
        )
    if not sites:
        raise ConfigError("No sites to measure; take sites_for(config).")
    if not batches:
        raise DataError("No inputs to measure activations on; give at least one batch.")


def check_reached(sites: Sequence[Site], found: Iterable[str]) -> None:
    """Raises ``ConfigError`` for sites that no forward pass came to."""
    if missed := sorted({s.name for s in sites} - set(found)):
        raise ConfigError(
            f"No forward pass came to {', '.join(missed[:5])}; these sites belong to another encoder."
        )


def mean_and_deviation(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (population) deviation of ``rows [M, c]`` per column, ``[c]`` float64, without a float64 copy of the rows.

    Rows are centred in float32 before they are squared, so that a large mean does not swamp a small deviation; what rounding left of the
    mean is measured on the centred rows and taken off again.
    """
    rows = rows.float()
    centre = rows.mean(0)
    centred = rows - centre
    rest = centred.mean(0).double()
    variance = centred.square_().mean(0).double() - rest.square()
    return centre.double() + rest, variance.clamp(min=0).sqrt()


class _Moments:
    """Mean and squared deviations of a stream of rows ``[M, c]``, merged batch by batch (Chan et al., 1983)."""

    def __init__(self) -> None:
        self.n, self.mean, self.m2 = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        n, (mean, std) = len(rows), mean_and_deviation(rows)
        m2 = n * std.square()
        if self.n == 0:
            self.n, self.mean, self.m2 = n, mean, m2
            return
        delta, total = mean - self.mean, self.n + n
        self.mean = self.mean + delta * (n / total)
        self.m2 = self.m2 + m2 + delta.square() * (self.n * n / total)
        self.n = total

    @property
    def std(self) -> Tensor:
        return (self.m2 / self.n).sqrt()


@torch.no_grad()
def measure(module: nn.Module, sites: Sequence[Site], batches: Sequence[Batch]) -> Statistics:
    """Statistics of an encoder at ``sites`` over all ``batches``, what ``module(**batch)`` takes; its part ``transformer`` has the sites.

    Streams: memory does not grow with the number of batches. Raises ``ConfigError`` and ``DataError`` as ``check_ready`` and
    ``check_reached`` say, and ``DataError`` for activations that are not finite.
    """
    check_ready(module, sites, batches)
    moments = {s.name: _Moments() for s in sites}
    for batch in batches:
        with watched(
            module.transformer,
            sites,
            lambda site, y, batch=batch: moments[site.name].add(y[real_tokens(batch, y)]),
        ):
            module(**batch)
    check_reached(sites, [n for n, m in moments.items() if m.n])
    if bad := [n for n, m in moments.items() if not torch.isfinite(m.m2).all()]:
        raise DataError(
            f"Activations at {', '.join(bad[:5])} are not finite; the encoder's weights or these inputs are damaged."
        )
    return Statistics(
        {n: m.mean for n, m in moments.items()},
        {n: m.std for n, m in moments.items()},
        moments[sites[0].name].n,
    )


@dataclass(frozen=True)
class InputMoments:
    """Per input: the number of real tokens ``tokens [N]``, and per site the sums over them of y and of y^2, ``[N, c]`` float64. What a bootstrap
    over inputs needs; memory grows with N."""

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
    """``InputMoments`` of an encoder at ``sites``, inputs in the order of ``batches``. Raises as ``measure``."""
    check_ready(module, sites, batches)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {s.name: [] for s in sites}
    counts: list[Tensor] = []
    for batch in batches:
        seen: list[Tensor] = []

        def add(site: Site, y: Tensor, batch: Batch = batch, seen: list[Tensor] = seen) -> None:
            mask = real_tokens(batch, y)
            y = y.double() * mask.unsqueeze(-1)
            parts[site.name].append((y.sum(1), y.square().sum(1)))
            seen.append(mask)

        with watched(module.transformer, sites, add):
            module(**batch)
        if seen:
            counts.append(seen[0].sum(1).double())
    check_reached(sites, [n for n, p in parts.items() if p])
    total, square = (
        {n: torch.cat([pair[i] for pair in p]) for n, p in parts.items()} for i in (0, 1)
    )
    return InputMoments(torch.cat(counts), total, square)
