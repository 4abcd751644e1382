"""KNN Eval, Eq. 5: the class whose anchors are nearest on average.

It has k anchors per class, or those that a share happens to contain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def knn_eval(features: Tensor, anchors: Tensor, ks: Sequence[int]) -> Tensor:
    """Predicted class ``[len(ks), S, N]`` by mean Euclidean distance to the first k anchors of each
    class.

    ``features [N, d]`` are the test outputs, ``anchors [S, C, k_max, d]`` the anchors' outputs of
    the same encoder for S seeds. Mean of distances: neither a vote, nor the distance to the mean,
    nor squared (Eq. 5). Ties go to the lowest class. All k come from one distance matrix, by
    cumulative sums.
    """
    _, n_classes, k_max, d = anchors.shape
    steps = torch.as_tensor(list(ks), device=anchors.device)
    predicted = []
    for drawn in anchors:
        distances = _distances(features, drawn.reshape(-1, d)).view(-1, n_classes, k_max)
        means = distances.cumsum(-1)[..., steps - 1] / steps
        predicted.append(means.argmin(1).T)
    return torch.stack(predicted, 1)


def knn_of_share(
    features: Tensor, anchors: Tensor, classes: Tensor, n_classes: int, counts: Sequence[int]
) -> Tensor:
    """``knn_eval`` for anchors as they come: predicted class ``[len(counts), S, N]`` from the first
    n of them, for each n of ``counts``.

    ``anchors [S, n_max, d]``, ``classes [S, n_max]``: how many anchors a class has is random. A
    class without anchors is infinitely far and never predicted.
    """
    predicted = []
    for drawn, labels in zip(anchors, classes, strict=True):
        distances = _distances(features, drawn)
        member = torch.nn.functional.one_hot(labels, n_classes).to(distances)
        rows = []
        for n in counts:
            n_anchors = member[:n].sum(0)
            means = (distances[:, :n] @ member[:n]) / n_anchors.clamp(min=1)
            rows.append(means.masked_fill(n_anchors == 0, torch.inf).argmin(1))
        predicted.append(torch.stack(rows))
    return torch.stack(predicted, 1)


def _distances(features: Tensor, anchors: Tensor) -> Tensor:
    """Of ``[N, d]`` to ``[A, d]``, ``[N, A]``. The matrix-product shortcut loses digits for near
    neighbours; the direct computation does not."""
    return torch.cdist(features, anchors, compute_mode="donot_use_mm_for_euclid_dist")
