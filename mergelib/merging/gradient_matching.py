"""Merging by uncertainty-based gradient matching: Daheim et al., 2024 (arXiv 2310.12808)."""

import torch

from ..core.types import State
from .context import Context
from .fisher import fisher_diagonals
from .options import AtLeastOne, Positive
from .registry import method
from .states import Experts, Tensors, add_scaled, float_names


@method(
    "gradient_matching",
    label="Gradient Matching",
    short="GradMatch",
    needs=("inputs", "gradients"),
    paper="2310.12808",
)
def gradient_matching(
    base: State,
    experts: Experts,
    context: Context,
    *,
    alpha: Positive = 1.0,
    prior: Positive = 1.0,
    n_examples: AtLeastOne = 64,
) -> Tensors:
    """theta_m = theta_b + sum_t alpha (H_0 + F_t) tau_t / (H_0 + alpha sum_s F_s), elementwise.

    F_t is expert t's diagonal Fisher. H_0 stands for the curvature that pre-training left: the same
    number everywhere, ``prior`` times the mean of all F_t. A huge prior gives Task Arithmetic with
    lambda = alpha; entries that only one task is sure of keep that task's change.

    Args:
        base: theta_b.
        experts: The T theta_t.
        context: Unlabelled inputs and heads of the tasks.
        alpha: Weight of each task; with a huge prior, Task Arithmetic's lambda.
        prior: H_0 over the mean of all F_t.
        n_examples: Inputs per task for F_t.
    """
    tau_sum = {n: torch.zeros(base[n].shape, device=base[n].device) for n in float_names(base)}
    f_sum, weighted = ({n: t.clone() for n, t in tau_sum.items()} for _ in range(2))
    fishers = fisher_diagonals(base, experts, context, n_examples)
    for expert, fisher in zip(experts, fishers, strict=True):
        for n, f in fisher.items():
            tau = expert[n].float() - base[n].float()
            tau_sum[n] += tau
            f_sum[n] += f
            weighted[n] += f * tau
    entries = len(experts) * sum(f.numel() for f in f_sum.values())
    mean = sum(float(f.double().sum()) for f in f_sum.values()) / entries
    h_0 = prior * (mean or 1.0)  # without any curvature all entries count alike
    direction = {n: (h_0 * tau_sum[n] + weighted[n]) / (h_0 + alpha * f_sum[n]) for n in f_sum}
    return add_scaled(base, direction, alpha)
