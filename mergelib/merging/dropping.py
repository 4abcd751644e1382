"""Methods that drop entries of task vectors before adding: DARE, DELLA, Model Breadcrumbs."""

from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import State
from .options import Share, ShareAboveZero, ShareBelowOne
from .registry import method
from .states import Experts, Tensors, add_scaled, float_names, task_vectors, total
from .ties import ties_direction

# ---- DARE: Yu et al., 2024 (arXiv 2311.03099) ----


def dare(tau: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Drop And REscale: each entry of ``tau`` is 0 with probability ``drop``, else divided by 1 -
    drop; unbiased."""
    # Drawn on the CPU: every device gets the same mask.
    kept = torch.rand(tau.shape, generator=generator) >= drop
    return tau * kept.to(tau.device) / (1 - drop)


def _dare_vectors(base: State, experts: Experts, drop: float, seed: int) -> list[Tensors]:
    generator = torch.Generator().manual_seed(seed)
    return task_vectors(base, experts, lambda tau: dare(tau, drop, generator))


@method("dare_average", label="DARE + Weight Averaging", short="DARE-WA", paper="2311.03099")
def dare_average(
    base: State, experts: Experts, *, drop: ShareBelowOne = 0.5, seed: int = 0
) -> Tensors:
    """theta_m = theta_b + (1/T) sum_t DARE(tau_t)."""
    return add_scaled(base, total(_dare_vectors(base, experts, drop, seed)), 1 / len(experts))


@method(
    "dare_task_arithmetic",
    label="DARE + Task Arithmetic",
    short="DARE-TA",
    lam=0.3,
    paper="2311.03099",
)
def dare_task_arithmetic(
    base: State, experts: Experts, *, drop: ShareBelowOne = 0.5, seed: int = 0
) -> Tensors:
    """sum_t DARE(tau_t).

    (mergekit rescales each tensor to its former L1 norm instead of by 1/(1 - drop), and is not
    unbiased.)
    """
    return total(_dare_vectors(base, experts, drop, seed))


@method("dare_ties", label="DARE + Ties", short="DARE-Ties", lam=0.3, paper="2311.03099")
def dare_ties(
    base: State,
    experts: Experts,
    *,
    keep: ShareAboveZero = 0.2,
    combine: Literal["sum", "mean"] = "sum",
    drop: ShareBelowOne = 0.5,
    seed: int = 0,
) -> Tensors:
    """Ties(DARE(tau_1), ..., DARE(tau_T)): dropped first, then trimmed, elected and merged."""
    zero = {n: torch.zeros_like(base[n], dtype=torch.float32) for n in float_names(base)}
    vectors = _dare_vectors(base, experts, drop, seed)
    return ties_direction(zero, vectors, keep=keep, combine=combine)


# ---- Model Breadcrumbs: Davari & Belilovsky, 2024 (arXiv 2312.06795) ----


def breadcrumbs(tau: Tensor, keep: float, drop_top: float) -> Tensor:
    """``tau [..., n]``, row by row of its last axis: the int(drop_top * n) largest magnitudes
    become 0, of the others the int(keep * n) largest stay (at least one), the rest become 0. A 0-d
    tensor is kept."""
    if tau.dim() == 0:
        return tau
    n = tau.shape[-1]
    order = tau.abs().sort(dim=-1, descending=True, stable=True).indices
    first = int(drop_top * n)
    kept = order[..., first : first + max(1, int(keep * n))]
    return torch.zeros_like(tau).scatter(-1, kept, tau.gather(-1, kept))


@method(
    "model_breadcrumbs",
    label="Model Breadcrumbs",
    short="Breadcrumbs",
    lam=0.3,
    paper="2312.06795",
)
def model_breadcrumbs(
    base: State, experts: Experts, *, keep: ShareAboveZero = 0.15, drop_top: ShareBelowOne = 0.006
) -> Tensors:
    """sum_t masked tau_t.

    The authors' search has ``keep`` 0.05..0.2 and ``drop_top`` 0.001..0.01. (A row too short to
    keep int(keep * n) entries keeps one, where the original keeps none.)
    """
    return total(task_vectors(base, experts, lambda tau: breadcrumbs(tau, keep, drop_top)))


# ---- DELLA: Deep et al., 2024 (arXiv 2406.11617) ----


def magprune(rows: Tensor, drop: float, window: float, generator: torch.Generator) -> Tensor:
    """MAGPRUNE: within each row of ``rows [..., n]`` entries are ranked by magnitude, the keep
    probability rises linearly with the rank over ``window`` around 1 - drop, and a kept entry is
    divided by its probability. One-entry rows take the middle."""
    flat = rows.reshape(-1, rows.shape[-1] if rows.dim() else 1)
    n = flat.shape[-1]
    rank = flat.abs().sort(dim=-1, stable=True).indices.argsort(-1).to(flat.dtype)
    relative = rank / (n - 1) if n > 1 else torch.full_like(rank, 0.5)
    probability = 1 - drop - window / 2 + window * relative
    kept = torch.rand(flat.shape, generator=generator).to(flat.device) < probability
    return (flat * kept / probability).view(rows.shape)


@method("della", label="DELLA", short="DELLA", lam=1.0, paper="2406.11617")
def della(
    base: State, experts: Experts, *, drop: float = 0.3, window: Share = 0.14, seed: int = 0
) -> Tensors:
    """The elected mean of MAGPRUNE(tau_t).

    Per entry, of those that carry the sign of their sum (0 counts as positive).

    (The authors' lambda is 1.1. mergekit rescales to the former L1 norm instead of dividing by the
    keep probability.)
    """
    if not 0 <= drop - window / 2 <= drop + window / 2 < 1:
        raise ConfigError(
            "DELLA: drop - window / 2 must not be below 0, nor drop + window / 2 1 or above; not "
            f"drop {drop} and window {window}."
        )
    generator = torch.Generator().manual_seed(seed)
    pruned = task_vectors(base, experts, lambda tau: magprune(tau, drop, window, generator))
    merged = {}
    for name in pruned[0]:
        tau = torch.stack([p[name] for p in pruned])
        agrees = torch.where(tau.sum(0) >= 0, tau > 0, tau < 0)
        merged[name] = torch.where(agrees, tau, 0.0).sum(0) / agrees.sum(0).clamp(min=1)
    return merged
