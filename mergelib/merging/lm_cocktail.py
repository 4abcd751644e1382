"""LM-Cocktail: Xiao et al., 2024 (arXiv 2311.13534)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.types import State
from .context import Context
from .options import AtLeastOne, Positive
from .registry import PER_TASK, method
from .states import Experts, Tensors, as_float32, float_names, rounded


@torch.no_grad()
def cocktail_weights(
    experts: Experts, context: Context, t: int, temperature: float, shots: int
) -> Tensor:
    """softmax_i(-L_i / temperature) ``[T]``: L_i is the mean cross-entropy of encoder i behind head
    t on the first ``shots`` labelled inputs of task t."""
    task = context.tasks[t]
    batch = context.collate(task.inputs[:shots])
    losses = [
        F.cross_entropy(
            task.head.logits(context.features(as_float32(e), batch)), task.labels[:shots]
        )
        for e in experts
    ]
    return torch.softmax(-torch.stack(losses) / temperature, 0)


@method(
    "lm_cocktail",
    label="LM-Cocktail",
    short="Cocktail",
    needs=("inputs", "labels"),
    gives=PER_TASK,
    paper="2311.13534",
)
def lm_cocktail(
    base: State,
    experts: Experts,
    context: Context,
    *,
    temperature: Positive = 5.0,
    shots: AtLeastOne = 5,
) -> list[Tensors]:
    """One encoder per target task: sum_i w_i theta_i.

    Head t on another task's encoder is the misaligned pair that this project is about; this loss is
    what singles out the target's own expert.
    """
    merged = []
    for t in range(len(experts)):
        weights = cocktail_weights(experts, context, t, temperature, shots)
        mixed = {
            n: sum(w * e[n].float() for w, e in zip(weights, experts, strict=True))
            for n in float_names(base)
        }
        merged.append(rounded(base, mixed))
    return merged
