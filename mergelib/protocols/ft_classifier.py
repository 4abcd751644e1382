"""FT-Classifier Eval: re-align the head to the merged features with a few unlabelled inputs (Eq. 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError, UnknownNameError
from ..types import Head
from .adam import Adam


@dataclass(frozen=True)
class FTPreset:
    """How W' is fitted with Adam. ``batch_size=None`` is full batch, then one epoch is one step."""

    lr: float
    epochs: int
    batch_size: int | None = None

    def steps(self, n: int) -> int:
        """Optimiser steps on n samples."""
        return self.epochs * -(-n // (self.batch_size or n))


PRESETS = {
    # From the plateau that `python -m benchmarks.choose_ft_preset` prints: validation data of one task, then the same for all.
    "default": FTPreset(lr=3e-3, epochs=200),
    # For heads of CLIP, whose rows are unit vectors times a logit scale of 100: "default" in the units of these vectors.
    "clip": FTPreset(lr=0.3, epochs=200),
    # The authors' code: argparse defaults, and a loader built with batches of one.
    "released": FTPreset(lr=5e-4, epochs=5, batch_size=1),
}


def get_preset(name: str) -> FTPreset:
    """The named preset. Raises ``UnknownNameError`` naming the nearest."""
    if name not in PRESETS:
        raise UnknownNameError("FT-Classifier preset", name, PRESETS)
    return PRESETS[name]


def kl_to_teacher(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) ``[...]``, summed over the class axis of ``[..., C]`` logits. The g of Eq. 8."""
    teacher = teacher_logits.log_softmax(-1)
    return (teacher.exp() * (teacher - student_logits.log_softmax(-1))).sum(-1)


def ft_classifier(
    features: Tensor, teacher_logits: Tensor, head: Head, preset: FTPreset, seed: int = 0
) -> Head:
    """Fit one head per leading index: ``features [B, n, d]``, ``teacher_logits [B, n, C]`` -> ``W' [B, C, d], b' [B, C]``.

    ``features`` are f_m's outputs, ``teacher_logits`` those of f_t through (W_t, b_t); no labels. Every fit starts at
    ``head`` (W_t ``[C, d]``, b_t ``[C]``) and minimises the mean KL(teacher || student), Eq. 8. The B fits share nothing:
    Adam works per entry and the loss is a sum of their means, so a batch equals B single fits. ``seed`` orders minibatches.
    Features that change from epoch to epoch (dropout) come as ``[epochs, B, n, d]``.
    """
    n_fits, n, _ = features.shape[-3:]
    weight = head.weight.expand(n_fits, *head.weight.shape).clone().requires_grad_()
    bias = head.bias.expand(n_fits, *head.bias.shape).clone().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=preset.lr)
    size = preset.batch_size or n
    generator = torch.Generator().manual_seed(seed)
    teacher_logits = teacher_logits.detach()
    for epoch in range(preset.epochs):
        seen = features[epoch] if features.dim() == 4 else features
        order = torch.randperm(n, generator=generator).to(features.device) if size < n else None
        for start in range(0, n, size):
            rows = slice(None) if order is None else order[start : start + size]
            student = torch.baddbmm(bias.unsqueeze(1), seen[:, rows], weight.mT)
            loss = kl_to_teacher(student, teacher_logits[:, rows]).mean(-1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Head(weight.detach(), bias.detach())


def nested_fits(
    features: Tensor,
    teacher_logits: Tensor,
    head: Head,
    preset: FTPreset,
    ks: Sequence[int],
    seed: int = 0,
) -> list[Head]:
    """For each k of ``ks`` what ``ft_classifier`` fits to the first k rows of every group, ``W' [B, C, d], b' [B, C]``: all in one loop.

    ``features [B, G, k_max, d]`` and ``teacher_logits [B, G, k_max, C]`` lie as draws do, a group per class (G = C) or all rows in one.
    The optimizer's steps are shared by all fits, and in a full batch a row is read once for all that see it. Equal to the single
    fits but for rounding. Raises ``DataError`` for a k that there are no rows for.
    """
    if not ks or min(ks) < 1 or max(ks) > features.shape[2]:
        raise DataError(
            f"ks are {list(ks)}; give numbers of rows between 1 and the {features.shape[2]} that there are."
        )
    longest_first = sorted(set(ks), reverse=True)  # whatever a fit needs, those before it need, too
    # [B, K C, d + 1]: the K fits of an element one under the other, biases in the last column
    fits = Adam(
        [with_bias(head.weight, head.bias).repeat(len(features), len(longest_first), 1)], preset.lr
    )
    steps = _full_batches if preset.batch_size is None else _minibatches
    fitted: dict[int, Head] = {}
    for running in steps(
        features.detach(), teacher_logits.detach().softmax(-1), fits, preset, longest_first, seed
    ):
        for i, done in enumerate(
            fits.weights[0].split(len(head.bias), 1)[running:], start=running
        ):  # these have had their steps
            fitted[longest_first[i]] = Head(done[..., :-1].clone(), done[..., -1].clone())
        fits.keep(running * len(head.bias))
    return [fitted[k] for k in ks]


def with_ones(features: Tensor) -> Tensor:
    """``features [..., d]`` and a column of ones ``[..., d + 1]``, by which a bias is one more column of its weight."""
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


def with_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """``weight [..., C, d]`` and ``bias [..., C]`` in one, ``[..., C, d + 1]``."""
    return torch.cat([weight, bias.unsqueeze(-1)], -1)


Block = tuple[Tensor, Tensor, Tensor]
"""Of nested draws some rows, for the m fits that see any of them: features ``[B, rows, d + 1]``, the part ``[m, 1, rows]`` that a row has in
each fit's mean, and that part of the teacher's probabilities, ``[B, m, C, rows]``."""


def nested_blocks(features: Tensor, teacher: Tensor, longest_first: Sequence[int]) -> list[Block]:
    """``features [B, G, k_max, d]`` and probabilities ``teacher [B, G, k_max, C]`` in blocks; every row lies in one of them.

    A k below a tenth of the largest has no block of its own: its fit passes over the rows that it does not see, which costs less than one
    more product.
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
    """Of every fit's mean KL(teacher || student), by its weight and bias; ``[B, K C, d + 1]``, a fit's classes under the other's."""
    gradient = None
    for seen, part, target in blocks:
        fits = target.shape[1] * target.shape[2]  # rows of weight
        # Classes before rows: on a CPU a product with few columns is slow.
        student = torch.bmm(weight[:, :fits], seen.mT)
        # By the logits it is (softmax(student) - softmax(teacher)) / n.
        side = student.view_as(target).softmax(2).mul_(part).sub_(target)
        by_weight = torch.bmm(side.view_as(student), seen)
        if gradient is None:
            gradient = by_weight  # the first block is seen by all fits
        else:
            gradient[:, :fits] += by_weight
    return gradient


def _full_batches(
    features: Tensor, teacher: Tensor, fits: Adam, preset: FTPreset, ks: Sequence[int], seed: int
) -> Iterator[int]:
    """Takes the steps of ``nested_fits`` on full batches; yields how many fits go on, once: none."""
    blocks = nested_blocks(features, teacher, ks)
    for _ in range(preset.epochs):
        fits.step(kl_gradient(blocks, fits.weights[0]))
    yield 0


def _minibatches(
    features: Tensor, teacher: Tensor, fits: Adam, preset: FTPreset, ks: Sequence[int], seed: int
) -> Iterator[int]:
    """Takes the steps of ``nested_fits`` on minibatches; yields how many fits go on whenever some have had all of theirs."""
    n_groups, k_max = features.shape[1:3]
    features, teacher = with_ones(features).flatten(1, 2), teacher.flatten(1, 2)
    plans = [_plan(n_groups, k, k_max, preset, seed) for k in ks]
    done = 0
    for m in range(len(ks), 0, -1):
        until = len(plans[m - 1][0])
        rows, shares = (
            torch.stack([plan[part][done:until] for plan in plans[:m]], 1).to(features.device)
            for part in (0, 1)
        )
        weight = fits.weights[0].view(m * len(features), -1, features.shape[2])  # [B m, C, d + 1]
        for here, share in zip(
            rows, shares.to(features).repeat(1, len(features), 1).unsqueeze(-1), strict=True
        ):
            seen, target = (
                features[:, here].flatten(0, 1),
                teacher[:, here].flatten(0, 1),
            )  # [B m, size, ...]
            side = torch.bmm(seen, weight.mT).softmax(-1).sub_(target).mul_(share)
            fits.step(torch.bmm(side.mT, seen).view_as(fits.weights[0]))
        done = until
        yield m - 1


def _plan(n_groups: int, k: int, k_max: int, preset: FTPreset, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of every minibatch and their parts in its mean, both ``[steps, size]``; a short one is filled up with rows that have none."""
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
