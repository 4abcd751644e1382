"""CUDA equals the CPU to 1e-4 (methods.md H17). Skipped without a GPU."""

import copy

import pytest
import torch
from near import normal
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map

from mergelib.core.types import Head
from mergelib.encoders.features import extract
from mergelib.merging import METHODS
from mergelib.protocols import PRESETS, ft_classifier, knn_eval

pytestmark = pytest.mark.cuda
GPU = "cuda"


def on_both(function, *given):
    """What ``function`` gives on the GPU, where it stays until it is brought back, and on the
    CPU."""
    found = function(*tree_map(lambda t: t.to(GPU), given))
    assert all(t.device.type == GPU for t in tree_leaves(found))
    return tree_map(lambda t: t.cpu(), found), function(*given)


@pytest.mark.parametrize("name", ["weight_averaging", "task_arithmetic", "ties"])
def test_merging(name):
    states = [
        {"a": normal(300, 40, seed=s), "b": normal(77, seed=10 + s), "ids": torch.arange(5)}
        for s in range(4)
    ]
    gpu, cpu = on_both(lambda base, *experts: METHODS[name](base, experts), *states)
    assert_close(gpu, cpu, atol=1e-4, rtol=1e-4)


def test_features(study):
    inputs = study.task("ag").test.inputs
    module = study.encoder.module(study.expert("ag").state)
    cpu = extract(study.encoder, module, inputs)
    gpu = extract(study.encoder, copy.deepcopy(module), inputs, device=GPU)
    assert_close(gpu, cpu, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("preset", ["default", "released"])
def test_ft_classifier(preset):
    def weight_and_probabilities(z, teacher, *head):
        fitted = ft_classifier(z, teacher, Head(*head), PRESETS[preset])
        return fitted.weight, fitted.logits(z).softmax(-1)

    head = normal(4, 16, seed=1), normal(4, seed=2)
    given = normal(3, 20, 16, seed=3), normal(3, 20, 4, seed=4), *head
    gpu, cpu = on_both(weight_and_probabilities, *given)
    assert_close(gpu[0], cpu[0], atol=1e-3, rtol=1e-4)
    assert_close(gpu[1], cpu[1], atol=1e-4, rtol=1e-3)


def test_knn():
    z, anchors = normal(200, 16), normal(2, 5, 10, 16, seed=1)
    gpu, cpu = on_both(lambda *given: knn_eval(*given, [1, 5, 10]), z, anchors)
    assert (gpu == cpu).float().mean() > 0.999
