"""The bootstrap: inputs and seeds drawn again with replacement, and 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

RESAMPLES = 1000
AT_A_TIME = 1 << 24  # numbers


def counts(resamples: int, n: int, generator: torch.Generator) -> Tensor:
    """How often each of n items is drawn in each resample of n: ``[B, n]``, rows sum to n."""
    picked = torch.randint(n, (resamples, n), generator=generator)
    return torch.zeros(resamples, n).scatter_add_(1, picked, torch.ones(resamples, n))


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
