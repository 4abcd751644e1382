"""The orthogonal classifier: re-align the head by an orthogonal map and by nothing else, W' = W_t A with A^T A = I.

The paper's summary has the classifier calibrated by an orthogonal transformation from few unlabelled inputs; the paper
itself trains W' freely (Eq. 8, ``ft_classifier``). b_t stays, and so do all angles and lengths between class vectors:
W' W'^T = W_t W_t^T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DataError, UnknownNameError
from ..types import Head
from .adam import Adam
from .alignment import fit_closed_form
from .ft_classifier import FTPreset, kl_gradient, kl_to_teacher, nested_blocks, with_bias


def _orthonormal(M: Tensor) -> Tensor:
    """(M M^T)^-1/2 M, the polar factor of ``M [B, r, d]``: one r x r problem, much less than the SVD of M when r << d.

    It squares M's condition number, which one step away from orthonormal rows is near 1.
    """
    values, vectors = torch.linalg.eigh(M @ M.mT)
    return (vectors * values.rsqrt().unsqueeze(-2)) @ (vectors.mT @ M)


def _kl(
    features: Tensor, teacher_features: Tensor, head: Head, preset: FTPreset, seed: int
) -> Head:
    n_fits, n, _ = features.shape
    weight = head.weight.expand(n_fits, *head.weight.shape[-2:])
    columns, upper = torch.linalg.qr(weight.mT)
    factor = upper.mT  # W_t = factor @ frame, [B, C, r] @ [B, r, d] with r = min(C, d)
    frame = columns.mT.clone().requires_grad_()
    bias = head.bias.expand(n_fits, weight.shape[-2]).unsqueeze(-2)
    with torch.no_grad():
        teacher_logits = teacher_features @ (factor @ frame).mT + bias
    optimizer = torch.optim.Adam([frame], lr=preset.lr)
    size = preset.batch_size or n
    generator = torch.Generator().manual_seed(seed)
    for _ in range(preset.epochs):
        order = torch.randperm(n, generator=generator).to(features.device) if size < n else None
        for start in range(0, n, size):
            rows = slice(None) if order is None else order[start : start + size]
            student = features[:, rows] @ (factor @ frame).mT + bias
            loss = kl_to_teacher(student, teacher_logits[:, rows]).mean(-1).sum()
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                pull = (
                    frame.grad @ frame.mT
                )  # the part that leaves the rows orthonormal to first order is kept
                frame.grad -= (pull + pull.mT) / 2 @ frame
                optimizer.step()
                frame.copy_(_orthonormal(frame))
    return Head(factor @ frame.detach(), bias.squeeze(-2).clone())


def _procrustes(
    features: Tensor, teacher_features: Tensor, head: Head, preset: FTPreset, seed: int
) -> Head:
    return fit_closed_form(features, teacher_features, "orthogonal").fold(head)


FITS = {"kl": _kl, "procrustes": _procrustes}


def orthogonal_classifier(
    features: Tensor,
    teacher_features: Tensor,
    head: Head,
    preset: FTPreset,
    *,
    fit: str = "kl",
    seed: int = 0,
) -> Head:
    """Fit W' = W_t A with A orthogonal, one per leading index: ``W' [B, C, d]``, ``b' = b_t [B, C]``.

    ``features`` are f_m's outputs, ``teacher_features`` f_t's on the same inputs, both ``[B, n, d]``; no labels.
    ``head`` is (W_t, b_t), one for all fits or one per fit.

    "kl" minimises the mean KL(teacher || student) of Eq. 8 from A = I, with the rate, steps and minibatches of
    FT-Classifier's ``preset``. Write W_t = L Q with orthonormal rows in Q ``[r, d]``, r = min(C, d). Q A runs over all
    matrices with orthonormal rows (r = d: over those with the sign of det Q), so that Q A itself is trained: Adam on
    the gradient's tangent part, back to orthonormal rows by the polar factor. The d - r directions that no class looks
    at have no parameters, and a W_t of lower rank, or with C > d, needs no exception.

    "procrustes" is the orthogonal A that takes f_m's outputs nearest to f_t's, folded into the head; it ignores
    ``preset``. With fewer than 2 d inputs it is held near the identity, see ``fit_closed_form``.

    Raises ``UnknownNameError`` for another fit, ``DataError`` for features of different shapes.
    """
    if fit not in FITS:
        raise UnknownNameError("fit of the orthogonal classifier", fit, FITS)
    if features.dim() != 3 or features.shape != teacher_features.shape:
        raise DataError(
            "f_m's and f_t's features are the same inputs' [B, n, d]; got "
            f"{list(features.shape)} and {list(teacher_features.shape)}."
        )
    return FITS[fit](features.detach(), teacher_features.detach(), head, preset, seed)


def nested_orthogonal(
    features: Tensor, teacher_features: Tensor, head: Head, preset: FTPreset, ks: Sequence[int]
) -> list[Head]:
    """For each k of ``ks`` what ``orthogonal_classifier`` fits by "kl" to the first k rows of every group, in full batches: all in one
    loop, see ``ft_classifier.nested_fits``. Features are ``[B, G, k_max, d]``; equal to the single fits but for rounding."""
    longest_first = sorted(set(ks), reverse=True)
    columns, upper = torch.linalg.qr(head.weight.mT)
    factor, start = upper.mT, columns.mT
    frame = start.repeat(len(features), len(longest_first), 1, 1)  # [B, K, r, d]
    bias = head.bias.repeat(len(features), len(longest_first), 1)
    teacher = (teacher_features.detach() @ (factor @ start).mT + head.bias).softmax(-1)
    blocks = nested_blocks(features.detach(), teacher, longest_first)
    adam = Adam([frame], preset.lr)
    for _ in range(preset.epochs):
        by_weight = kl_gradient(blocks, with_bias(factor @ frame, bias).flatten(1, 2))[..., :-1]
        by_frame = factor.mT @ by_weight.unflatten(1, bias.shape[1:])
        pull = by_frame @ frame.mT
        adam.step(by_frame - (pull + pull.mT) / 2 @ frame)
        frame.copy_(_orthonormal(frame))
    fitted = {k: Head(factor @ frame[:, i], bias[:, i]) for i, k in enumerate(longest_first)}
    return [fitted[k] for k in ks]
