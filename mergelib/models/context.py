"""What a merging method may use beyond weights, for models of one's own: inputs, heads, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..core.errors import ConfigError, check_name
from ..core.types import Split
from ..merging import Context, Method, TaskData
from ..protocols import uniform_order
from ..tasks.data import labelled, unlabelled
from .heads import collated, expert_classifier, into_layer, prepared
from .kinds import check_single
from .merged import TaskHead
from .parents import Parent
from .parts import Parts


class Features(nn.Module):
    """A transformers classifier whose output is what its last layer receives. ``own`` holds, for
    each task, the weights of its neck, which are not merged."""

    def __init__(self, model: nn.Module, layer: str, own: Sequence[Mapping[str, Tensor]]):
        super().__init__()
        self.model, self.layer, self.own = model, layer, own

    def forward(self, task: int = -1, **batch: Tensor) -> Tensor:
        if task >= 0:
            return functional_call(self, self.own[task], kwargs=batch)
        return into_layer(self.model, self.layer, batch)[0]


def read_inputs(
    method: Method, experts: Sequence[Parent], inputs: Mapping[str, Any]
) -> list[Sequence[Any] | Split]:
    """Each expert's inputs, with labels where ``method`` needs them.

    Raises:
        ConfigError: an expert without inputs, or one that ``method`` cannot use.
        UnknownNameError: inputs of an unknown task.
        DataError: inputs that cannot be read.
    """
    names = [e.name for e in experts]
    for task in inputs:
        check_name("task of inputs", task, names)
    read: list[Any] = []
    for e in experts:
        if e.name not in inputs:
            raise ConfigError(
                f"{method.label} needs {' and '.join(method.needs)}; '{e.name}' has none: give "
                f"inputs={{'{e.name}': ...}} (--inputs {e.name}=FILE)."
            )
        if {"gradients", "labels"} & {*method.needs}:
            check_single(e.config, e.name, method.label)
        if e.plan.converted:
            raise ConfigError(
                f"transformers rearranges the weights of a {e.model_class.__name__} "
                f"when it loads them, so {method.label} cannot run what it merges; "
                "use a method that needs nothing but weights."
            )
        data = inputs[e.name]
        read.append(
            labelled(data, e.labels, e.name, is_image=e.is_image)
            if "labels" in method.needs
            else unlabelled(data, e.is_image)
        )
    return read


def context_of(
    experts: Sequence[Parent],
    parts: Sequence[Parts],
    processors: Mapping[str, Any],
    read: Sequence[Sequence[Any] | Split],
    device: torch.device,
    max_length: int,
) -> tuple[Context, dict[str, str]]:
    """The context of what ``read_inputs`` gave, and the name in its model of every tensor of the
    first expert's file."""
    readers, tasks, heads, model = [], [], [], None
    for expert, part, content in zip(experts, parts, read, strict=True):
        split = content if isinstance(content, Split) else None
        inputs = list(split.inputs if split else content)
        order = uniform_order(len(inputs), len(inputs), 0)
        classifier = replace(
            expert_classifier(expert, head=part.head), processor=processors.get(expert.name)
        )
        items = prepared(classifier, inputs, max_length)
        model = model or classifier.model
        readers.append(replace(classifier, encoder={}))  # without the model
        head = TaskHead.of(expert, part, torch.float32)
        tasks.append(
            TaskData(
                [(len(tasks), items[i]) for i in order.tolist()],
                head.linear.to(device),
                split and split.labels[order].to(device),
            )
        )
        heads.append(
            {
                f"model.{place}": t.to(device)
                for n, t in head.tensors.items()
                for place in expert.plan.fills[n]
            }
        )

    def collate(rows: Sequence[Any]) -> dict[str, Any]:
        task = rows[0][0]
        batch = collated(readers[task], [item for _, item in rows])
        return {"task": task} | {k: v.to(device) for k, v in batch.items()}

    module = Features(model.float().to(device).requires_grad_(False), parts[0].head, heads)
    known = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    places = {
        n: next(p for p in filled if p in known) for n, filled in experts[0].plan.fills.items()
    }
    return Context(module.eval(), model, collate, tuple(tasks)), places
