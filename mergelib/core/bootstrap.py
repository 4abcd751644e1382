"""The bootstrap: inputs and seeds drawn again with replacement, and 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

RESAMPLES = 1000
AT_A_TIME = 1 << 24  # numbers
IN_CACHE = 1 << 16


def counts(resamples: int, n: int, generator: torch.Generator) -> Tensor:
    """How often each of n items is drawn in each resample of n: ``[B, n]``, rows sum to n."""
    drawn, one = torch.zeros(resamples, n), torch.ones(1, 1)
    for rows in drawn.split(max(1, IN_CACHE // n)):
        picked = torch.randint(n, rows.shape, generator=generator)
        rows.scatter_add_(1, picked, one.expand_as(rows))
    return drawn


def resampled_inputs(n: int, seed: int = 0) -> Iterator[Tensor]:
    """How often each of n inputs is drawn in each of B resamples, some resamples at a time."""
    generator = torch.Generator().manual_seed(n + 1_000_003 * seed)
    for part in torch.arange(RESAMPLES).split(max(1, AT_A_TIME // n)):
        yield counts(len(part), n, generator)


def resampled_means(values: Tensor, seed: int = 0) -> Tensor:
    """The mean of ``values [S, N]`` over S seeds and N inputs, then over B resamples of both:
    ``[1 + B]``.

    Equal N and ``seed`` give equal resamples, so the difference of two results is paired; a mean
    over tasks gives each its own ``seed``.
    """
    n_seeds, n = values.shape
    seeds = counts(RESAMPLES, n_seeds, torch.Generator().manual_seed(n_seeds))
    sums = [drawn @ values.T.float() for drawn in resampled_inputs(n, seed)]
    resampled = (torch.cat(sums) * seeds).sum(1) / values.numel()
    return torch.cat([values.float().mean()[None], resampled])


def interval(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of ``values [1 + B]``, leaving out the first, measured one."""
    low, high = (float(torch.quantile(values[1:], q)) for q in (0.025, 0.975))
    return low, high
