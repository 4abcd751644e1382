"""AdaMerging: Yang et al., 2024 (arXiv 2310.02575)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..core.types import State
from .context import Context
from .options import AtLeastOne, AtLeastZero, Positive, ShareAboveZero
from .registry import method
from .states import (
    Experts,
    Tensors,
    complete,
    flatten,
    float_names,
    rounded,
    task_vectors,
    unflatten,
)
from .ties import trimmed_and_elected


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean Shannon entropy (nats) of softmax(logits ``[B, C]``), 0-d."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def combine(base: State, vectors: Sequence[State], coefficients: Tensor) -> Tensors:
    """theta_b + sum_t lambda_t^l tau_t^l, float32; ``coefficients [T, L]`` in the order of sorted
    names, or ``[T, 1]``."""
    names = sorted(vectors[0])
    lams = coefficients.expand(-1, len(names))
    return {
        n: base[n].float() + sum(lams[t, i] * v[n] for t, v in enumerate(vectors))
        for i, n in enumerate(names)
    }


@torch.enable_grad()
def learned(
    base: State,
    vectors: Sequence[State],
    context: Context,
    per: Literal["task", "layer"],
    steps: int,
    lr: float,
    batch_size: int,
    prior: float,
    seed: int,
) -> Tensors:
    """The merge with coefficients ``[T, 1]`` or ``[T, L]`` after ``steps`` of Adam on the entropy
    of each task's own predictions.

    A step sums the tasks' mean entropies, each on ``batch_size`` random inputs. Nothing else is
    trained, no label is seen.
    """
    coefficients = torch.full(
        (len(vectors), 1 if per == "task" else len(vectors[0])),
        float(prior),
        requires_grad=True,
        device=next(iter(vectors[0].values())).device,
    )
    optimizer = torch.optim.Adam([coefficients], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        state = combine(base, vectors, coefficients)
        # One leaf per tensor: the tasks' gradients add up there, and go back through ``combine``
        # once instead of T times.
        leaves = {n: t.detach().requires_grad_() for n, t in state.items()}
        weights = complete(base, leaves)
        for task in context.tasks:
            order = torch.randperm(len(task.inputs), generator=generator)  # CPU, like the inputs
            rows = order[:batch_size]
            features = context.features(weights, context.collate([task.inputs[i] for i in rows]))
            mean_entropy(task.head.logits(features)).backward()
        reached = [n for n, leaf in leaves.items() if leaf.grad is not None]
        torch.autograd.backward([state[n] for n in reached], [leaves[n].grad for n in reached])
        optimizer.step()
    return rounded(base, combine(base, vectors, coefficients.detach()))


def ties_vectors(base: State, experts: Experts, keep: float) -> list[Tensors]:
    """Each expert's task vector as ``trimmed_and_elected``: what Ties sums."""
    names = float_names(base)
    flat, *experts = (flatten(state, names) for state in (base, *experts))
    return [unflatten(row, base, names) for row in trimmed_and_elected(flat, experts, keep)]


def register(per: Literal["task", "layer"]) -> None:
    """AdaMerging and AdaMerging++ with a lambda per task, or per task and tensor."""

    common = {"needs": ("test inputs", "gradients"), "paper": "2310.02575"}

    @method(f"adamerging_{per}", label=f"AdaMerging, {per}-wise", short=f"Ada-{per}", **common)
    def adamerging(
        base: State,
        experts: Experts,
        context: Context,
        *,
        steps: AtLeastZero = 100,
        lr: Positive = 1e-3,
        batch_size: AtLeastOne = 16,
        prior: float = 0.3,
        seed: int = 0,
    ) -> Tensors:
        """theta_m = theta_b + sum_t lambda_t tau_t, lambda_t learned from ``prior`` on unlabelled
        inputs of the *test* set. (The authors take 500 steps and clamp lambda to [0, 1]; nothing
        is clamped here, as in FusionBench.)"""
        vectors = task_vectors(base, experts)
        return learned(base, vectors, context, per, steps, lr, batch_size, prior, seed)

    @method(
        f"adamerging_{per}_pp", label=f"AdaMerging++, {per}-wise", short=f"Ada-{per}++", **common
    )
    def adamerging_pp(
        base: State,
        experts: Experts,
        context: Context,
        *,
        steps: AtLeastZero = 100,
        lr: Positive = 1e-3,
        batch_size: AtLeastOne = 16,
        prior: float = 0.3,
        keep: ShareAboveZero = 0.2,
        seed: int = 0,
    ) -> Tensors:
        """AdaMerging on the task vectors as Ties leaves them before it adds them up."""
        vectors = ties_vectors(base, experts, keep)
        return learned(base, vectors, context, per, steps, lr, batch_size, prior, seed)


register("task")
register("layer")
