"""TACT: move the merged encoder's activations to the statistics of a task's expert (Sharma et al., 2024, arXiv 2410.12766).

Per site and channel y' = sigma_t (y - mu_m) / sqrt(sigma_m^2 + eps) + mu_t, where t is the expert of the task and m the merged encoder,
both on the task's unlabelled inputs. The fit is sequential and exact: a site's mu_m and sigma_m are measured with every site before it
already corrected. (The authors' code normalises by each batch while it goes through the data once.) One batch takes one forward pass,
in which every site is measured and corrected as it is reached; several batches take a pass per site.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from .correction import ChannelAffine, Correction, attach, watched
from .sites import Site
from .statistics import (
    Batch,
    Statistics,
    check_reached,
    check_ready,
    mean_and_deviation,
    measure,
    real_tokens,
)

EPS = 1e-10


def channel_affine(
    mean_m: Tensor, std_m: Tensor, mean: Tensor, std: Tensor, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """Scale and shift ``[c]`` that take channels with ``mean_m, std_m`` to ``mean, std``; all float64.

    A channel that is dead in the merged encoder (sigma_m^2 <= eps) is only shifted: there is nothing to scale but rounding, and
    sigma_t / sqrt(eps) would blow up whatever another input brings. One that is dead in the expert gets scale 0.
    """
    scale = torch.where(
        std_m.square() <= eps, torch.ones_like(std), std / (std_m.square() + eps).sqrt()
    )
    return scale, mean - scale * mean_m


def _check_target(sites: Sequence[Site], target: Statistics, eps: float) -> None:
    if missing := [s.name for s in sites if s.name not in target.mean]:
        raise ConfigError(
            f"The target lacks {', '.join(missing[:5])}; measure the expert at the sites that are corrected."
        )
    if not eps >= 0:
        raise ConfigError(f"eps is 0 or more, not {eps}.")


@torch.no_grad()
def match_statistics(
    module: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    target: Statistics,
    *,
    eps: float = EPS,
) -> Correction:
    """The sequential correction that gives ``module`` the ``target``'s mean and std at each of ``sites``, on ``batches``.

    ``module`` is the merged encoder in evaluation mode, its part ``transformer`` has the sites; it is left as it was. Raises
    ``ConfigError`` for a target without a site, and as ``measure``.
    """
    check_ready(module, sites, batches)
    _check_target(sites, target, eps)
    found = Correction()

    def correction_of(site: Site, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        wanted = (target.mean[site.name].to(mean), target.std[site.name].to(std))
        if wanted[0].shape != mean.shape:
            raise ConfigError(
                f"The target has {len(wanted[0])} channels at {site.name}, the merged encoder {len(mean)}; they are of different sizes."
            )
        scale, shift = channel_affine(mean, std, *wanted, eps)
        if not torch.isfinite(scale).all() or not torch.isfinite(shift).all():
            raise DataError(
                f"Activations at {site.name} are not finite; the encoder's weights or these inputs are damaged."
            )
        return scale.float(), shift.float()

    if len(batches) == 1:

        def measure_and_correct(site: Site, y: Tensor) -> Tensor:
            nonlocal found
            scale, shift = correction_of(site, *mean_and_deviation(y[real_tokens(batches[0], y)]))
            found = found.with_site(site.name, scale, shift)
            return ChannelAffine(scale, shift)(y)

        with watched(module.transformer, sites, measure_and_correct):
            module(**batches[0])
        check_reached(sites, found.scale)
        return found
    for site in sites:
        attached = attach(module, sites, found)
        try:
            seen = measure(module, [site], batches)
        finally:
            attached.remove()
        found = found.with_site(
            site.name, *correction_of(site, seen.mean[site.name], seen.std[site.name])
        )
    return found


def tact(
    module: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    expert: Statistics,
    *,
    last_layer_only: bool = False,
    eps: float = EPS,
) -> Correction:
    """TACT's correction of the merged encoder ``module`` for one task, from its unlabelled ``batches``.

    ``expert`` are f_t's statistics on the same inputs. ``last_layer_only`` corrects the last site alone, an ablation. Raises as
    ``match_statistics``.
    """
    return match_statistics(
        module, sites[-1:] if last_layer_only else sites, batches, expert, eps=eps
    )
