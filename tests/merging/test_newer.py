"""Karcher mean, LiNeS, WUDI-Merging, Gradient Matching and Grafting against slow references from
their formulas, and where they must agree with simpler methods."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from near import assert_states_close, normal
from test_every_method import seeds
from test_every_method_data import float_names, merge, setting
from torch.testing import assert_close

from mergelib.core.errors import UnknownNameError
from mergelib.merging.fisher import fisher_diagonal
from mergelib.merging.grafting import START, skill_mask
from mergelib.merging.karcher import karcher_mean
from mergelib.merging.wudi import least_interference

# ---- Karcher mean --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_of_two_models_it_is_slerp_at_one_half(seed):
    a, b = normal(2, 30, seed=seed).double().numpy()
    angle = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    half = math.sin(angle / 2) / math.sin(angle)
    direction = half * (a / np.linalg.norm(a) + b / np.linalg.norm(b))
    expected = direction * (np.linalg.norm(a) + np.linalg.norm(b)) / 2
    experts = [{"w": torch.tensor(x, dtype=torch.float32)} for x in (a, b)]
    merged = merge("karcher", {"w": torch.zeros(30)}, experts)["w"]
    np.testing.assert_allclose(merged.numpy(), expected, atol=1e-5)


@seeds
def test_arcs_to_the_karcher_mean_cancel_and_a_rotation_turns_it(seed):
    points = F.normalize(normal(4, 6, seed=seed, dtype=torch.float64) + 1, dim=1)
    mean = karcher_mean(points, 50)
    angles = torch.arccos(points @ mean)
    arcs = [a / a.sin() * (p - a.cos() * mean) for a, p in zip(angles, points, strict=True)]
    assert sum(arcs).norm() < 1e-5 and (mean.norm() - 1).abs() < 1e-9
    turn = torch.linalg.qr(normal(6, 6, seed=seed + 9, dtype=torch.float64)).Q
    assert_close(karcher_mean(points @ turn.T, 50), turn @ mean, atol=1e-5, rtol=0)


def test_zeros_have_no_direction_and_opposites_have_no_mean():
    def of(*rows):
        rows = [{"w": torch.tensor(r)} for r in rows]
        mean = merge("karcher", {"w": torch.zeros(2)}, rows)["w"]
        assert mean.untyped_storage().nbytes() == 8  # safetensors saves no part of a tensor
        return mean.tolist()

    assert of([0.0, 0.0], [0.0, 0.0]) == [0, 0]
    assert of([0.0, 0.0], [0.0, 4.0]) == [0, 2]
    assert of([3.0, 0.0], [-3.0, 0.0]) == [0, 0]


# ---- LiNeS ---------------------------------------------------------------------------------------

NAMES = ["embed.w", "layer.0.w", "layer.1.w", "layer.2.sub.7.w", "norm.w"]


@pytest.mark.parametrize(("of", "lam"), [("task_arithmetic", 0.6), ("ties", 0.9), ("magmax", 0.0)])
def test_lines_scales_each_block_by_its_depth(of, lam):
    base, *experts = [
        {n: normal(5, seed=10 * s + i) for i, n in enumerate(NAMES)} for s in range(4)
    ]
    tau_m = {n: merge(of, base, experts, lam=1.0)[n] - base[n] for n in NAMES}
    tau_sum = {n: sum(e[n] - base[n] for e in experts) for n in NAMES}

    def norm(s):
        return sum(float(t.double().abs().sum()) for t in s.values())

    alpha = norm(tau_sum) / norm(tau_m) / 3
    depth = dict(zip(NAMES, [0, 0, 1 / 2, 1, 0], strict=True))
    expected = {n: base[n] + (alpha + lam * depth[n]) * tau_m[n] for n in NAMES}
    assert_states_close(merge("lines", base, experts, of=of, lam=lam), expected)


def test_lines_without_depth_is_weight_averaging_and_needs_a_direction():
    base, experts, _ = setting()
    assert_states_close(
        merge("lines", base, experts, lam=0.0), merge("weight_averaging", base, experts)
    )
    for of in ("tie", "weight_averaging", "dare_task_arithmetic", "fisher_merging"):
        with pytest.raises(UnknownNameError, match="LiNeS"):
            merge("lines", base, experts, of=of)


# ---- WUDI-Merging --------------------------------------------------------------------------------


def interference(X, tau):
    return sum(((X - t) @ t.T).square().sum() / t.square().sum() for t in tau)


@seeds
def test_wudi_takes_adams_steps_on_the_interference(seed):
    tau = normal(3, 5, 4, seed=seed)
    X = tau.sum(0).requires_grad_()
    adam = torch.optim.Adam([X], lr=0.01)
    for _ in range(30):
        adam.zero_grad()
        interference(X, tau).backward()
        adam.step()
    assert_close(least_interference(tau, 30, 0.01), X.detach(), atol=1e-4, rtol=1e-4)
    assert interference(X, tau) < interference(tau.sum(0), tau)


def test_where_tasks_see_other_inputs_their_sum_interferes_with_none():
    tau = torch.zeros(2, 5, 4)
    tau[0, :, :2], tau[1, :, 2:] = normal(5, 2), normal(5, 2, seed=1)
    assert interference(tau.sum(0), tau) == 0
    assert_close(least_interference(tau, 100, 1e-5), tau.sum(0))


def test_wudi_averages_what_is_no_matrix_and_ignores_an_expert_that_never_moved():
    base, experts, _ = setting()
    merged, mean = merge("wudi", base, experts), merge("weight_averaging", base, experts)
    changed = {n for n in float_names(base) if not torch.allclose(merged[n], mean[n], atol=1e-3)}
    assert changed == {"first.weight", "second.weight", "spare.weight"}
    tau = normal(2, 5, 4)
    with_idle = torch.cat([tau, torch.zeros(1, 5, 4)])
    assert_close(least_interference(with_idle, 20, 0.01), least_interference(tau, 20, 0.01))


# ---- Gradient Matching ---------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "prior"), [(1.0, 1.0), (0.4, 0.05)])
def test_gradient_matching_by_its_formula(alpha, prior):
    base, experts, context = setting(n_inputs=3)
    names = float_names(base)
    H = [fisher_diagonal(context, t, e, 3) for t, e in enumerate(experts)]
    h_0 = prior * torch.cat([h[n].flatten() for h in H for n in names]).mean()
    expected = {}
    for n in names:
        pulls = [alpha * (h_0 + h[n]) * (e[n] - base[n]) for h, e in zip(H, experts, strict=True)]
        expected[n] = base[n] + sum(pulls) / (h_0 + alpha * sum(h[n] for h in H))
    merged = merge("gradient_matching", base, experts, context, alpha=alpha, prior=prior)
    assert_states_close(merged, expected, names=names)


# ---- Grafting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.05, 0.5, 1.0])
def test_untrained_masks_keep_the_largest_changes(keep):
    base, experts, context = setting()
    names = float_names(base)
    expected = {n: torch.zeros_like(base[n]) for n in names}
    for e in experts:
        tau = np.concatenate([(e[n] - base[n]).flatten().numpy() for n in names])
        least = np.sort(abs(tau))[::-1][round(keep * len(tau)) - 1]
        for n in names:
            change = e[n] - base[n]
            expected[n] += change * (change.abs() >= float(least))
    merged = merge("grafting", base, experts, context, keep=keep, steps=0)
    assert_states_close(merged, {n: base[n] + t for n, t in expected.items()}, names=names)


def test_training_flips_what_lowers_the_loss_of_the_graft():
    base, experts, context = setting(n_inputs=6)
    names, task = float_names(base), context.tasks[1]
    tau = {n: experts[1][n] - base[n] for n in names}

    def loss(mask):
        weights = {n: base[n] + mask[n] * tau[n] for n in names}
        weights["tied.weight"] = weights["embed.weight"]
        features = context.features({**base, **weights}, context.collate(task.inputs))
        return F.cross_entropy(task.head.logits(features), task.labels)

    def mask(steps):
        return skill_mask(context, 1, base, tau, 0.3, steps, 100.0, 6)

    before, after, size = mask(0), mask(5), [t.numel() for t in tau.values()]
    flips = sum(int((before[n] != after[n]).sum()) for n in names)
    assert 0 < flips < sum(size) and loss(after) < loss(before)
    # one step by finite differences: d loss / d S of single entries, at sigmoid(START)
    share, first = 1 / (1 + math.exp(-START)), before
    soft = {n: first[n] + share * (1 - 2 * first[n]) for n in names}
    n, at, eps = "second.weight", (1, 2), 1e-2
    up, down = ({m: t.clone() for m, t in soft.items()} for _ in range(2))
    up[n][at] += eps
    down[n][at] -= eps
    slope = float(loss(up) - loss(down)) / (2 * eps)
    slope *= share * (1 - share) * float(1 - 2 * first[n][at])
    rate = (1 - START) / abs(slope)  # one step of this rate carries S past 0 exactly if slope < 0
    stepped = skill_mask(context, 1, base, tau, 0.3, 1, rate, 6)
    assert (stepped[n][at] != first[n][at]) == (slope < 0)
