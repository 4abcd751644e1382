"""Variance collapse: how much of the experts' activation variance is left in a merge, site by site.

The average of T activations of equal variance and pairwise correlation rho has (1 + (T - 1) rho) / T of it: 1/T where the experts'
channels have nothing to do with each other. A norm gives back a common factor and neither single channels nor shifted means.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .statistics import InputMoments, Statistics
from .tact import EPS


def _mean_over_live(merged: Tensor, expert: Tensor, site: str) -> Tensor:
    """Var_m / Var_t of ``[..., c]``, averaged over channels that live in the expert: ``[...]``."""
    alive = expert > EPS
    if not alive.any(-1).all():
        raise DataError(
            f"No channel of the expert varies at {site}, so there is no variance to compare with; give other inputs."
        )
    return torch.where(alive, merged / expert, 0.0).sum(-1) / alive.sum(-1)


def variance_ratio(merged: Statistics, expert: Statistics) -> dict[str, float]:
    """Per site the mean over channels of Var_m,c / Var_t,c, both on the same inputs; 1 is healthy, far below 1 is collapse.

    Channels that are dead in the expert (variance at most ``EPS``) have no ratio and are left out. Raises ``ConfigError`` for statistics at
    different sites, ``DataError`` where no channel of the expert is alive.
    """
    if merged.std.keys() != expert.std.keys():
        raise ConfigError(
            "Merged encoder and expert were measured at different sites; measure both at the same."
        )
    return {
        n: float(_mean_over_live(merged.std[n].square(), expert.std[n].square(), n))
        for n in merged.std
    }


def resampled_ratio(merged: InputMoments, expert: InputMoments, weights: Tensor) -> Tensor:
    """``variance_ratio``, averaged over sites, when input i counts ``weights [B, N]`` times: ``[B]`` float64. Raises as ``variance_ratio``, and
    ``DataError`` for moments of different inputs."""
    if merged.total.keys() != expert.total.keys():
        raise ConfigError(
            "Merged encoder and expert were measured at different sites; measure both at the same."
        )
    if not torch.equal(merged.tokens, expert.tokens):
        raise DataError(
            "Merged encoder and expert were measured on different inputs; measure both on the same."
        )
    weights = weights.to(merged.tokens)
    ratios = [
        _mean_over_live(merged.variance(n, weights), expert.variance(n, weights), n)
        for n in merged.total
    ]
    return torch.stack(ratios).mean(0)
