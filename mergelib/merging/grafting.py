"""Skill localisation by grafting: Panigrahi et al., 2023 (arXiv 2302.06600)."""

import torch
import torch.nn.functional as F

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
    task_vectors,
    total,
    unflatten,
)

START = -5.0  # logit of a flip before training: sigmoid(-5) is 0.7 %


@torch.enable_grad()
def skill_mask(
    context: Context, t: int, base: State, tau: State, keep: float, steps: int, lr: float, n: int
) -> Tensors:
    """Which entries of tau_t hold the skill of task t, 0 or 1 per entry.

    At first the ``keep`` largest magnitudes. Then gradient descent on the loss of
    theta_b + gamma tau_t on the first ``n`` labelled inputs, gamma the mask with each entry flipped
    by the share sigmoid(S); in the end, what is flipped by more than one half is flipped.
    """
    names = float_names(base)
    size = flatten(tau, names).abs()
    first = torch.zeros_like(size)
    first[size.sort(descending=True, stable=True).indices[: round(keep * len(size))]] = 1
    mask, task = unflatten(first, base, names), context.tasks[t]
    logits = {m: torch.full_like(mask[m], START, requires_grad=True) for m in names}
    batch, labels = context.collate(task.inputs[:n]), task.labels[:n]
    for _ in range(steps):
        grafted = {
            m: base[m].float() + torch.lerp(mask[m], 1 - mask[m], logits[m].sigmoid()) * tau[m]
            for m in names
        }
        features = context.features(complete(base, grafted), batch)
        loss = F.cross_entropy(task.head.logits(features), labels)
        gradients = torch.autograd.grad(loss, list(logits.values()), allow_unused=True)
        for m, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                logits[m].data -= lr * gradient
    return {m: torch.where(logits[m].detach() > 0, 1 - mask[m], mask[m]) for m in names}


@method(
    "grafting",
    label="Grafting",
    short="Graft",
    needs=("inputs", "labels", "gradients"),
    lam=1.0,
    paper="2302.06600",
)
def grafting(
    base: State,
    experts: Experts,
    context: Context,
    *,
    keep: ShareAboveZero = 0.1,
    steps: AtLeastZero = 10,
    lr: Positive = 1e7,
    n_examples: AtLeastOne = 64,
) -> Tensors:
    """sum_t gamma_t tau_t, gamma_t by ``skill_mask``.

    The authors graft one task at a time, with masks of 0.01 % of a much larger model; adding up the
    grafts of all tasks is how they combine skills.

    Args:
        base: theta_b.
        experts: The T theta_t.
        context: Labelled inputs and heads of the tasks.
        keep: Fraction of tau_t's entries in the mask at first.
        steps, lr: Of the gradient descent on the mask.
        n_examples: Labelled inputs per task.
    """
    vectors = task_vectors(base, experts)
    masks = [
        skill_mask(context, t, base, tau, keep, steps, lr, n_examples)
        for t, tau in enumerate(vectors)
    ]
    return total([{n: m[n] * tau[n] for n in tau} for m, tau in zip(masks, vectors, strict=True)])
