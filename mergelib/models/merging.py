"""``merge``: several fine-tuned classifiers into one encoder, read from disk piece by piece."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..documents import check_folder_name
from ..errors import ConfigError, StateDictError, UnknownNameError, shortened
from ..features import pick_device
from ..merging import ONE, Method, get_method
from ..merging.streaming import can_stream, stream
from ..progress import progress
from ..types import all_finite
from .merged import Merged, TaskHead
from .parents import Parent, open_parent
from .parts import Parts, base_names, check_same_architecture, check_same_vocabulary, find_parts

PIECE = 1 << 21  # numbers read of each parent at a time
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}
NEEDS_NO_BASE = ("weight_averaging",)


def named_experts(experts: Any) -> list[Parent]:
    """Experts as parents with distinct names. Raises ``ConfigError`` for none, or for two of one name."""
    if isinstance(experts, str | bytes) or hasattr(experts, "save_pretrained"):
        raise ConfigError("experts is a list of models, or a dict from task to model.")
    found = (
        [open_parent(s, str(n)) for n, s in experts.items()]
        if isinstance(experts, Mapping)
        else [open_parent(s) for s in experts]
    )
    if not found:
        raise ConfigError("Nothing to merge: give at least one expert.")
    names = [p.name for p in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(
            f"Two experts are called '{twice[0]}'. Name them: experts={{'task': model, ...}}, task=FOLDER on the command line."
        )
    for name in names:
        check_folder_name(name)
    return found


def merge(
    method: str,
    *,
    base: Any = None,
    experts: Any,
    encoder: Sequence[str] = (),
    head: str = "",
    dtype: str = "",
    device: str = "cpu",
    processor: Any = None,
    show_progress: bool = False,
    **options: Any,
) -> Merged:
    """Merge the encoders of fine-tuned classifiers; every task keeps its own head.

    ``base`` and ``experts`` (a list, or a dict task -> model) are hub ids, folders or loaded transformers models; ``options``
    are the method's. What is encoder and what is head is told by the architecture and the base (see ``Parts``); ``encoder``
    (patterns) and ``head`` (a module) override it. Weights are merged in float32 and rounded once, to ``dtype`` (default: the
    base's). ``weight_averaging`` needs no base.

    Raises ``StateDictError`` for parents of different architecture, vocabulary or shape and for weights that are not finite,
    ``UnsafeFileError`` for a checkpoint that would have to run code, ``ConfigError`` or ``UnknownNameError`` for the rest.
    """
    found = get_method(method)
    found.check_options(options)
    if found.needs or found.gives != ONE:
        raise ConfigError(
            f"{found.label} needs {' and '.join(('weights', *found.needs))} and gives {found.gives}; from files only methods "
            "that need nothing but weights and give one encoder can be merged."
        )
    if base is None and method not in NEEDS_NO_BASE:
        raise ConfigError(
            f"{found.label} needs base=, the model that the experts were fine-tuned from."
        )
    parents = named_experts(experts)
    root = None if base is None else open_parent(base, "base")
    parts = _check(parents, root, encoder, head)
    first = parents[0]
    source = (
        {n: n for n in parts[0].encoder} if root is None else base_names(parts[0].encoder, root)
    )
    lender = first if root is None else root  # integers and the dtype come from here
    kind = next(
        (
            lender.weights.dtypes[source[n]]
            for n in parts[0].encoder
            if lender.weights.is_float(source[n])
        ),
        None,
    )
    if kind is None:
        raise StateDictError(
            f"The encoder of '{lender.name}' has no floating-point tensors; there is nothing to merge."
        )
    dtype = dtype or DTYPE_NAMES[kind]
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    reader = Reader(parents, lender, source, pick_device(device))
    state = reader.merge(found, options, DTYPES[dtype], show_progress)
    heads = {p.name: TaskHead.of(p, q, DTYPES[dtype]) for p, q in zip(parents, parts, strict=True)}
    record = {
        "mergelib": __version__,
        "method": method,
        "label": found.label,
        "options": options,
        "dtype": dtype,
        "base": None if root is None else root.source,
        "experts": {p.name: p.source for p in parents},
        "parts": parts[0].describe(),
        "streamed": can_stream(found),
    }
    if processor is None:
        processor = next(
            (
                p
                for parent in [*parents, *([root] if root else [])]
                if (p := parent.processor()) is not None
            ),
            None,
        )
    return Merged(state, heads, record, processor, {p.name: p for p in parents})


def _check(
    experts: Sequence[Parent], base: Parent | None, encoder: Sequence[str], head: str
) -> list[Parts]:
    """Parts of every expert; refuses parents that do not fit together."""
    first = experts[0]
    for other in experts:
        _ = other.model_class
    for other in [*experts[1:], *([base] if base else [])]:
        check_same_architecture(first.name, first.config, other.name, other.config)
        check_same_vocabulary(first, other)
    parts = [find_parts(e, base, encoder=encoder, head=head) for e in experts]
    for expert, mine in zip(experts, parts, strict=True):
        odd = sorted(set(mine.encoder) ^ set(parts[0].encoder))
        if odd or mine.head != parts[0].head:
            raise StateDictError(
                f"'{expert.name}' and '{first.name}' have different encoders: only one has {', '.join(odd[:5]) or mine.head}."
            )
    known = base_names(parts[0].encoder, base) if base else {n: n for n in parts[0].encoder}
    for parent in [*experts, *([base] if base else [])]:
        at = {n: known[n] if parent is base else n for n in parts[0].encoder}
        wrong = [
            f"{n} ({parent.weights.shape(at[n])}, {first.name} {first.weights.shape(n)})"
            for n in parts[0].encoder
            if parent.weights.shape(at[n]) != first.weights.shape(n)
        ]
        if wrong:
            raise StateDictError(
                f"'{parent.name}' has other shapes than '{first.name}' at {', '.join(wrong[:3])}. Another vocabulary or width?"
            )
    return parts


class Reader:
    """Base and experts side by side, in flat float32 pieces."""

    def __init__(
        self,
        experts: Sequence[Parent],
        base: Parent,
        source: Mapping[str, str],
        device: torch.device,
    ):
        self.experts, self.base, self.source, self.device = experts, base, source, device
        self.floats = [n for n in source if base.weights.is_float(source[n])]
        self._checked = False

    def spans(self) -> Iterator[tuple[str, int | None, int | None]]:
        """Names with the rows to read: small tensors whole, large ones by rows."""
        for name in self.floats:
            shape = self.base.weights.shape(self.source[name])
            rows = shape[0] if shape else 0
            step = max(1, PIECE // max(1, math.prod(shape[1:])))
            if rows <= step:
                yield name, None, None
            else:
                yield from ((name, a, min(rows, a + step)) for a in range(0, rows, step))

    def pieces(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """theta_b ``[n]`` and the T experts' ``[n]``; the first pass refuses what is not finite."""
        for name, start, stop in self.spans():
            flat = []
            for parent, raw in [(self.base, self.source[name]), *((e, name) for e in self.experts)]:
                piece = (
                    parent.weights.tensor(raw, start, stop)
                    .to(self.device, torch.float32)
                    .reshape(-1)
                )
                if not self._checked and not all_finite(piece):
                    raise StateDictError(
                        f"'{parent.name}' holds NaN or inf in {raw}. Its training diverged or its file is damaged; make it again."
                    )
                flat.append(piece)
            yield flat[0], flat[1:]
        self._checked = True

    def whole(self, parent: Parent) -> dict[str, Tensor]:
        """All floating-point tensors of one parent, float32."""
        return {
            n: parent.weights.tensor(self.source[n] if parent is self.base else n).to(
                self.device, torch.float32
            )
            for n in self.floats
        }

    def merge(
        self, method: Method, options: dict[str, Any], dtype: torch.dtype, show: bool
    ) -> dict[str, Tensor]:
        """The merged encoder on the CPU."""
        # A base that stands in for a missing one is also an expert: read by its own names either way.
        out = {
            n: self.base.weights.tensor(raw).clone()
            for n, raw in self.source.items()
            if not self.base.weights.is_float(raw)
        }
        if not can_stream(method):
            warnings.warn(
                f"{method.label} has no streaming form: base and {len(self.experts)} experts are loaded whole.",
                UserWarning,
                stacklevel=3,
            )
            merged = method(self.whole(self.base), [self.whole(e) for e in self.experts], **options)
            return out | {n: _finite(n, merged[n].to("cpu", dtype)) for n in self.floats}
        out |= {
            n: torch.empty(self.base.weights.shape(self.source[n]), dtype=dtype)
            for n in self.floats
        }
        spans = list(self.spans())
        merged = stream(method, self.pieces, **options)
        for (name, start, stop), piece in zip(
            progress(spans, desc=f"merge {method.name}") if show else spans, merged, strict=True
        ):
            target = out[name] if start is None else out[name][start:stop]
            _finite(name, target.copy_(piece.view(target.shape)))
        return out


def _finite(name: str, merged: Tensor) -> Tensor:
    """``merged``. Raises ``StateDictError`` for NaN or inf: an option out of all proportion, or a dtype too narrow for the weights."""
    if not all_finite(merged):
        raise StateDictError(
            f"The merge gives NaN or inf in {shortened(name)}. Take a smaller lambda, or dtype float32 or bfloat16."
        )
    return merged
