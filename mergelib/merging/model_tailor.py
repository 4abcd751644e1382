"""Model Tailor: Zhu et al., 2024 (arXiv 2402.12048)."""

import torch
from torch import Tensor

from ..core.types import State
from .context import Context
from .options import AtLeastOne, Share, ShareAboveZero
from .registry import method
from .regmean import gram_matrices
from .states import Experts, Tensors, float_names, total

DAMPING = 0.01


def _z_scores(values: Tensor) -> Tensor:
    """Per row, population deviation; 0 for a constant row."""
    centred = values - values.mean(1, keepdim=True)
    return centred / centred.pow(2).mean(1, keepdim=True).sqrt().clamp(
        min=torch.finfo(values.dtype).tiny
    )


def tailor(
    weight: Tensor, base: Tensor, gram: Tensor, *, keep: float, omega: float, block: int
) -> Tensor:
    """W ``[out, in]`` (float64) with all but ``keep`` of each block of columns reset to W_b, and
    the rest compensating.

    ``gram`` is X^T X / n ``[in, in]``. Scores are omega * z(\\|W - W_b\\|) + (1 - omega) * z(W^2 /
    diag(U)^2), U the upper Cholesky factor of the damped Hessian's inverse; the error of a reset
    column is compensated in later columns, as in SparseGPT. (The released code adds where SparseGPT
    subtracts; that is not copied.)
    """
    W, W_b, H = weight.double().clone(), base.double(), 2 * gram.double()
    dead = H.diagonal() == 0
    H = H + torch.diag(dead.double())
    H = H + DAMPING * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype, device=H.device)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    for start in range(0, W.shape[1], block):
        columns = slice(start, min(start + block, W.shape[1]))
        score = omega * _z_scores((W - W_b)[:, columns].abs()) + (1 - omega) * _z_scores(
            W[:, columns] ** 2 / U.diagonal()[columns] ** 2
        )
        reverted = torch.ones(score.numel(), dtype=torch.bool, device=W.device)
        n_keep = score.numel() - int(score.numel() * (1 - keep) + 1e-9)
        reverted[score.flatten().sort(dim=0, descending=True, stable=True).indices[:n_keep]] = False
        reverted = reverted.view(score.shape)
        errors = torch.zeros_like(W[:, columns])
        for j in range(columns.start, columns.stop):
            gone = reverted[:, j - start]
            errors[:, j - start] = torch.where(gone, W[:, j] - W_b[:, j], 0.0) / U[j, j]
            W[:, j] = torch.where(gone, W_b[:, j], W[:, j])
            W[:, j + 1 : columns.stop] -= errors[:, j - start].outer(U[j, j + 1 : columns.stop])
        W[:, columns.stop :] -= errors @ U[columns, columns.stop :]  # later blocks at once
    return W


@method(
    "model_tailor",
    label="Model Tailor",
    short="Tailor",
    needs=("inputs",),
    lam=0.3,
    paper="2402.12048",
)
def model_tailor(
    base: State,
    experts: Experts,
    context: Context,
    *,
    keep: ShareAboveZero = 0.1,
    omega: Share = 0.5,
    n_examples: AtLeastOne = 128,
    block: AtLeastOne = 128,
) -> Tensors:
    """The sum of tailored task vectors.

    Weights of ``nn.Linear`` are tailored, other tensors keep their whole tau_t. Made to adapt one
    model to one task without forgetting; adding up several tailored task vectors is our
    interpretation.

    Args:
        base: theta_b.
        experts: The T theta_t.
        context: Unlabelled inputs of the tasks.
        keep: Fraction of weights that are not reset to the base, in each block of columns.
        omega: Weight of the change's size in a weight's score; 1 - omega is that of its effect on
            the layer's outputs.
        n_examples: Inputs per task.
        block: Columns per block.
    """
    vectors = []
    for t, expert in enumerate(experts):
        tailored = {n: expert[n].double() for n in float_names(base)}
        for n, gram in gram_matrices(context, t, expert, n_examples).items():
            if n in tailored:
                tailored[n] = tailor(expert[n], base[n], gram, keep=keep, omega=omega, block=block)
        vectors.append({n: (w - base[n].double()).float() for n, w in tailored.items()})
    return total(vectors)
