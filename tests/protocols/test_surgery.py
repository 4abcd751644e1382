"""Surgery starts exactly at Current Eval and trains as a plain loop over nn.Linear layers would."""

import pytest
import torch
from near import normal
from torch import nn
from torch.testing import assert_close

from mergelib.core.types import Head
from mergelib.protocols import current_eval
from mergelib.protocols.surgery import start, surgery, trainable_parameters

X, Y = normal(3, 40, 12, seed=1), normal(3, 40, 12, seed=2)


@pytest.mark.parametrize("seed", [0, 1])
def test_starts_exactly_at_current_eval(seed):
    module = surgery(X, Y, steps=0, rank=4, seed=seed)
    head = Head(normal(5, 12, seed=3), normal(5, seed=4))
    assert module.down.any() and not module.up.any()
    assert torch.equal(module.apply(X), X)
    assert torch.equal(head.logits(module.apply(X)), head.logits(X))
    assert torch.equal(current_eval(module.apply(X), head), current_eval(X, head))


def test_down_is_drawn_as_a_linear_layer_is():
    down = start(2, 400, rank=64).down
    assert torch.equal(down[0], down[1])
    assert down.abs().max() <= 400**-0.5 * (1 + 1e-6)
    theirs = nn.Linear(400, 64, bias=False).weight
    for statistic in (torch.std, torch.amax, torch.amin):
        assert_close(statistic(down[0]), statistic(theirs), rtol=0.02, atol=0)
    assert not torch.equal(down[0], start(2, 400, rank=64, seed=1).down[0])


def reference(x, y, steps, rank, lr):
    """One fit the ordinary way: two layers, L1Loss, Adam."""
    down, up = nn.Linear(x.shape[1], rank, bias=False), nn.Linear(rank, x.shape[1], bias=False)
    with torch.no_grad():
        down.weight.copy_(start(1, x.shape[1], rank).down[0])
        nn.init.zeros_(up.weight)
    optimizer, losses = torch.optim.Adam([*down.parameters(), *up.parameters()], lr=lr), []
    for _ in range(steps):
        loss = nn.L1Loss()(x - up(torch.relu(down(x))), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return (x - up(torch.relu(down(x)))).detach(), losses


def test_equals_a_plain_loop_and_a_batch_equals_single_fits():
    module = surgery(X, Y, steps=60, rank=4, lr=1e-2)
    for i in range(3):
        expected, losses = reference(X[i], Y[i], steps=60, rank=4, lr=1e-2)
        assert_close(module.apply(X)[i], expected, atol=1e-4, rtol=0)
        alone = surgery(X[i : i + 1], Y[i : i + 1], steps=60, rank=4, lr=1e-2)
        assert_close(alone.apply(X[i])[0], module.apply(X)[i], atol=1e-4, rtol=0)
        assert losses[-1] < losses[0]


def test_equal_features_stay():
    assert torch.equal(surgery(X, X, steps=5).apply(X), X)


def test_shapes_shared_features_and_counts():
    module = surgery(X, Y, steps=1)
    assert module.down.shape == (3, 16, 12) and module.up.shape == (3, 12, 16)
    assert not module.down.requires_grad and not module.up.requires_grad
    assert_close(module.apply(X[0])[0], module.apply(X)[0])
    assert trainable_parameters(12) == module.down[0].numel() + module.up[0].numel()
    assert trainable_parameters(512) == 16_384
