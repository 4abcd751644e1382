"""Do features cluster? Numbers in R^d, never on t-SNE coordinates (Section 3.1, Figures 1, 8)."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

ROWS_AT_A_TIME = 2048
"""All distances between the 26,032 test images of SVHN, from two encoders, would be 22 GB."""


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # A product is twenty times quicker than differences; what it cancels, double precision has.
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")


def label_purity(features: Tensor, labels: Tensor, neighbours: int = 10) -> Tensor:
    """For each point, the share of its nearest neighbours that have its label.

    Args:
        features: ``[N, d]``.
        labels: ``[N]``.
        neighbours: How many neighbours count.

    Returns:
        ``[N]``; the mean is the leave-one-out 10-NN label purity of claim P3.1-clusters.

    Raises:
        ValueError: There are too few points.
    """
    if len(features) <= neighbours:
        raise ValueError(
            f"{len(features)} points cannot have {neighbours} neighbours; use more points."
        )
    shares = []
    for rows in torch.arange(len(features)).split(ROWS_AT_A_TIME):
        distances = _distances(features[rows], features)
        distances[torch.arange(len(rows)), rows] = torch.inf
        nearest = distances.topk(neighbours, largest=False).indices
        shares.append((labels[nearest] == labels[rows, None]).float().mean(1))
    return torch.cat(shares)


def source_purity(first: Tensor, second: Tensor) -> Tensor:
    """How far outputs ``[N, d]`` of two encoders lie in different regions: ``[N]``.

    For each input the mean over its two outputs of: is the nearest output of any *other* input the
    same encoder's? 1 is complete separation, 0.5 a perfect mix. Claim P3.1-bias.
    """
    n = len(first)
    outputs = torch.cat([first, second])
    same = []
    for rows in torch.arange(2 * n).split(ROWS_AT_A_TIME):
        distances = _distances(outputs[rows], outputs)
        index = torch.arange(len(rows))
        distances[index, rows] = distances[index, (rows + n) % (2 * n)] = torch.inf
        same.append((distances.argmin(1) < n) == (rows < n))
    return torch.cat(same).view(2, n).float().mean(0)


def silhouette(features: Tensor, labels: Tensor) -> float:
    """Mean silhouette coefficient of the label clusters in R^d, in [-1, 1]."""
    from sklearn.metrics import silhouette_score  # half a second of start-up

    return float(silhouette_score(features.numpy(), labels.numpy()))


def tsne(features: Tensor) -> Tensor:
    """t-SNE ``[N, d] -> [N, 2]``, for pictures only; initialised by PCA and run on one thread, so
    that it is reproducible."""
    from sklearn.manifold import TSNE  # half a second of start-up

    with threadpool_limits(1):
        perplexity = min(30, (len(features) - 1) / 3)
        points = TSNE(
            n_components=2,
            perplexity=perplexity,
            init="pca",
            max_iter=500,  # 250 of them exaggerated; a thousand draw the same clusters
            random_state=0,
            n_jobs=1,
        ).fit_transform(features.numpy())
    return torch.from_numpy(points).float()
