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

from .correction import Correction, watched
from .sites import Site
from .statistics import (
    EPS,
    Batch,
    Statistics,
    check_finite,
    mean_and_deviation,
    measure,
    real_tokens,
)


def channel_affine(
    mean_m: Tensor, std_m: Tensor, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and shift ``[c]`` from channels with ``mean_m, std_m`` to ``mean, std``; all float64.

    A channel that is dead in the merged encoder (sigma_m^2 <= eps) is only shifted: there is
    nothing but rounding to scale, and sigma_t / sqrt(eps) would blow up the activations of other
    inputs. A channel that is dead in the expert gets scale 0.
    """
    dead = std_m.square() <= EPS
    scale = torch.where(dead, torch.ones_like(std), std / (std_m.square() + EPS).sqrt())
    return scale, mean - scale * mean_m


@torch.no_grad()
def match_statistics(
    module: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    target: Statistics,
) -> Correction:
    """The sequential correction that gives ``module`` the target's mean and std at each site.

    Args:
        module: The merged encoder in evaluation mode; it is not changed.
        sites: Where to correct, in its submodule ``transformer``.
        batches: Unlabelled inputs, for ``module(**batch)``.
        target: Statistics of the sites.

    Raises:
        DataError: Activations are not finite.
    """
    fitted = Correction()

    def fit(site: Site, mean: Tensor, std: Tensor) -> None:
        n = site.name
        scale, shift = channel_affine(mean, std, target.mean[n].to(mean), target.std[n].to(std))
        check_finite([n] * (not torch.isfinite(scale + shift).all()))
        fitted.scale[n], fitted.shift[n] = scale.float(), shift.float()

    if len(batches) == 1:

        def measure_and_correct(site: Site, y: Tensor) -> Tensor:
            fit(site, *mean_and_deviation(y[real_tokens(batches[0], y)]))
            return fitted.apply(site, y)

        with watched(module.transformer, sites, measure_and_correct):
            module(**batches[0])
        return fitted
    for site in sites:
        corrected = [s for s in sites if s.name in fitted.scale]
        with watched(module.transformer, corrected, fitted.apply):
            measured = measure(module, [site], batches)
        fit(site, measured.mean[site.name], measured.std[site.name])
    return fitted


def mean_statistics(experts: Sequence[Statistics]) -> Statistics:
    """REPAIR's target: the mean over experts of means and of deviations (not of variances)."""
    mean, std = (
        {n: torch.stack([getattr(e, part)[n] for e in experts]).mean(0) for n in experts[0].mean}
        for part in ("mean", "std")
    )
    return Statistics(mean, std)
