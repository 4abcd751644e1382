"""What a merging method may use beyond weights: each task's inputs, its head and, if declared,
labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from ..core.errors import ConfigError
from ..core.types import Head, State


@dataclass(frozen=True)
class TaskData:
    """One task: inputs in random order, as ``Context.collate`` takes them; (W_t, b_t); labels
    ``[N]`` or None."""

    inputs: Sequence[Any]
    head: Head
    labels: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """``module(**batch) -> features [B, d]``, in evaluation mode; ``inner`` is the part of it (or
    all of it) whose state dict is merged; ``collate`` turns inputs into a batch; ``tasks`` are in
    the experts' order."""

    module: nn.Module
    inner: nn.Module
    collate: Callable[[Sequence[Any]], dict[str, Tensor]]
    tasks: tuple[TaskData, ...]

    @cached_property
    def _names(self) -> dict[str, str]:
        """A tensor's path in the module -> its name in the state; names that share a tensor are
        represented by the first."""
        inner = next(n for n, m in self.module.named_modules() if m is self.inner)
        names, first = {}, {}
        for place, part in self.module.named_modules():  # a module with two names is listed once
            own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
            for name, t in own:
                at = f"{place}.{name}" if place else name
                names[at] = first.setdefault(id(t), at)
        prefix = f"{inner}." if inner else ""
        return {
            at: name.removeprefix(prefix) for at, name in names.items() if name.startswith(prefix)
        }

    def features(self, state: State, batch: dict[str, Tensor]) -> Tensor:
        """Features ``[B, d]`` of ``module`` with the weights ``state``; differentiable in its
        tensors."""
        # Non-persistent buffers are in no state.
        weights = {at: state[name] for at, name in self._names.items() if name in state}
        return functional_call(self.module, weights, kwargs=batch, tie_weights=False)

    def batches(self, t: int, n: int, size: int) -> Iterator[dict[str, Tensor]]:
        """The first ``n`` inputs of task ``t`` in batches of ``size``."""
        inputs = self.tasks[t].inputs[:n]
        for start in range(0, len(inputs), size):
            yield self.collate(inputs[start : start + size])

    def check(self, method: str, needs: Sequence[str], n_experts: int) -> None:
        """Raises ``ConfigError`` if something that ``method`` needs is missing."""
        if len(self.tasks) != n_experts:
            raise ConfigError(
                f"Method '{method}' got data of {len(self.tasks)} tasks and {n_experts} experts; "
                "give one TaskData per expert."
            )
        for t, task in enumerate(self.tasks):
            if not len(task.inputs):
                raise ConfigError(f"Method '{method}' needs inputs; task {t} has none.")
            if "labels" in needs and (task.labels is None or len(task.labels) != len(task.inputs)):
                raise ConfigError(
                    f"Method '{method}' needs labels; task {t} has "
                    f"{'none' if task.labels is None else 'another number'}."
                )
