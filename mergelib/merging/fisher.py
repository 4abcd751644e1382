"""Fisher Merging: Matena & Raffel, 2022 (arXiv 2111.09832)."""

import math
from collections.abc import Iterator

import torch

from ..core.types import State
from .context import Context
from .options import AtLeastOne, Positive
from .registry import method
from .states import Experts, Tensors, complete, float_names, rounded


@torch.enable_grad()
def fisher_diagonal(context: Context, t: int, state: State, n_examples: int) -> Tensors:
    """F_t = E_x E_{y ~ p_t(y|x)} (d log p_t(y|x) / d theta)^2 at ``state``, exactly: one gradient
    per input and class.

    The inputs are task t's first ``n_examples``; labels are not used. One float32 tensor per
    floating-point tensor. (Squaring after summing over classes or a batch, as a widespread shortcut
    does, is not this quantity.)
    """
    names = float_names(state)
    leaves = {n: state[n].detach().float().requires_grad_() for n in names}
    fisher = {n: torch.zeros_like(leaf, requires_grad=False) for n, leaf in leaves.items()}
    weights, head, n_inputs = complete(state, leaves), context.tasks[t].head, 0
    for batch in context.batches(t, n_examples, 1):
        log_p = head.logits(context.features(weights, batch)).log_softmax(-1)[0]
        for y, p in enumerate(log_p.detach().exp()):
            gradients = torch.autograd.grad(
                log_p[y], list(leaves.values()), retain_graph=y < len(log_p) - 1, allow_unused=True
            )
            for n, g in zip(names, gradients, strict=True):
                if g is not None:
                    fisher[n].addcmul_(g, g * p)
        n_inputs += 1
    return {n: f / n_inputs for n, f in fisher.items()}


def fisher_diagonals(
    base: State, experts: Experts, context: Context, n_examples: int
) -> Iterator[Tensors]:
    """``fisher_diagonal`` of one expert after the other, which are large; the base determines which
    tensors are tied."""
    names = float_names(base)
    for t, expert in enumerate(experts):
        yield fisher_diagonal(context, t, complete(base, {n: expert[n] for n in names}), n_examples)


@method(
    "fisher_merging",
    label="Fisher Merging",
    short="Fisher",
    needs=("inputs", "gradients"),
    paper="2111.09832",
)
def fisher_merging(
    base: State,
    experts: Experts,
    context: Context,
    *,
    n_examples: AtLeastOne = 64,
    floor: Positive = 1e-6,
) -> Tensors:
    """theta_m = sum_t F_t theta_t / sum_t F_t, elementwise.

    Each F_t is divided by its norm over the whole encoder, so that a confident expert does not
    vanish, and ``floor`` is added: where no expert has a gradient, the result is the mean. (The
    original has 4,096 examples, searches the experts' coefficients, and adds the floor to one
    expert only.)
    """
    weighted, weights = {}, {}
    fishers = fisher_diagonals(base, experts, context, n_examples)
    for expert, fisher in zip(experts, fishers, strict=True):
        # float64: a very confident expert's numbers have squares that float32 takes for 0
        squares = sum(float(f.double().square().sum()) for f in fisher.values())
        norm = max(math.sqrt(squares), torch.finfo(torch.float32).tiny)
        for n, f in fisher.items():
            f = f / norm + floor
            weighted[n] = weighted.get(n, 0) + f * expert[n].float()
            weights[n] = weights.get(n, 0) + f
    return rounded(base, {n: weighted[n] / weights[n] for n in weights})
