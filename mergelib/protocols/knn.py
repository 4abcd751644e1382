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
    n_seeds, n_classes, k_max, d = anchors.shape
    steps = torch.as_tensor(list(ks), device=anchors.device)
    predictions = torch.empty(
        len(steps), n_seeds, len(features), dtype=torch.long, device=anchors.device
    )
    for s in range(n_seeds):
        # The matrix-product shortcut loses digits for near neighbours; the direct computation does
        # not.
        distances = torch.cdist(
            features, anchors[s].reshape(-1, d), compute_mode="donot_use_mm_for_euclid_dist"
        )
        means = distances.view(-1, n_classes, k_max).cumsum(-1)[..., steps - 1] / steps
        predictions[:, s] = means.argmin(1).T
    return predictions


def knn_of_share(
    features: Tensor, anchors: Tensor, classes: Tensor, n_classes: int, counts: Sequence[int]
) -> Tensor:
    """``knn_eval`` for anchors as they come: predicted class ``[len(counts), S, N]`` from the first
    n of them, for each n of ``counts``.

    ``anchors [S, n_max, d]``, ``classes [S, n_max]``: how many anchors a class has is random. A
    class without anchors is infinitely far and never predicted.
    """
    n_seeds = len(anchors)
    predictions = torch.empty(
        len(counts), n_seeds, len(features), dtype=torch.long, device=anchors.device
    )
    for s in range(n_seeds):
        distances = torch.cdist(features, anchors[s], compute_mode="donot_use_mm_for_euclid_dist")
        member = torch.nn.functional.one_hot(classes[s], n_classes).to(distances)
        for i, n in enumerate(counts):
            n_anchors = member[:n].sum(0)
            means = (distances[:, :n] @ member[:n]) / n_anchors.clamp(min=1)
            predictions[i, s] = means.masked_fill(n_anchors == 0, torch.inf).argmin(1)
    return predictions
