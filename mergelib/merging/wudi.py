"""WUDI-Merging: Cheng et al., 2025 (arXiv 2503.08099)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.types import State
from .options import AtLeastZero, Positive
from .registry import method
from .spectral import TABLES, by_matrix
from .states import Experts, Tensors, add_scaled


def least_interference(tau: Tensor, steps: int, lr: float) -> Tensor:
    """Task matrices ``[T, m, n] -> [m, n]``: Adam from their sum on
    sum_t |(X - tau_t) tau_t^T|^2 / |tau_t|^2.

    The rows of tau_t span what task t's inputs look like, so the loss is what the other tasks
    change in the layer's answers to these inputs. Its gradient needs two matrices, whatever T is.
    """
    tau = tau.double()  # Adam divides by the gradient's size: it would take rounding for a slope
    power = tau.square().sum((1, 2))
    scaled = tau / power.clamp(min=torch.finfo(tau.dtype).tiny)[:, None, None]
    gram = (scaled.mT @ tau).sum(0)
    target = (tau @ (scaled.mT @ tau)).sum(0)
    merged = tau.sum(0)
    optimizer = torch.optim.Adam([merged], lr=lr)
    for _ in range(steps):
        merged.grad = 2 * (merged @ gram - target)
        optimizer.step()
    return merged.float()


@method("wudi", label="WUDI-Merging", short="WUDI", paper="2503.08099")
def wudi(
    base: State,
    experts: Experts,
    *,
    steps: AtLeastZero = 300,
    lr: Positive = 1e-5,
    exclude: Sequence[str] = TABLES,
) -> Tensors:
    """theta_b + ``least_interference`` of each task matrix, the mean of tau_t for what is none.

    Without lambda, as the authors have it. The loss is quadratic, and its minimum is known in
    closed form; few small steps from the sum are part of the method.

    Args:
        base: theta_b.
        experts: The T theta_t.
        steps, lr: Of Adam.
        exclude: Words; a tensor with one of them in its name is no task matrix.
    """
    direction = by_matrix(base, experts, exclude, lambda tau: least_interference(tau, steps, lr))
    return add_scaled(base, direction, 1.0)
