"""Do features cluster? Numbers in R^d, never on t-SNE coordinates (Section 3.1, Figures 1 and 8)."""

from __future__ import annotations

import torch
from torch import Tensor


def label_purity(features: Tensor, labels: Tensor, neighbours: int = 10) -> Tensor:
    """Share ``[N]`` of each point's nearest other points that carry its label; ``features [N, d]``, ``labels [N]``.

    The mean is the leave-one-out 10-NN label purity of claim P3.1-clusters. Raises ``ValueError`` for too few points.
    """
    if len(features) <= neighbours:
        raise ValueError(f"{len(features)} points cannot have {neighbours} neighbours; use more points.")
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    nearest = distances.topk(neighbours, largest=False).indices
    return (labels[nearest] == labels[:, None]).float().mean(1)


def source_purity(first: Tensor, second: Tensor) -> Tensor:
    """How far two encoders' outputs lie in different regions: ``first, second [N, d]`` of the same N inputs -> ``[N]``.

    For each input the mean over its two outputs of: is the nearest output of any *other* input the same encoder's? 1 is
    complete separation, 0.5 a perfect mix. Claim P3.1-bias.
    """
    n = len(first)
    both = torch.cat([first, second])
    distances = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist")
    rows = torch.arange(2 * n)
    distances[rows, rows] = distances[rows, (rows + n) % (2 * n)] = torch.inf
    same = (distances.argmin(1) < n) == (rows < n)
    return same.view(2, n).float().mean(0)


def silhouette(features: Tensor, labels: Tensor) -> float:
    """Mean silhouette coefficient of the label clusters in R^d, in [-1, 1]."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(features.numpy(), labels.numpy()))


def tsne(features: Tensor, seed: int = 0) -> Tensor:
    """t-SNE ``[N, d] -> [N, 2]`` for the eye; started from PCA and on one thread, so equal input gives equal output."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        perplexity = min(30, (len(features) - 1) / 3)
        points = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(features.numpy())
    return torch.from_numpy(points).float()
