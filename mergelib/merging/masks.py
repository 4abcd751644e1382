"""Methods that choose, entry by entry, whose task vector counts: MagMax, TALL-masks, Consensus,
EMR-Merging."""

import torch
from torch import Tensor

from ..core.types import State
from .arithmetic import task_vector_sum
from .options import AtLeastZero
from .registry import PER_TASK, method
from .states import Experts, Tensors, add_scaled, float_names, stacked_task_vectors

# ---- MagMax: Marczak et al., 2024 (arXiv 2407.06322) ----


@method("magmax", label="MagMax", short="MagMax", lam=0.5, paper="2407.06322")
def magmax(base: State, experts: Experts) -> Tensors:
    """Per entry, the tau_t of largest magnitude; in a tie, the later expert's.

    Made for experts fine-tuned one after another; here they are independent.
    """
    merged = {}
    for name in float_names(base):
        # Of equal magnitudes argmax takes the first: the later expert.
        tau = stacked_task_vectors(base, experts, name).flip(0)
        merged[name] = tau.gather(0, tau.abs().argmax(0, keepdim=True)).squeeze(0)
    return merged


# ---- TALL-masks and Consensus: Wang et al., 2024 (arXiv 2405.07813) ----


def tall_mask(tau: Tensor, tau_sum: Tensor, lam: float) -> Tensor:
    """Entries that task t needs: ``|tau_t| > lam * |tau_sum - tau_t|``, bool, strictly, so that an
    entry that no expert changed is out."""
    return tau.abs() > lam * (tau_sum - tau).abs()


@method("tall_masks", label="TALL-masks", short="TALL", gives=PER_TASK, paper="2405.07813")
def tall_masks(base: State, experts: Experts, *, lam: float = 0.4) -> list[Tensors]:
    """One encoder per task: theta_b + mask_t * sum_s tau_s.

    ``lam`` is the method's own lambda_t, the mask's threshold (grid 0.2 to 0.6), not a scale.
    """
    tau_sum = task_vector_sum(base, experts)
    return [
        add_scaled(
            base,
            {n: tall_mask(e[n].float() - base[n].float(), s, lam) * s for n, s in tau_sum.items()},
            1.0,
        )
        for e in experts
    ]


@method("consensus", label="Consensus", short="Consensus", lam=0.3, paper="2405.07813")
def consensus(
    base: State, experts: Experts, *, threshold: float = 0.4, agree: AtLeastZero = 2
) -> Tensors:
    """sum_t tau_t where at least ``agree`` tasks' masks hold, else 0.

    (The original takes each mask's best threshold on labelled validation data; here one threshold
    serves all.)
    """
    tau_sum = task_vector_sum(base, experts)
    merged = {}
    for n, s in tau_sum.items():
        count = sum(tall_mask(e[n].float() - base[n].float(), s, threshold).int() for e in experts)
        merged[n] = torch.where(count >= agree, s, 0.0)
    return merged


# ---- EMR-Merging: Huang et al., 2024 (arXiv 2405.17461) ----


def _mean_per_expert(values: Tensor) -> Tensor:
    """``[T, ...] -> [T]``."""
    return values.reshape(len(values), -1).mean(1)


@method("emr_merging", label="EMR-Merging", short="EMR", gives=PER_TASK, paper="2405.17461")
def emr_merging(base: State, experts: Experts) -> list[Tensors]:
    """Elect, Mask, Rescale; one encoder per task: theta_b + rescale_t * mask_t * tau_uni.

    tau_uni has the sign of the mean tau (0 counts as negative) and the largest magnitude among the
    experts that carry it; mask_t holds where tau_t carries it; rescale_t makes the mean magnitudes
    (per tensor, then summed, as in the authors' code) equal those of tau_t.
    """
    uni, agrees, magnitude, masked = {}, {}, 0.0, 0.0
    for name in float_names(base):
        tau = stacked_task_vectors(base, experts, name)
        sign = torch.where(tau.mean(0) > 0, 1.0, -1.0)
        agrees[name] = tau * sign > 0
        uni[name] = sign * torch.where(agrees[name], tau.abs(), 0.0).amax(0)
        magnitude = magnitude + _mean_per_expert(tau.abs())
        masked = masked + _mean_per_expert((agrees[name] * uni[name]).abs())
    rescale = torch.where(masked > 0, magnitude / masked, 1.0)
    return [
        add_scaled(base, {n: rescale[t] * agrees[n][t] * uni[n] for n in uni}, 1.0)
        for t in range(len(experts))
    ]
