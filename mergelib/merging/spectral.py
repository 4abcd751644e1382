"""Methods that work on singular values of task matrices: TSV-Merge, Iso-C, Iso-CTS.

A task matrix is tau_t of a 2-d tensor that is a linear map. Embedding tables are 2-d but not maps:
tensors whose names contain a text from ``exclude`` are averaged, and so is every tensor that is not
a matrix.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.types import State
from .options import Share
from .registry import method
from .states import Experts, Tensors, float_names, stacked_task_vectors

TABLES = ("embed", "shared.weight", "relative_attention_bias", "wte", "wpe")
"""What is in the names of embedding tables; T5's vocabulary is ``shared``, GPT-2's ``wte``."""


def polar(M: Tensor) -> Tensor:
    """P Q^T from the thin SVD M = P D Q^T of ``M [m, n]``: the nearest matrix with orthonormal rows
    or columns."""
    P, _, Qh = torch.linalg.svd(M, full_matrices=False)
    return P @ Qh


def by_matrix(
    base: State,
    experts: Experts,
    exclude: Sequence[str],
    merge: Callable[[Tensor], Tensor],
    smallest: int = 1,
) -> Tensors:
    """``merge`` on the task matrices ``[T, m, n]``; the plain mean of tau_t for everything else,
    and if min(m, n) < smallest."""
    direction = {}
    for name in float_names(base):
        tau = stacked_task_vectors(base, experts, name)
        matrix = (
            tau.dim() == 3
            and min(tau.shape[1:]) >= smallest
            and not any(text in name for text in exclude)
        )
        direction[name] = merge(tau) if matrix else tau.mean(0)
    return direction


# ---- TSV-Merge: Gargiulo et al., 2025 (arXiv 2412.00081) ----


def tsv(tau: Tensor) -> Tensor:
    """``[T, m, n] -> [m, n]``: the floor(r / T) leading singular triplets of each task side by
    side, r = min(m, n), their singular vectors made orthonormal across tasks by the polar factor.
    """
    n_tasks, m, n = tau.shape
    rank = min(m, n) // n_tasks
    U, S, Vh = torch.linalg.svd(tau, full_matrices=False)
    left = U[:, :, :rank].permute(1, 0, 2).reshape(m, -1)
    right = Vh[:, :rank].reshape(-1, n)
    return (polar(left) * S[:, :rank].reshape(-1)) @ polar(right)


@method("tsv_merge", label="TSV-Merge", short="TSV", lam=1.0, paper="2412.00081")
def tsv_merge(base: State, experts: Experts, *, exclude: Sequence[str] = TABLES) -> Tensors:
    """``tsv`` of each task matrix, the mean of what is none.

    (The original pads to rank r with zero columns, whose singular value is 0: the same product. It
    excludes only the text projection; embedding tables are averaged here.)
    """
    return by_matrix(base, experts, exclude, tsv, smallest=len(experts))


# ---- Isotropic merging: Marczak et al., 2025 (arXiv 2502.04959) ----


def iso_common(tau: Tensor) -> Tensor:
    """``[T, m, n] -> [m, n]``: sum_t tau_t with every singular value replaced by their mean."""
    U, S, Vh = torch.linalg.svd(tau.sum(0), full_matrices=False)
    return S.mean() * (U @ Vh)


@method("iso_c", label="Iso-C", short="Iso-C", lam=1.0, paper="2502.04959")
def iso_c(base: State, experts: Experts, *, exclude: Sequence[str] = TABLES) -> Tensors:
    """``iso_common`` of each task matrix, the mean of what is none.

    Embedding tables are averaged: rows that no task uses would be blown up to the mean singular
    value.
    """
    return by_matrix(base, experts, exclude, iso_common)


def iso_common_and_specific(tau: Tensor, common: float) -> Tensor:
    """``[T, m, n] -> [m, n]``: about ``common`` * r leading directions of the sum and, outside
    their left subspace, equally many leading ones of each task; vectors orthonormal by the polar
    factor, singular values their mean."""
    n_tasks, m, n = tau.shape
    r = min(m, n)
    per_task = round((r - int(common * r)) / n_tasks)
    n_common = r - n_tasks * per_task
    if n_common < 0:
        per_task, n_common = r // n_tasks, r % n_tasks
    U, S, Vh = torch.linalg.svd(tau.sum(0), full_matrices=False)
    U, S, Vh = U[:, :n_common], S[:n_common], Vh[:n_common]
    rest = tau - U @ (U.T @ tau)
    Ut, St, Vht = torch.linalg.svd(rest, full_matrices=False)
    Ut, St, Vht = Ut[:, :, :per_task], St[:, :per_task], Vht[:, :per_task]
    left = torch.cat([Ut.permute(1, 0, 2).reshape(m, -1), U], 1)
    right = torch.cat([Vht.reshape(-1, n), Vh])
    return torch.cat([St.reshape(-1), S]).mean() * (polar(left) @ polar(right))


@method("iso_cts", label="Iso-CTS", short="Iso-CTS", lam=1.0, paper="2502.04959")
def iso_cts(
    base: State,
    experts: Experts,
    *,
    common: Share = 0.8,
    exclude: Sequence[str] = TABLES,
) -> Tensors:
    """``iso_common_and_specific`` of each task matrix, the mean of what is none.

    ``common`` is the fraction of directions shared by all tasks.
    """
    return by_matrix(base, experts, exclude, lambda tau: iso_common_and_specific(tau, common))
