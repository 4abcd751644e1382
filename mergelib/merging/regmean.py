"""RegMean: Jin et al., 2023 (arXiv 2212.09849)."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.types import State
from .arithmetic import weight_averaging
from .context import Context
from .options import AtLeastOne, Share
from .registry import method
from .states import Experts, Tensors, as_float32

BATCH = 16


@torch.no_grad()
def gram_matrices(context: Context, t: int, state: State, n_examples: int) -> Tensors:
    """G_t = X_t^T X_t / n_t ``[in, in]`` (float64) of the rows X_t that enter each ``nn.Linear`` on
    task t's first ``n_examples`` inputs, by its weight's name. If the batch has an
    ``attention_mask [B, L]``, rows of padding tokens are left out: they change no feature, and
    their number depends on which inputs share a batch.

    Raises ``ConfigError`` for ``nn.MultiheadAttention``, whose fused projections never run as an
    ``nn.Linear``, and where no ``nn.Linear`` is merged.
    """
    fused = [n for n, m in context.inner.named_modules() if isinstance(m, nn.MultiheadAttention)]
    if fused:
        raise ConfigError(
            f"{fused[0]} is nn.MultiheadAttention: its projections cannot be told apart; use an "
            "encoder with separate q, k and v."
        )
    names = {
        m: f"{n}.weight" if n else "weight"
        for n, m in context.inner.named_modules()
        if isinstance(m, nn.Linear)
    }
    if not {*names.values()} & {*state}:
        raise ConfigError(
            f"a {type(context.inner).__name__} has no nn.Linear among the weights that are merged "
            "(GPT-2 has Conv1D); use a method that does not need one."
        )
    real, module, sums, counts = None, context.module, {}, Counter()
    # the authors' code attends to padding and averages it: then its rows shape the features
    padded = not getattr(module, "mask", True) or getattr(module, "padding_in_mean", False)

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        tokens = real is not None and args[0].shape[:-1] == real.shape
        rows = (args[0][real] if tokens else args[0].flatten(0, -2)).double()
        name = names[module]
        sums[name] = sums.get(name, 0) + rows.T @ rows
        counts[name] += len(rows)

    hooks = [m.register_forward_pre_hook(look) for m in names]
    try:
        state = as_float32(state)
        for batch in context.batches(t, n_examples, BATCH):
            if "attention_mask" in batch and not padded:
                real = batch["attention_mask"].bool()
            context.features(state, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {n: s / counts[n] for n, s in sums.items()}


def regmean_weight(grams: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The W ``[out, in]`` that minimises sum_t ||X_t W^T - X_t W_t^T||^2 / n_t: W^T = (sum_t
    G_t)^-1 sum_t G_t W_t^T.

    Solved by the change of the mean with the least norm, so directions without data keep the plain
    mean.
    """
    mean = sum(w.double() for w in weights) / len(weights)
    right = sum(g @ (w.double() - mean).T for g, w in zip(grams, weights, strict=True))
    return mean + (torch.linalg.pinv(sum(grams), hermitian=True) @ right).T


@method("regmean", label="RegMean", short="RegMean", needs=("inputs",), paper="2212.09849")
def regmean(
    base: State,
    experts: Experts,
    context: Context,
    *,
    off_diagonal: Share = 0.9,
    n_examples: AtLeastOne = 256,
) -> Tensors:
    """Every ``nn.Linear`` weight by least squares on its own inputs, everything else the plain
    mean. Entries of G_t off the diagonal are multiplied by ``off_diagonal``."""
    merged = weight_averaging(base, experts)
    grams = [gram_matrices(context, t, expert, n_examples) for t, expert in enumerate(experts)]
    for name in (n for n in grams[0] if n in merged):
        shrunk = [
            off_diagonal * g[name] + (1 - off_diagonal) * g[name].diagonal().diag() for g in grams
        ]
        # In place, so that a tensor tied to this one stays tied.
        merged[name].copy_(regmean_weight(shrunk, [e[name] for e in experts]))
    return merged
