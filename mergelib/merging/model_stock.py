"""Model Stock: Jang et al., 2024 (arXiv 2403.19522)."""

from torch import Tensor

from ..core.types import State
from .registry import method
from .states import Experts, Tensors, float_names, rounded, stacked_task_vectors


def stock_ratio(tau: Tensor) -> Tensor:
    """t = T cos / (1 + (T - 1) cos) for ``tau [T, n]``, cos the mean over pairs of cosines; 0-d, in
    [0, 1].

    A pair with a zero task vector counts as cosine 0; cosines below 0 give t = 0, where the formula
    leaves [0, 1].
    """
    n_experts = len(tau)
    if n_experts == 1:
        return tau.new_ones(())
    unit = tau / tau.norm(dim=1, keepdim=True).clamp(min=1e-12)
    products = unit @ unit.T
    cosine = ((products.sum() - products.trace()) / (n_experts * (n_experts - 1))).clamp(0, 1)
    return n_experts * cosine / (1 + (n_experts - 1) * cosine)


@method("model_stock", label="Model Stock", short="Stock", paper="2403.19522")
def model_stock(base: State, experts: Experts) -> Tensors:
    """Per tensor theta_m = t * mean_t theta_t + (1 - t) * theta_b, with t from the angle between
    task vectors.

    Meant for several fine-tunings of one task; experts of different tasks are nearly orthogonal,
    and the result then stays near the base. The authors do not say how more than two angles
    combine: here the mean of pairwise cosines, as in mergekit.
    """
    merged = {}
    for name in float_names(base):
        tau = stacked_task_vectors(base, experts, name)
        ratio = stock_ratio(tau.reshape(len(tau), -1))
        merged[name] = base[name].float() + ratio * tau.mean(0)
    return rounded(base, merged)
