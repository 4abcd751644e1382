"""LM-Cocktail: Xiao et al., 2024 (arXiv 2311.13534)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import State
from .context import Context
from .registry import PER_TASK, method
from .states import as_float32, complete, float_names


@torch.no_grad()
def cocktail_weights(
    experts: Sequence[State], context: Context, t: int, *, temperature: float, shots: int
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
    experts: Sequence[State],
    context: Context,
    *,
    temperature: float = 5.0,
    shots: int = 5,
) -> list[dict[str, Tensor]]:
    """One encoder per target task: sum_i w_i theta_i.

    Head t on another task's encoder is the misaligned pair that this project is about; this loss is
    what singles out the target's own expert.
    """
    if not temperature > 0 or shots < 1:
        raise ConfigError(
            "LM-Cocktail: temperature must be above 0 and shots at least 1, "
            f"not {temperature} and {shots}."
        )
    merged = []
    for t in range(len(experts)):
        weights = cocktail_weights(experts, context, t, temperature=temperature, shots=shots)
        merged.append(
            complete(
                base,
                {
                    n: sum(w * e[n].float() for w, e in zip(weights, experts, strict=True)).to(
                        base[n].dtype
                    )
                    for n in float_names(base)
                },
            )
        )
    return merged
