"""The plain types between a task and its scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral

import torch
from torch import Tensor

from .errors import DataError, first_five, warn

State = Mapping[str, Tensor]
"""A state dict: parameter name -> tensor."""


def digest(*parts: str | bytes | memoryview) -> str:
    """SHA-256 (hex) of the parts, each preceded by its length so that no two lists of parts
    collide."""
    h = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        h.update(len(raw).to_bytes(8, "little"))
        h.update(raw)
    return h.hexdigest()


def shuffled(n: int, seed: int) -> Tensor:
    """A seeded permutation of the numbers of n rows ``[n]``."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def below(tensors: State, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def not_finite(state: State) -> list[str]:
    """Names of the tensors that hold NaN or inf, in the state's order."""
    names = [n for n, t in state.items() if t.is_floating_point() and t.numel()]
    if not names:
        return []
    # NaN and inf show up in the minimum or maximum, which one pass finds without new memory; a
    # device is asked once for all tensors.
    extremes = torch.stack(
        [bound.to(state[names[0]].device) for n in names for bound in state[n].detach().aminmax()]
    )
    return [
        n
        for n, ok in zip(names, extremes.view(-1, 2).isfinite().all(1).tolist(), strict=True)
        if not ok
    ]


def all_finite(t: Tensor) -> bool:
    """Whether a floating-point tensor holds neither NaN nor inf."""
    return not not_finite({"": t})


def place(t: Tensor) -> tuple:
    """A tensor's location and layout in memory: equal for two names of one tied tensor."""
    return t.const_data_ptr(), tuple(t.shape), t.stride()


Inputs = tuple[str, ...] | Tensor
"""N texts, or N images as one uint8 tensor ``[N, 3, H, W]``."""


def inputs_digest(inputs: Inputs) -> str:
    """Identity of inputs, in their order."""
    if isinstance(inputs, Tensor):
        return digest(
            str(tuple(inputs.shape)), memoryview(inputs.contiguous().numpy()).cast("B")
        )  # not copied: it may be gigabytes
    return digest(*inputs)


def state_digest(state: State) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state dict, independent of the order of its
    keys."""
    h = hashlib.sha256()
    for name in sorted(state):
        t = state[name].detach().cpu().contiguous()
        h.update(f"{name}|{t.dtype}|{tuple(t.shape)}|".encode())
        h.update(memoryview(t.view(-1).view(torch.uint8).numpy()))
    return h.hexdigest()


@dataclass(frozen=True)
class Split:
    """Inputs with labels: ``inputs`` are N texts or uint8 images ``[N, 3, H, W]``, ``labels`` is
    ``[N]`` int64, 0-based."""

    inputs: Inputs
    labels: Tensor

    def __post_init__(self) -> None:
        if isinstance(self.inputs, Tensor) and (
            self.inputs.dtype != torch.uint8 or self.inputs.dim() != 4 or self.inputs.shape[1] != 3
        ):
            raise DataError(
                f"Images are one uint8 tensor [N, 3, H, W], not {self.inputs.dtype} "
                f"{list(self.inputs.shape)}."
            )
        if len(self.inputs) != len(self.labels):
            raise DataError(
                f"{len(self.inputs)} inputs but {len(self.labels)} labels; "
                "give one label per input."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        return f"Split({len(self)} {'images' if isinstance(self.inputs, Tensor) else 'texts'})"

    def subset(self, rows: Tensor | Sequence[int]) -> Split:
        """These rows, in this order."""
        rows = torch.as_tensor(rows, dtype=torch.long)
        if isinstance(self.inputs, Tensor):
            return Split(self.inputs[rows], self.labels[rows])
        return Split(tuple(self.inputs[i] for i in rows.tolist()), self.labels[rows])

    @cached_property
    def inputs_digest(self) -> str:
        """Identity of the inputs alone; predictions are keyed by it, so labels cannot leak into
        them."""
        return inputs_digest(self.inputs)

    @property
    def digest(self) -> str:
        """Identity of inputs and labels together; not cached, because labels can be modified."""
        return digest(self.inputs_digest, self.labels.numpy().tobytes())


@dataclass(frozen=True)
class Task:
    """One classification task with its three splits; C = ``len(label_names)``.

    ``templates`` are prompts with the place ``{}`` of a class name, for CLIP's zero-shot head of a
    task of your own.
    """

    name: str
    label_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    source: str = ""
    modality: str = "text"
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n_classes < 2:
            raise DataError(
                f"Task '{self.name}' has {self.n_classes} class; there is nothing to classify. "
                "Give rows of at least two."
            )
        for split_name in ("train", "validation", "test"):
            labels = getattr(self, split_name).labels
            if not len(labels):
                raise DataError(f"Task '{self.name}': the {split_name} split is empty.")
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.n_classes:
                raise DataError(
                    f"Task '{self.name}': label {low if low < 0 else high} "
                    f"(0-based) in {split_name} is outside 0..{self.n_classes - 1}; "
                    f"it has {self.n_classes} classes."
                )
        missing = sorted(set(range(self.n_classes)) - set(self.train.labels.tolist()))
        if missing:
            names = ", ".join(f"{c} ({self.label_names[c]})" for c in missing[:5])
            raise DataError(
                f"Task '{self.name}': no training sample for class {names}; "
                "add some or drop the class."
            )
        self._check_overlap()

    def __repr__(self) -> str:
        splits = ", ".join(f"{s}: {getattr(self, s)}" for s in ("train", "validation", "test"))
        names = first_five(self.label_names)
        return f"Task('{self.name}', {self.n_classes} classes: {names}; {splits})"

    def _check_overlap(self) -> None:
        """Warn about test inputs that are also training inputs, and refuse if all of them are:
        their accuracy is not a test."""

        def seen(split: Split) -> Iterable[str | int]:
            if isinstance(split.inputs, Tensor):
                return (hash(x.tobytes()) for x in split.inputs.numpy())
            return split.inputs

        learned = {*seen(self.train), *seen(self.validation)}
        n_shared = sum(x in learned for x in seen(self.test))
        message = (
            f"Task '{self.name}': {n_shared} of {len(self.test)} test rows "
            "are also training or validation rows"
        )
        if n_shared == len(self.test):
            raise DataError(f"{message}; test on rows that were not trained on.")
        if n_shared:
            warn(f"{message}; they inflate the accuracy.")

    @property
    def n_classes(self) -> int:
        return len(self.label_names)


@dataclass(frozen=True)
class Head:
    """A linear classifier: ``weight`` is W_t ``[C, d]``, ``bias`` is b_t ``[C]``."""

    weight: Tensor
    bias: Tensor

    def __repr__(self) -> str:
        return f"Head(W_t {list(self.weight.shape)}, b_t {list(self.bias.shape)})"

    def logits(self, features: Tensor) -> Tensor:
        """``features [..., N, d] -> [..., N, C]``, that is Z W^T + b."""
        return features @ self.weight.mT + self.bias.unsqueeze(-2)

    def to(self, device: torch.device | str) -> Head:
        return Head(self.weight.to(device), self.bias.to(device))


@dataclass(frozen=True)
class Expert:
    """A fine-tuned encoder's weights theta_t and its head (W_t, b_t)."""

    task: str
    state: State
    head: Head
    info: dict = field(default_factory=dict)

    def __repr__(self) -> str:
        n = sum(t.numel() for t in self.state.values())
        return f"Expert('{self.task}', {n / 1e6:.1f} M parameters, {self.head})"


def head_digest(head: Head) -> str:
    """SHA-256 of a head's weight and bias."""
    return state_digest({"weight": head.weight, "bias": head.bias})


def is_whole(n: object) -> bool:
    """Whether ``n`` is an integer, of numpy's types, too; True and False are not."""
    return isinstance(n, Integral) and not isinstance(n, bool)


def percent(right: Tensor) -> float:
    """Share of true entries of ``right [N]``, in percent."""
    return 100.0 * int(right.sum()) / len(right)
