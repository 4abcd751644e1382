"""TACT and REPAIR: give a merged encoder's activations the statistics of the experts'.

TACT (Sharma et al., 2024, arXiv 2410.12766) corrects per task. Per site and channel
y' = sigma_t (y - mu_m) / sqrt(sigma_m^2 + eps) + mu_t, where t is the task's expert and m the
merged encoder, both on the task's unlabelled inputs. REPAIR (Jordan et al., 2023, arXiv
2211.08403) has one target for all tasks, on the pooled inputs of every task.

The fit is sequential and exact: a site's mu_m and sigma_m are measured with every site before it
already corrected. (The authors' code normalises by each batch in a single pass over the data.) A
single batch needs one forward pass, in which every site is measured and corrected when it is
reached; several batches need a pass per site.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, first_five
from .correction import Correction, chosen, watched
from .sites import Site
from .statistics import (
    EPS,
    Batch,
    Statistics,
    check_finite,
    check_ready,
    mean_and_deviation,
    measure,
    real_tokens,
)


def channel_affine(
    mean_m: Tensor, std_m: Tensor, mean: Tensor, std: Tensor, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """Scale and shift ``[c]`` from channels with ``mean_m, std_m`` to ``mean, std``; all float64.

    A channel that is dead in the merged encoder (sigma_m^2 <= eps) is only shifted: there is
    nothing but rounding to scale, and sigma_t / sqrt(eps) would blow up the activations of other
    inputs. A channel that is dead in the expert gets scale 0.
    """
    dead = std_m.square() <= eps
    scale = torch.where(dead, torch.ones_like(std), std / (std_m.square() + eps).sqrt())
    return scale, mean - scale * mean_m


@torch.no_grad()
def match_statistics(
    module: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    target: Statistics,
    *,
    eps: float = EPS,
) -> Correction:
    """The sequential correction that gives ``module`` the target's mean and std at each site.

    Args:
        module: The merged encoder in evaluation mode; it is not changed.
        sites: Where to correct, in its submodule ``transformer``.
        batches: Unlabelled inputs, for ``module(**batch)``.
        target: Statistics of the sites.
        eps: Of the formula.

    Raises:
        ConfigError: The target lacks a site or is of another size; and as ``measure``.
    """
    check_ready(module, sites, batches)
    if missing := [s.name for s in sites if s.name not in target.mean]:
        raise ConfigError(
            f"The target lacks {first_five(missing)}; measure the expert at the corrected sites."
        )
    fitted = Correction()

    def fit(site: Site, mean: Tensor, std: Tensor) -> None:
        nonlocal fitted
        wanted = (target.mean[site.name].to(mean), target.std[site.name].to(std))
        if wanted[0].shape != mean.shape:
            raise ConfigError(
                f"The target has {len(wanted[0])} channels at {site.name}, the merged encoder "
                f"{len(mean)}; they are of different sizes."
            )
        scale, shift = channel_affine(mean, std, *wanted, eps)
        check_finite([site.name] * (not torch.isfinite(scale + shift).all()))
        fitted = fitted.with_site(site.name, scale.float(), shift.float())

    if len(batches) == 1:

        def measure_and_correct(site: Site, y: Tensor) -> Tensor:
            fit(site, *mean_and_deviation(y[real_tokens(batches[0], y)]))
            return fitted.apply(site, y)

        with watched(module.transformer, sites, measure_and_correct):
            module(**batches[0])
        return fitted
    for site in sites:
        with watched(module.transformer, chosen(sites, fitted), fitted.apply):
            seen = measure(module, [site], batches)
        fit(site, seen.mean[site.name], seen.std[site.name])
    return fitted


def tact(
    module: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    expert: Statistics,
    *,
    last_layer_only: bool = False,
) -> Correction:
    """``match_statistics`` with f_t on one task's inputs; ``last_layer_only`` is an ablation."""
    return match_statistics(module, sites[-1:] if last_layer_only else sites, batches, expert)


def shared_target(experts: Sequence[Statistics]) -> Statistics:
    """REPAIR's target: the mean over experts of means and of deviations (not of variances)."""
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
) -> Correction:
    """``match_statistics`` with ``shared_target`` on the pooled inputs of all tasks."""
    return match_statistics(module, sites, batches, shared_target(experts))
