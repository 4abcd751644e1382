"""CUDA equals the CPU to 1e-4 (methods.md H17). Skipped without a GPU."""

import copy

import pytest
import torch
from near import seeded
from torch.testing import assert_close

from mergelib.core.types import Head
from mergelib.encoders.features import extract
from mergelib.merging import METHODS
from mergelib.protocols import PRESETS, ft_classifier, knn_eval

pytestmark = pytest.mark.cuda


def states():
    g = seeded(0)
    return [
        {
            "a": torch.randn(300, 40, generator=g),
            "b": torch.randn(77, generator=g),
            "ids": torch.arange(5),
        }
        for _ in range(4)
    ]


def on_gpu(state):
    return {n: t.cuda() for n, t in state.items()}


@pytest.mark.parametrize("name", ["weight_averaging", "task_arithmetic", "ties"])
def test_merging(name):
    base, *experts = states()
    cpu = METHODS[name](base, experts)
    gpu = METHODS[name](on_gpu(base), [on_gpu(e) for e in experts])
    for n in base:
        assert gpu[n].is_cuda
        assert_close(gpu[n].cpu(), cpu[n], atol=1e-4, rtol=1e-4)


def test_features(study):
    inputs = study.task("ag").test.inputs
    module = study.encoder.module(study.expert("ag").state)
    cpu = extract(study.encoder, module, inputs)
    gpu = extract(study.encoder, copy.deepcopy(module), inputs, device="cuda")
    assert_close(gpu, cpu, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("preset", ["default", "released"])
def test_ft_classifier(preset):
    g = seeded(1)
    head = Head(torch.randn(4, 16, generator=g), torch.randn(4, generator=g))
    z, teacher = torch.randn(3, 20, 16, generator=g), torch.randn(3, 20, 4, generator=g)
    cpu = ft_classifier(z, teacher, head, PRESETS[preset])
    gpu = ft_classifier(z.cuda(), teacher.cuda(), head.to("cuda"), PRESETS[preset])
    assert_close(gpu.weight.cpu(), cpu.weight, atol=1e-3, rtol=1e-4)
    assert_close(
        gpu.logits(z.cuda()).softmax(-1).cpu(), cpu.logits(z).softmax(-1), atol=1e-4, rtol=1e-3
    )


def test_knn():
    g = seeded(2)
    z, anchors = torch.randn(200, 16, generator=g), torch.randn(2, 5, 10, 16, generator=g)
    cpu, gpu = knn_eval(z, anchors, [1, 5, 10]), knn_eval(z.cuda(), anchors.cuda(), [1, 5, 10])
    assert (gpu.cpu() == cpu).float().mean() > 0.999
