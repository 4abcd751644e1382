"""Cluster numbers of Section 3.1 against slow loops, in R^d."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from near import seeded

from mergelib.study import clustering as clusters


def nearest(points, i, forbidden):
    return sorted(
        (j for j in range(len(points)) if j not in forbidden),
        key=lambda j: (float((points[i] - points[j]).double().norm()), j),
    )


@given(st.integers(0, 1000))
def test_label_purity_equals_a_loop(seed):
    g = seeded(seed)
    z, y = torch.randn(14, 3, generator=g), torch.randint(3, (14,), generator=g)
    slow = [sum(int(y[j] == y[i]) for j in nearest(z, i, {i})[:4]) / 4 for i in range(14)]
    assert clusters.label_purity(z, y, 4).tolist() == pytest.approx(slow)


@given(st.integers(0, 1000))
def test_source_purity_equals_a_loop_over_other_inputs(seed):
    g = seeded(seed)
    a, b = torch.randn(8, 3, generator=g), torch.randn(8, 3, generator=g) + 0.5
    both = torch.cat([a, b])
    slow = [
        sum(int((nearest(both, i, {i, (i + 8) % 16})[0] < 8) == (i < 8)) for i in (r, r + 8)) / 2
        for r in range(8)
    ]
    assert clusters.source_purity(a, b).tolist() == pytest.approx(slow)


def test_the_extremes_of_source_purity():
    z = torch.randn(40, 5)
    assert clusters.source_purity(z, z + 1000).mean() == 1
    assert 0.2 < clusters.source_purity(z, torch.randn(40, 5)).mean() < 0.8


def test_neither_depends_on_rotation_and_scale():
    z, y = torch.randn(60, 5), torch.arange(60) % 3
    moved = 7 * z @ torch.linalg.qr(torch.randn(5, 5)).Q + 1
    purity = clusters.label_purity(z, y)
    assert torch.allclose(clusters.label_purity(moved, y), purity, atol=0.11)
    assert float(clusters.label_purity(50 * torch.eye(5)[y] + z, y).mean()) == 1


def test_too_few_points():
    with pytest.raises(ValueError, match="use more points"):
        clusters.label_purity(torch.zeros(10, 2), torch.zeros(10))


def test_tsne_repeats_itself():
    z = torch.randn(80, 6)
    assert torch.equal(clusters.tsne(z), clusters.tsne(z.clone()))
