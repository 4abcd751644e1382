"""Aligned f_m: the paper's ladder of transformations G(x) = A x + b from f_m's outputs to f_t's
(Section 4.1, Table 1).

Rows are inputs, so G acts on rows as ``X @ A.mT + b``. Every fit is batched over a leading axis B,
which may mix methods, tasks of equal size and seeds; fit i of a batch is the fit of element i
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError, check_name
from ..core.types import Head
from .current import current_eval


@dataclass(frozen=True)
class Rung:
    """One row of Table 1.

    ``constraint`` is "none", "orthogonal" (A^T A = I) or "diagonal"; ``shift`` says whether b is
    free. "invertible" carries no constraint that a fit can enforce: singular matrices have measure
    zero. Its fit is the linear one; report it with ``diagnose``'s condition number and sign of det.
    """

    name: str
    label: str
    shift: bool
    constraint: str


TABLE_1 = {
    r.name: r
    for r in (
        Rung("affine", "Affine", True, "none"),
        Rung("linear", "Linear", False, "none"),
        Rung("invertible", "Invertible linear", False, "none"),
        Rung("euclidean", "Euclidean", True, "orthogonal"),
        Rung("orthogonal", "Orthogonal", False, "orthogonal"),
        Rung("scaling", "Scaling", False, "diagonal"),
    )
}


def get_rung(name: str) -> Rung:
    """The row of Table 1. Raises ``UnknownNameError`` naming the nearest."""
    check_name("transformation", name, TABLE_1)
    return TABLE_1[name]


def free_parameters(rung: str, d: int) -> int:
    """Degrees of freedom of a rung on R^d: of A, plus d if b is free.

    Raises ``UnknownNameError``.
    """
    spec = get_rung(rung)
    of_matrix = {"none": d * d, "orthogonal": d * (d - 1) // 2, "diagonal": d}
    return of_matrix[spec.constraint] + d * spec.shift


@dataclass(frozen=True)
class AffineMap:
    """G(x) = A x + b for B fits: ``A [B, d, d]``, ``b [B, d]``."""

    A: Tensor
    b: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """``features [B, n, d]`` or ``[n, d]`` (shared by the B maps) ``-> [B, n, d]``."""
        return features @ self.A.mT + self.b.unsqueeze(-2)

    def fold(self, head: Head) -> Head:
        """The head ``[B, C, d]`` that gives on x what ``head`` (``[C, d]`` or ``[B, C, d]``) gives
        on G(x).

        W_t (A x + b) + b_t = (W_t A) x + (W_t b + b_t): aligned features are a new classifier, A
        and b its parameters.
        """
        return Head(
            head.weight @ self.A, (head.weight @ self.b.unsqueeze(-1)).squeeze(-1) + head.bias
        )


def aligned_predictions(features: Tensor, head: Head, mapping: AffineMap) -> Tensor:
    """Classes ``[B, N]`` of ``features [B, N, d]``: argmax_c (W_t G(f_m(x)) + b_t)_c.

    Eq. 4 after Eq. 6.
    """
    return current_eval(mapping.apply(features), head)


def _check(X: Tensor, Y: Tensor) -> None:
    if X.dim() != 3 or X.shape != Y.shape:
        raise DataError(
            "X and Y are the same inputs' outputs [B, n, d]; "
            f"got {list(X.shape)} and {list(Y.shape)}."
        )
    if not X.shape[1]:
        raise DataError("A map cannot be fitted to 0 inputs; give at least one.")


def _wide(x: Tensor) -> Tensor:
    """Double precision if the device has it: squared features lose half of their digits."""
    return x if x.device.type == "mps" else x.double()


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


def polar(M: Tensor) -> Tensor:
    """The matrix with orthonormal rows nearest to ``M [..., r, d]``, r <= d: U V^T of its SVD."""
    try:
        U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    except torch.linalg.LinAlgError:
        # LAPACK occasionally fails in float32 if singular values are almost equal, as they are near
        # a rotation.
        U, _, Vh = torch.linalg.svd(_wide(M), full_matrices=False)
    return (U @ Vh).to(M.dtype)


def _least_squares(X: Tensor, Y: Tensor, ridge: float) -> Tensor:
    gram, eye = X.mT @ X, _eye(X)
    # Solve for the change A - I, not for A: directions that X never visits keep the identity
    # instead of being set to zero.
    penalty = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(X.dtype).tiny)
    factor = torch.linalg.cholesky(gram + penalty[:, None, None] * eye)
    return eye + torch.cholesky_solve(X.mT @ (Y - X), factor).mT


def _procrustes(X: Tensor, Y: Tensor, ridge: float) -> Tensor:
    cross = Y.mT @ X
    # The root mean square of the singular values.
    scale = torch.linalg.matrix_norm(cross) / X.shape[-1] ** 0.5
    scale = scale.clamp_min(torch.finfo(X.dtype).tiny)
    return polar(cross + ridge * scale[:, None, None] * _eye(X))


def _diagonal(X: Tensor, Y: Tensor, ridge: float) -> Tensor:
    power = X.square().sum(-2)
    penalty = ridge * power.mean(-1, keepdim=True).clamp_min(torch.finfo(X.dtype).tiny)
    return torch.diag_embed(1 + (X * (Y - X)).sum(-2) / (power + penalty))


_SOLVERS = {"none": _least_squares, "orthogonal": _procrustes, "diagonal": _diagonal}


def fit_closed_form(X: Tensor, Y: Tensor, rung: str, *, ridge: float | None = None) -> AffineMap:
    """Least-squares map of a rung from ``X`` (f_m) to ``Y`` (f_t), both ``[B, n, d]``.

    The cross-check of ``fit_l1``.

    Linear and affine: A = I + (Y - X)^T X (X^T X + eps I)^-1. Orthogonal and Euclidean: Procrustes,
    A = U V^T of the SVD of Y^T X + eps I, reflections allowed. Scaling: one ratio per axis. A rung
    with a shift is fitted to centred data, and b = mean(Y) - A mean(X).

    ``ridge`` is eps relative to the spectrum: to the mean diagonal of X^T X, or to the root mean
    square singular value of Y^T X. It pulls towards the identity, not towards 0: the models share
    their base, and with n < d the data say nothing about d - n directions, which then stay as they
    are. ``None`` is 1e-2 for n < 2 d, where a free A fits its inputs' noise (held-out R^2 is worst
    at n = d), and 1e-6 elsewhere and for scaling: enough to break ties (a layer norm takes one
    direction from every feature), too little to be seen in float32. Raises ``UnknownNameError``,
    ``ConfigError`` for a ridge that is not positive, ``DataError`` for shapes.
    """
    spec = get_rung(rung)
    _check(X, Y)
    if ridge is None:
        ridge = 1e-2 if X.shape[1] < 2 * X.shape[2] and spec.constraint != "diagonal" else 1e-6
    if not ridge > 0:
        raise ConfigError(
            f"ridge = {ridge}: must be positive, or directions without data "
            "have no answer; try 1e-6."
        )
    x, y = _wide(X), _wide(Y)
    mean_x, mean_y = (z.mean(-2, keepdim=True) * spec.shift for z in (x, y))
    A = _SOLVERS[spec.constraint](x - mean_x, y - mean_y, ridge)
    return AffineMap(A.to(X.dtype), (mean_y - mean_x @ A.mT).squeeze(-2).to(X.dtype))


def _batches(n: int, size: int, steps: int, seed: int) -> Tensor:
    """Rows ``[steps, size]``: seeded permutations of n rows, one after the other, cut in steps."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-steps * size // n)
    rows = torch.cat([torch.randperm(n, generator=generator) for _ in range(rounds)])
    return rows[: steps * size].view(steps, size)


def _cayley(S: Tensor) -> Tensor:
    """Rotation (I - S/2)^-1 (I + S/2) ``[B, d, d]`` of a skew-symmetric S, as in torch's orthogonal
    parametrization."""
    return torch.linalg.solve(_eye(S) - S / 2, _eye(S) + S / 2)


def fit_l1(
    X: Tensor,
    Y: Tensor,
    rung: str,
    *,
    alpha: float | None = None,
    steps: int = 500,
    lr: float | None = None,
    batch_size: int | None = 256,
    seed: int | Sequence[int] = 0,
    exact: bool = False,
    progress: Callable[[range], Iterable[int]] = iter,
) -> AffineMap:
    """The paper's fit (Eq. 6 and 7): minimise mean |G(X) - Y| + alpha * mean |A^T A - I|.

    ``X`` (f_m) and ``Y`` (f_t) are ``[B, n, d]``. The penalty is there for the Euclidean and
    orthogonal rungs only. A starts random, N(0, 1/d) per entry (its diagonal for scaling, its
    orthogonal factor for the two); b starts at 0. Adam, rate falling linearly to 0, over
    minibatches of ``batch_size`` rows (all rows if None or if there are fewer). ``seed`` decides
    the start and the order of rows: one for all fits, or one per fit ``[B]``, so that several
    random starts of one pair (X, Y) are elements of the batch like any other. The paper says only
    "randomly initialise" and "adjusting alpha": optimiser, rate, steps, distribution and alpha are
    our choices. ``lr=None`` is 0.3 / sqrt(d), at most 0.03: a step moves every entry, so its
    spectral norm grows with lr sqrt(d), and beyond about 1/2 the penalty overshoots and A
    collapses.

    Features are divided by the root mean square of X per fit, so alpha has no unit and a common
    scaling of X and Y changes nothing. ``alpha=None`` is the penalty method: alpha grows
    geometrically from d/100 to 10 d over the steps. The gradient of the distance is of order 1/d
    per entry and that of the penalty alpha/d^2, so the distance dominates at first and the
    constraint at the end, where ``diagnose`` reads max|A^T A - I| < 2e-2. After 1/2, 3/4 and 9/10
    of the steps A is replaced by its orthogonal factor: the gradient 2 A sign(A^T A - I) vanishes
    on a direction that A has lost, so a singular value that went to 0 while alpha was small (as one
    must when the sign of det changes) would otherwise stay there. A given ``alpha`` is Eq. 7 as
    printed: constant, nothing replaced; read the residual.

    ``exact`` keeps A orthogonal throughout instead (Adam on the tangent, Cayley map back), from the
    same start. No path within the orthogonal matrices leads from det 1 to det -1, so the start
    takes the sign of det of the closed form.

    A batch and a single fit differ by rounding, which the signs in an L1 gradient magnify: in
    float32 up to some hundredths in A where the data leave it open, a thousandth in the distance;
    in float64 not at all, but that the exact fit magnifies rounding from step to step. ``progress``
    wraps the steps, to show how far they are. Raises ``UnknownNameError``, ``ConfigError`` for
    ``exact`` on a rung that is not orthogonal or a number of seeds that is not B, ``DataError`` for
    shapes.
    """
    spec = get_rung(rung)
    _check(X, Y)
    orthogonal, diagonal = spec.constraint == "orthogonal", spec.constraint == "diagonal"
    penalised = orthogonal and not exact
    restored = [0] if penalised else []
    if penalised and alpha is None:
        restored += [steps // 2, 3 * steps // 4, 9 * steps // 10]
    if exact and not orthogonal:
        names = ", ".join(r.name for r in TABLE_1.values() if r.constraint == "orthogonal")
        raise ConfigError(
            "exact=True keeps A orthogonal, which does not apply "
            f"to rung '{rung}'; use it with {names}."
        )
    n_fits, n, d = X.shape
    unit = X.square().mean((-2, -1), keepdim=True).sqrt().clamp_min(torch.finfo(X.dtype).tiny)
    x, y = X.detach() / unit, Y.detach() / unit
    seeds = [seed] * n_fits if isinstance(seed, int) else list(seed)
    if len(seeds) != n_fits:
        raise ConfigError(
            f"{len(seeds)} seeds for {n_fits} fits; give one seed for all or one per fit."
        )
    distinct = list(dict.fromkeys(seeds))
    seed_index = torch.tensor([distinct.index(s) for s in seeds], device=X.device)
    normal = [torch.randn(d, d, generator=torch.Generator().manual_seed(s)) for s in distinct]
    start = torch.stack(normal).to(X) / d**0.5
    if diagonal:
        start = start.diagonal(dim1=-2, dim2=-1)
    if orthogonal:
        start = polar(start)
    start = start[seed_index]
    if exact:
        flip = torch.linalg.det(start) * torch.linalg.det(fit_closed_form(X, Y, rung).A) < 0
        start[:, 0] = torch.where(flip[:, None], -start[:, 0], start[:, 0])
    A, b = start, torch.zeros(n_fits, 1, d, dtype=X.dtype, device=X.device)
    tangent = torch.zeros_like(A) if exact else A
    optimizer = torch.optim.Adam(
        [tangent, b] if spec.shift else [tangent], lr=lr or min(0.03, 0.3 / d**0.5)
    )
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    size, eye = min(batch_size or n, n), _eye(x)
    index = slice(None)
    if size < n:
        order = torch.stack([_batches(n, size, steps, s) for s in distinct]).to(X.device)
        fits = torch.arange(n_fits, device=X.device)[:, None]
    for step in progress(range(steps)):
        if size < n:
            index = fits, order[seed_index, step]
        if step in restored:
            A.copy_(polar(A))
        # Gradients by hand, each a product with signs: autograd would need several times the memory
        # traffic.
        inputs = x[index]
        mapped = inputs * A.unsqueeze(-2) if diagonal else inputs @ A.mT
        side = mapped.add_(b).sub_(y[index]).sign_().div_(size * d)  # of mean |G(X) - Y|
        pull = (side * inputs).sum(-2) if diagonal else side.mT @ inputs
        # Right after the replacement A^T A - I is rounding, whose signs would differ between a
        # batch and a single fit.
        if penalised and step not in restored:
            weight = 0.01 * d * 1000 ** (step / max(steps - 1, 1)) if alpha is None else alpha
            # Of mean |A^T A - I|, which is symmetric: hence the 2.
            defect = (A.mT @ A).sub_(eye).sign_()
            pull.baddbmm_(A, defect, alpha=2 * weight / d**2)
        if exact:
            turn = A.mT @ pull
            tangent.grad = turn - turn.mT
        else:
            A.grad = pull
        if spec.shift:
            b.grad = side.sum(-2, keepdim=True)
        optimizer.step()
        scheduler.step()
        if exact:
            A = A @ _cayley(tangent)
            tangent.zero_()
    if diagonal:
        A = torch.diag_embed(A)
    if exact:
        A = polar(A)  # of the rounding of `steps` products
    return AffineMap(A, (b * unit).squeeze(-2))


def diagnose(mapping: AffineMap, X: Tensor, Y: Tensor) -> dict[str, Tensor]:
    """Diagnostics to report with an accuracy, each ``[B]``, for a map from ``X`` to ``Y [B, n,
    d]``.

    ``orthogonality``: ||A^T A - I||_F / sqrt(d). ``orthogonality_max``: max |A^T A - I|.
    ``condition``: largest over smallest singular value. ``det_sign``. ``l1_before``, ``l1_after``:
    mean |X - Y| and mean |G(X) - Y|.
    """
    defect = mapping.A.mT @ mapping.A - _eye(mapping.A)
    singular = torch.linalg.svdvals(mapping.A)
    return {
        "orthogonality": torch.linalg.matrix_norm(defect) / defect.shape[-1] ** 0.5,
        "orthogonality_max": defect.abs().amax((-2, -1)),
        "condition": singular[..., 0] / singular[..., -1],
        "det_sign": torch.linalg.slogdet(mapping.A).sign,
        "l1_before": (X - Y).abs().mean((-2, -1)),
        "l1_after": (mapping.apply(X) - Y).abs().mean((-2, -1)),
    }


def variance_steps(
    X_fit: Tensor, Y_fit: Tensor, X_held: Tensor, Y_held: Tensor, *, ridge: float | None = None
) -> dict[str, Tensor]:
    """Cumulative R^2 ``[B]`` of f_t's variance on held-out inputs, one entry per step of a nested
    chain of maps.

    identity: x. translation: x + b. rotation: A x + b with A orthogonal (centred Procrustes).
    scaling: c A x + b, one factor c for all axes and the same A, so it stays a similarity. general:
    any A x + b. All are fitted by least squares on ``X_fit``, ``Y_fit [B, n, d]`` and scored on
    ``X_held``, ``Y_held [B, N, d]`` as 1 - |Y - G(X)|^2 / |Y - mean(Y)|^2 with the held-out mean; a
    step that does not generalise lowers R^2, and R^2 can be negative.
    """
    _check(X_fit, Y_fit)
    _check(X_held, Y_held)
    mean_x, mean_y = X_fit.mean(-2), Y_fit.mean(-2)
    eye = _eye(X_fit).expand(len(X_fit), -1, -1)
    turned = fit_closed_form(X_fit, Y_fit, "euclidean", ridge=ridge)
    image, target = turned.apply(X_fit) - mean_y.unsqueeze(-2), Y_fit - mean_y.unsqueeze(-2)
    tiny = torch.finfo(X_fit.dtype).tiny
    scale = (image * target).sum((-2, -1)) / image.square().sum((-2, -1)).clamp_min(tiny)
    scaled = scale[:, None, None] * turned.A
    maps = {
        "identity": AffineMap(eye, torch.zeros_like(mean_x)),
        "translation": AffineMap(eye, mean_y - mean_x),
        "rotation": turned,
        "scaling": AffineMap(scaled, mean_y - (scaled @ mean_x.unsqueeze(-1)).squeeze(-1)),
        "general": fit_closed_form(X_fit, Y_fit, "affine", ridge=ridge),
    }
    total = (Y_held - Y_held.mean(-2, keepdim=True)).square().sum((-2, -1)).clamp_min(tiny)
    return {
        name: 1 - (m.apply(X_held) - Y_held).square().sum((-2, -1)) / total
        for name, m in maps.items()
    }
