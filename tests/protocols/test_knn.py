"""KNN Eval: the mean of distances, and none of the things that it is mistaken for."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from near import normal
from test_unlabelled import slow_knn

from mergelib.protocols import knn_eval

# Distances of the anchors from x = 0, class by class, on a line; k = 5.
POINTS = torch.tensor(
    [
        [
            1.0,
            1.0,
            1.0,
            1.0,
            26.0,
        ],  # most of the five nearest: a vote says 0; mean 6, mean square 136
        [-40.0, 40.0, -40.0, 40.0, 0.1],  # symmetric: the distance to the centroid says 1
        [
            5.0,
            5.0,
            5.0,
            5.0,
            7.0,
        ],  # never far: the mean squared distance says 2; mean 5.4, mean square 29.8
        [2.0, 2.0, 2.0, 2.0, 13.0],  # the mean distance says 3: 4.2, mean square 37
    ]
)


def test_mean_of_distances_and_nothing_else():
    """Four rules, four answers; Eq. 5 is the mean distance (methods.md H6)."""
    distances = POINTS.abs()
    by_class = torch.arange(4).repeat_interleave(5)
    nearest = distances.flatten().argsort()[:5]
    assert int(by_class[nearest].bincount().argmax()) == 0
    assert int(POINTS.mean(1).abs().argmin()) == 1
    assert int(distances.square().mean(1).argmin()) == 2
    assert int(distances.mean(1).argmin()) == 3
    assert knn_eval(torch.zeros(1, 1), POINTS[None, ..., None], [5]).tolist() == [[[3]]]


@given(
    seed=st.integers(0, 10_000),
    s=st.integers(1, 3),
    c=st.integers(1, 5),
    k=st.integers(1, 5),
    d=st.integers(1, 6),
)
def test_equals_two_slow_loops(seed, s, c, k, d):
    features, anchors = normal(6, d, seed=seed), normal(s, c, k, d, seed=seed + 1)
    ks = list(range(1, k + 1))
    found = knn_eval(features, anchors, ks)
    assert found.shape == (k, s, 6)
    for at, n in zip(found.tolist(), ks, strict=True):
        classes = torch.arange(c).repeat_interleave(n).expand(s, -1)
        assert at == slow_knn(features, anchors[:, :, :n].flatten(1, 2), classes, c, c * n)


def test_near_neighbours_far_from_the_origin_stay_apart():
    """The usual matrix-product form of the distance would lose these digits."""
    anchors = torch.tensor([1000.0, 1000.05]).view(1, 2, 1, 1).expand(1, 2, 1, 8)
    assert knn_eval(torch.full((1, 8), 1000.04), anchors, [1]).item() == 1


def test_ties_go_to_the_lowest_class_and_the_order_of_anchors_is_free():
    anchors = torch.tensor([[2.0, 4.0], [1.0, 5.0], [3.0, 3.0]]).view(1, 3, 2, 1)
    assert knn_eval(torch.zeros(1, 1), anchors, [2]).item() == 0
    flipped = anchors.flip(2)
    assert torch.equal(
        knn_eval(torch.zeros(1, 1), anchors, [2]), knn_eval(torch.zeros(1, 1), flipped, [2])
    )
