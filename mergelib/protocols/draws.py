"""Which rows a few-shot protocol sees: nested in k, determined by the seed, and the same for every
protocol and method."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.types import shuffled


def stratified_order(labels: Tensor, n_classes: int, k_max: int, seed: int) -> Tensor:
    """Rows ``[C, k_max]``: one seeded permutation per class, so the draw for k is ``order[:, :k]``
    and draws are nested.

    ``labels [N]`` int64, 0-based. Labels only balance the draw, as in the released code;
    FT-Classifier does not use them otherwise. Raises ``DataError`` for a class with fewer than
    ``k_max`` rows.
    """
    rows = []
    for c in range(n_classes):
        members = (labels == c).nonzero().flatten()
        if len(members) < k_max:
            raise DataError(
                f"k = {k_max} is larger than class {c}, which has {len(members)} samples to draw "
                "from. Use a smaller k or a larger pool."
            )
        # One generator per (seed, class): adding a class does not change the other classes' draws.
        generator = torch.Generator().manual_seed(1_000_003 * seed + c)
        rows.append(members[torch.randperm(len(members), generator=generator)[:k_max]])
    return torch.stack(rows)


def shots_order(labels: Tensor, n_classes: int, k_max: int, seed: int, draw: str) -> Tensor:
    """Rows ``[C, k_max]`` of a ``stratified`` draw, or of a ``uniform`` one: its first k * C rows
    stand in ``[:, :k]``, so that both are nested in k."""
    if draw == "stratified":
        return stratified_order(labels, n_classes, k_max, seed)
    return uniform_order(len(labels), k_max * n_classes, seed).view(k_max, n_classes).T


def uniform_order(n_rows: int, n_draw: int, seed: int) -> Tensor:
    """Rows ``[n_draw]``: a seeded permutation of all rows, cut; the draw for k is its first k * C
    rows. No labels.

    Raises ``DataError`` when there are fewer rows than asked for.
    """
    if n_rows < n_draw:
        raise DataError(
            f"{n_draw} rows requested, but only {n_rows} to draw from. "
            "Use a smaller k or a larger pool."
        )
    return shuffled(n_rows, 1_000_003 * seed + 999_983)[:n_draw]
