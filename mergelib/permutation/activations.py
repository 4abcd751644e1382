"""Activation matching: put the units of one network in the order of another's, by what they do on the same inputs.

Units are paired by the correlation of their activations over inputs and positions. Sources: Li et al., 2016 (Convergent
Learning, arXiv 1511.07543); Jordan et al., 2023 (REPAIR, arXiv 2211.08403).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError, StateDictError
from .assignment import best_move, worth
from .matching import ROUNDING, Matching
from .permute import identity
from .spec import PermutationSpec, Site

SILENT = 1e-6
"""A unit whose activation varies by less than this share of its size is constant but for rounding; it correlates with none."""

Activations = Mapping[Site, Tensor]
"""Per site ``[N, size]``: a row per real token or patch, in the order of the inputs."""


@torch.no_grad()
def collect_activations(
    spec: PermutationSpec, module: nn.Module, batches: Iterable[Mapping[str, Tensor]]
) -> dict[Site, Tensor]:
    """The activations of every site of ``spec`` while ``module(**batch)`` runs on collated batches; without padding, which
    ``attention_mask`` marks where there is one.

    ``module`` is an encoder's module, whose part ``transformer`` has the spec's state, or that part itself. For two networks give the
    same batches. All is held in memory: per token the sum of the sites' sizes, times 4 bytes. Raises ``ConfigError`` for a module in
    training mode, ``StateDictError`` for one without the spec's submodules, ``DataError`` without a batch.
    """
    if module.training:
        raise ConfigError(
            "Activations are read in evaluation mode, where dropout is off; call module.eval() first."
        )
    inner = getattr(module, "transformer", module)
    seen: dict[Site, list[Tensor]] = {site: [] for sites in spec.sites.values() for site in sites}
    real: Tensor | None = None

    def reader(site: Site):
        def read(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            t = args[0] if site.end == "input" else output
            rows = t[real] if real is not None and real.shape == t.shape[:-1] else t.flatten(0, -2)
            seen[site].append(rows.float().cpu())

        return read

    with ExitStack() as hooks:
        for site in seen:
            try:
                part = inner.get_submodule(site.module)
            except AttributeError:
                raise StateDictError(
                    f"This module has no part '{site.module}', which the spec of {spec.architecture} reads. Give the module "
                    "and the spec of one encoder."
                ) from None
            hooks.callback(part.register_forward_hook(reader(site)).remove)
        for batch in batches:
            real = batch["attention_mask"].bool() if "attention_mask" in batch else None
            module(**batch)
    if any(not rows for rows in seen.values()):
        raise DataError("Activations need inputs: give at least one batch.")
    return {site: torch.cat(rows) for site, rows in seen.items()}


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of every column of ``x [N, n]`` with every one of ``y [N, n]``: float64 ``[n, n]``; 0 where one is constant."""
    return _standardised(x).mT @ _standardised(y)


def _standardised(x: Tensor) -> Tensor:
    x = x.double()
    size = x.norm(dim=0)
    x = x - x.mean(0)
    length = x.norm(dim=0)
    return torch.where(length > SILENT * size, x / length, 0)


def activation_matching(
    spec: PermutationSpec, activations_a: Activations, activations_b: Activations
) -> Matching:
    """Permutations of B's units after which they correlate best with A's, summed over a group's sites; families do not
    influence each other, so one sweep is exact. A group without sites follows the blocks within it, or stays.

    ``activations_a`` and ``activations_b`` come from ``collect_activations`` on the same batches. Raises ``DataError`` for sites that are
    missing, of another shape, or not finite.
    """
    permutations = identity(spec)
    before = after = 0.0
    for root, family in spec.families.items():
        profits = {
            g: sum(
                correlation(*_both(site, spec.groups[g].size, activations_a, activations_b))
                for site in spec.sites[g]
            )
            for g in family
            if spec.sites.get(g)
        }
        stay = float(sum(worth(p, permutations[g]) for g, p in profits.items()))
        moves, gain = best_move(spec, root, profits)
        bound = sum(len(spec.sites[g]) * spec.groups[g].size for g in profits)
        if gain > ROUNDING * bound:
            permutations |= moves
        else:
            gain = 0.0
        before, after = before + stay, after + stay + gain
    return Matching(permutations, (before, after), True)


def _both(
    site: Site, size: int, activations_a: Activations, activations_b: Activations
) -> tuple[Tensor, Tensor]:
    for who, activations in (("A", activations_a), ("B", activations_b)):
        t = activations.get(site)
        if (
            t is None
            or t.dim() != 2
            or t.shape[1] != size
            or len(t) < 2
            or not torch.isfinite(t).all()
        ):
            given = (
                "missing"
                if t is None
                else f"{list(t.shape)}{'' if torch.isfinite(t).all() else ' with NaN or inf'}"
            )
            raise DataError(
                f"Network {who}: activations at the {site.end} of '{site.module}' have to be finite, [at least 2, {size}]; these are "
                f"{given}. Take them from collect_activations with the same spec."
            )
    x, y = activations_a[site], activations_b[site]
    if len(x) != len(y):
        raise DataError(
            f"At the {site.end} of '{site.module}' A has {len(x)} rows and B {len(y)}; give both networks the same batches."
        )
    return x, y
