"""FT-Classifier Eval, Eq. 8: a few unlabelled inputs re-align the head to the merged features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import DataError, check_name
from ..core.types import Head
from .adam import Adam


@dataclass(frozen=True)
class FTPreset:
    """How W' is fitted with Adam. With ``batch_size=None``, batches are full: one epoch is one
    step."""

    lr: float
    epochs: int
    batch_size: int | None = None

    def steps(self, n: int) -> int:
        """Optimiser steps on n samples."""
        return self.epochs * -(-n // (self.batch_size or n))


PRESETS = {
    # From the plateau that `python -m benchmarks.choose_ft_preset` prints: chosen on one task's
    # validation data, then used for all.
    "default": FTPreset(lr=3e-3, epochs=200),
    # For CLIP's heads, whose rows are unit vectors times a logit scale of 100: "default" in units
    # of these vectors.
    "clip": FTPreset(lr=0.3, epochs=200),
    # The authors' code: argparse defaults, and a loader built with batches of one.
    "released": FTPreset(lr=5e-4, epochs=5, batch_size=1),
}


def get_preset(name: str) -> FTPreset:
    """The named preset. Raises ``UnknownNameError``, which suggests the nearest name."""
    check_name("FT-Classifier preset", name, PRESETS)
    return PRESETS[name]


def kl_to_teacher(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) ``[...]``, summed over the class axis of ``[..., C]`` logits.

    The g of Eq. 8.
    """
    teacher = teacher_logits.log_softmax(-1)
    return (teacher.exp() * (teacher - student_logits.log_softmax(-1))).sum(-1)


def ft_classifier(
    features: Tensor,
    teacher_logits: Tensor,
    head: Head,
    preset: FTPreset,
    seed: int = 0,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = kl_to_teacher,
    fit_bias: bool = True,
) -> Head:
    """Eq. 8 written out: from (W_t, b_t), minimise the mean KL(teacher || student) by Adam.

    ``nested_fits`` does the same for all shots at once, much faster. The B fits share nothing: Adam
    works per entry and the loss is a sum of their means, so a batch equals B single fits.

    Args:
        features: f_m's outputs ``[B, n, d]``; ``[epochs, B, n, d]`` where dropout changes them.
        teacher_logits: f_t's outputs through (W_t, b_t), ``[B, n, C]``; no labels.
        head: (W_t, b_t), ``[C, d]`` and ``[C]``.
        preset: Rate, epochs and batch size.
        seed: Orders minibatches.
        loss: Of student's and teacher's logits ``[..., C]``, instead of the KL.
        fit_bias: Whether b' may differ from b_t.

    Returns:
        W' ``[B, C, d]`` and b' ``[B, C]``.
    """
    n_fits, n, _ = features.shape[-3:]
    weight = head.weight.repeat(n_fits, 1, 1).requires_grad_()
    bias = head.bias.repeat(n_fits, 1).requires_grad_(fit_bias)
    fitted = [weight, bias] if fit_bias else [weight]
    optimizer = torch.optim.Adam(fitted, lr=preset.lr)
    size, generator = preset.batch_size or n, torch.Generator().manual_seed(seed)
    for epoch in range(preset.epochs):
        inputs = features[epoch] if features.dim() == 4 else features
        order = torch.randperm(n, generator=generator) if size < n else torch.arange(n)
        for rows in order.to(features.device).split(size):
            student = torch.baddbmm(bias.unsqueeze(1), inputs[:, rows], weight.mT)
            total = loss(student, teacher_logits[:, rows].detach()).mean(-1).sum()
            for part, gradient in zip(fitted, torch.autograd.grad(total, fitted), strict=True):
                part.grad = gradient
            optimizer.step()
    return Head(weight.detach(), bias.detach())


class Fits:
    """m fits for each of B elements: ``weight [B, m C, d + 1]``, biases last, moved by Adam."""

    def __init__(self, head: Head, n_elements: int, n_fits: int, lr: float):
        self.n_classes = len(head.bias)
        start = with_bias(head.weight, head.bias).repeat(n_elements, n_fits, 1)
        self.adam = Adam([start], lr)

    @property
    def weight(self) -> Tensor:
        return self.adam.weights[0]

    def step(self, gradient: Tensor) -> None:
        """One step of all fits, given the gradient by ``weight``."""
        self.adam.step(gradient)

    def keep(self, n_fits: int) -> None:
        """Continue with only each element's first ``n_fits``."""
        self.adam.keep(n_fits * self.n_classes)


def nested_fits(
    features: Tensor,
    teacher_logits: Tensor,
    head: Head,
    preset: FTPreset,
    ks: Sequence[int],
    seed: int = 0,
    fits: type[Fits] = Fits,
) -> list[Head]:
    """For each k, the head that ``ft_classifier`` fits to the first k rows of every group, all in
    one loop.

    All fits share the optimizer's steps, and in a full batch each row is read once for all fits
    that use it. Equal to the single fits up to rounding.

    Args:
        features: f_m's outputs as draws lie, a group per class (G = C) or all rows in one,
            ``[B, G, k_max, d]``.
        teacher_logits: Of f_t through (W_t, b_t), ``[B, G, k_max, C]``; no labels.
        head: (W_t, b_t), ``[C, d]`` and ``[C]``.
        preset: Rate, epochs and batch size.
        ks: Numbers of rows of a group.
        seed: Orders minibatches.
        fits: What is trained: the head, or its factors.

    Returns:
        A head per k, W' ``[B, C, d]`` and b' ``[B, C]``.

    Raises:
        DataError: There are no rows for a k.
    """
    if not ks or min(ks) < 1 or max(ks) > features.shape[2]:
        raise DataError(
            f"ks are {list(ks)}; give numbers of rows between 1 "
            f"and the {features.shape[2]} that there are."
        )
    # Longest first: whatever a fit needs, earlier fits need, too.
    longest_first = sorted(set(ks), reverse=True)
    running = fits(head, len(features), len(longest_first), preset.lr)
    steps = _full_batches if preset.batch_size is None else _minibatches
    teacher = teacher_logits.detach().softmax(-1)
    fitted: dict[int, Head] = {}
    for n_running in steps(features.detach(), teacher, running, preset, longest_first, seed):
        weights = running.weight.split(len(head.bias), 1)
        for k, finished in zip(
            longest_first[n_running : len(weights)], weights[n_running:], strict=True
        ):
            fitted[k] = Head(finished[..., :-1].clone(), finished[..., -1].clone())
        running.keep(n_running)
    return [fitted[k] for k in ks]


def with_ones(features: Tensor) -> Tensor:
    """``features [..., d]`` and a column of ones ``[..., d + 1]``, by which a bias is one more
    column of its weight."""
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


def with_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """``weight [..., C, d]`` and ``bias [..., C]`` in one, ``[..., C, d + 1]``."""
    return torch.cat([weight, bias.unsqueeze(-1)], -1)


Block = tuple[Tensor, Tensor, Tensor]
"""Of nested draws some rows, for the m fits that see any of them: features ``[B, rows, d + 1]``,
the part ``[m, 1, rows]`` that a row has in each fit's mean, and that part of the teacher's
probabilities, ``[B, m, C, rows]``."""


def nested_blocks(features: Tensor, teacher: Tensor, longest_first: Sequence[int]) -> list[Block]:
    """``features [B, G, k_max, d]`` and probabilities ``teacher [B, G, k_max, C]`` in blocks; every
    row lies in one of them.

    A k below a tenth of the largest has no block of its own: its fit skips the rows that it does
    not use, which costs less than another product.
    """
    lower, blocks = 0, []
    for upper in (k for k in reversed(longest_first) if 10 * k >= longest_first[0]):
        counts = torch.tensor([k for k in longest_first if k > lower])[:, None]
        part = (torch.arange(lower, upper) < counts) / (features.shape[1] * counts.double())
        part = part.repeat(1, features.shape[1]).unsqueeze(1).to(features)
        target = (teacher[:, :, lower:upper].flatten(1, 2).mT.unsqueeze(1) * part).contiguous()
        blocks.append((with_ones(features[:, :, lower:upper].flatten(1, 2)), part, target))
        lower = upper
    return blocks


def kl_gradient(blocks: Sequence[Block], weight: Tensor) -> Tensor:
    """Of every fit's mean KL(teacher || student), by its weight and bias; ``[B, K C, d + 1]``, a
    fit's classes under the other's."""
    gradient = None
    for inputs, part, target in blocks:
        fits = target.shape[1] * target.shape[2]  # rows of weight
        # Classes before rows: on a CPU a product with few columns is slow.
        student = torch.bmm(weight[:, :fits], inputs.mT)
        # The gradient in the logits is (softmax(student) - softmax(teacher)) / n.
        side = student.view_as(target).softmax(2).mul_(part).sub_(target)
        by_weight = torch.bmm(side.view_as(student), inputs)
        if gradient is None:
            gradient = by_weight  # all fits use the first block
        else:
            gradient[:, :fits] += by_weight
    return gradient


def _full_batches(
    features: Tensor, teacher: Tensor, fits: Fits, preset: FTPreset, ks: Sequence[int], seed: int
) -> Iterator[int]:
    """Take the steps of ``nested_fits`` on full batches; yields once, at the end."""
    blocks = nested_blocks(features, teacher, ks)
    for _ in range(preset.epochs):
        fits.step(kl_gradient(blocks, fits.weight))
    yield 0


def _minibatches(
    features: Tensor, teacher: Tensor, fits: Fits, preset: FTPreset, ks: Sequence[int], seed: int
) -> Iterator[int]:
    """Take the steps of ``nested_fits`` on minibatches; whenever some fits are finished, yield how
    many go on."""
    n_groups, k_max = features.shape[1:3]
    features, teacher = with_ones(features).flatten(1, 2), teacher.flatten(1, 2)
    plans = [_plan(n_groups, k, k_max, preset, seed) for k in ks]
    start = 0
    for m in range(len(ks), 0, -1):
        until = len(plans[m - 1][0])
        rows, shares = (
            torch.stack([plan[part][start:until] for plan in plans[:m]], 1).to(features.device)
            for part in (0, 1)
        )
        shares = shares.to(features).repeat(1, len(features), 1).unsqueeze(-1)
        for batch, share in zip(rows, shares, strict=True):
            # [B m, size, ...]
            inputs, target = (x[:, batch].flatten(0, 1) for x in (features, teacher))
            weight = fits.weight.view(len(inputs), -1, inputs.shape[2])  # [B m, C, d + 1]
            side = torch.bmm(inputs, weight.mT).softmax(-1).sub_(target).mul_(share)
            fits.step(torch.bmm(side.mT, inputs).view_as(fits.weight))
        start = until
        yield m - 1


def _plan(n_groups: int, k: int, k_max: int, preset: FTPreset, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of every minibatch and their parts in its mean, both ``[steps, size]``; a short one is
    filled up with rows that have none."""
    n, generator = n_groups * k, torch.Generator().manual_seed(seed)
    size = min(preset.batch_size, n)
    orders = [
        torch.nn.functional.pad(torch.randperm(n, generator=generator), (0, -n % size), value=-1)
        for _ in range(preset.epochs)
    ]
    rows = torch.cat(orders).view(-1, size)
    real = rows >= 0
    rows, real = (
        torch.nn.functional.pad(x, (0, preset.batch_size - size)) for x in (rows.clamp(min=0), real)
    )
    return rows // k * k_max + rows % k, real / real.sum(1, keepdim=True)
