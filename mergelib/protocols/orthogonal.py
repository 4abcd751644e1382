"""The orthogonal classifier: re-align the head by an orthogonal map only, W' = W_t A with A^T A =
I.

The paper's summary has the classifier calibrated by an orthogonal transformation from few
unlabelled inputs; the paper itself trains W' freely (Eq. 8, ``ft_classifier``). b_t stays, and so
do all angles and lengths between class vectors: W' W'^T = W_t W_t^T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.types import Head
from .adam import Adam
from .alignment import fit_closed_form
from .ft_classifier import Fits, FTPreset, nested_fits, with_bias


def _orthonormal(M: Tensor) -> Tensor:
    """(M M^T)^-1/2 M, the polar factor of ``M [B, r, d]``: one r x r problem, much less than the
    SVD of M when r << d.

    It squares M's condition number, which one step away from orthonormal rows is near 1.
    """
    values, vectors = torch.linalg.eigh(M @ M.mT)
    return (vectors * values.rsqrt().unsqueeze(-2)) @ (vectors.mT @ M)


class OrthogonalFits(Fits):
    """W_t A with A orthogonal: W_t = L Q with orthonormal rows in Q ``[r, d]``, r = min(C, d).

    Q A runs over all matrices with orthonormal rows (r = d: over those with the sign of det Q), so
    that Q A itself is trained: Adam on the gradient's tangent part, back to orthonormal rows by the
    polar factor. The d - r directions that no class uses have no parameters, and a W_t of lower
    rank, or with C > d, needs no special case.
    """

    def __init__(self, head: Head, n_elements: int, n_fits: int, lr: float):
        columns, upper = torch.linalg.qr(head.weight.mT)
        self.factor, self.bias = upper.mT, head.bias
        self.adam = Adam([columns.mT.repeat(n_elements, n_fits, 1, 1)], lr)  # [B, m, r, d]

    @property
    def weight(self) -> Tensor:
        frame = self.adam.weights[0]
        bias = self.bias.expand(*frame.shape[:2], -1)
        return with_bias(self.factor @ frame, bias).flatten(1, 2)

    def step(self, gradient: Tensor) -> None:
        frame = self.adam.weights[0]
        by_frame = self.factor.mT @ gradient[..., :-1].unflatten(1, (-1, len(self.bias)))
        # Keep the part that leaves the rows orthonormal to first order.
        pull = by_frame @ frame.mT
        self.adam.step(by_frame - (pull + pull.mT) / 2 @ frame)
        frame.copy_(_orthonormal(frame))

    def keep(self, n_fits: int) -> None:
        self.adam.keep(n_fits)


def nested_orthogonal(
    features: Tensor,
    teacher_features: Tensor,
    head: Head,
    preset: FTPreset,
    ks: Sequence[int],
    seed: int = 0,
) -> list[Head]:
    """``nested_fits`` of the orthogonal classifier, W' = W_t A.

    Args:
        features: f_m's outputs, ``[B, G, k_max, d]``.
        teacher_features: f_t's on the same inputs, ``[B, G, k_max, d]``; no labels.
        head: (W_t, b_t), ``[C, d]`` and ``[C]``.
        preset: Rate, steps and minibatches of FT-Classifier.
        ks: Numbers of rows of a group.
        seed: Orders minibatches.

    Returns:
        A head per k, W' ``[B, C, d]`` and b' = b_t ``[B, C]``.
    """
    columns, upper = torch.linalg.qr(head.weight.mT)
    teacher_logits = teacher_features.detach() @ (upper.mT @ columns.mT).mT + head.bias
    return nested_fits(features, teacher_logits, head, preset, ks, seed, OrthogonalFits)


def orthogonal_classifier(
    features: Tensor, teacher_features: Tensor, head: Head, preset: FTPreset, *, seed: int = 0
) -> Head:
    """Fit W' = W_t A with A orthogonal: minimise the mean KL(teacher || student) of Eq. 8 from
    A = I, see ``OrthogonalFits``.

    Args:
        features: f_m's outputs, ``[B, n, d]``.
        teacher_features: f_t's on the same inputs, ``[B, n, d]``; no labels.
        head: (W_t, b_t), ``[C, d]`` and ``[C]``.
        preset: Rate, steps and minibatches of FT-Classifier.
        seed: Orders minibatches.

    Returns:
        W' ``[B, C, d]`` and b' = b_t ``[B, C]``.
    """
    groups = features.unsqueeze(1), teacher_features.unsqueeze(1)
    return nested_orthogonal(*groups, head, preset, [features.shape[1]], seed)[0]


def procrustes_head(features: Tensor, teacher_features: Tensor, head: Head) -> Head:
    """The orthogonal A that takes f_m's outputs closest to f_t's, folded into the head; features
    and result as of ``orthogonal_classifier``.

    With fewer than 2 d inputs A is kept near the identity, see ``fit_closed_form``.
    """
    mapping = fit_closed_form(features.detach(), teacher_features.detach(), "orthogonal")
    return mapping.fold(head)
