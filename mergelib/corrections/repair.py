"""REPAIR: one target for all tasks (Jordan et al., 2023, arXiv 2211.08403), the task-agnostic rival of TACT.

The target is the mean of the experts' means and the mean of their deviations (not of their variances), all measured on the pooled
inputs of every task. With one target, one correction serves all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import ConfigError
from .correction import Correction
from .sites import Site
from .statistics import Batch, Statistics
from .tact import EPS, match_statistics


def shared_target(experts: Sequence[Statistics]) -> Statistics:
    """The mean over experts of means and of deviations, per site and channel. Raises ``ConfigError`` for no experts, or for experts that
    were measured at different sites."""
    if not experts:
        raise ConfigError("REPAIR needs the statistics of at least one expert.")
    if any(e.mean.keys() != experts[0].mean.keys() for e in experts):
        raise ConfigError(
            "The experts were measured at different sites; measure all at the sites of one architecture."
        )
    mean, std = (
        {n: torch.stack([getattr(e, part)[n] for e in experts]).mean(0) for n in experts[0].mean}
        for part in ("mean", "std")
    )
    return Statistics(mean, std, sum(e.tokens for e in experts))


def repair(
    module: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    experts: Sequence[Statistics],
    *,
    eps: float = EPS,
) -> Correction:
    """REPAIR's correction of the merged encoder ``module``: ``batches`` pool the unlabelled inputs of all tasks, and ``experts`` are each
    expert's statistics on them. Sequential, as TACT's; raises as ``match_statistics`` and ``shared_target``."""
    return match_statistics(module, sites, batches, shared_target(experts), eps=eps)
