"""``merge``: several fine-tuned classifiers into one encoder, read from disk piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.documents import check_folder_name
from ..core.errors import (
    ConfigError,
    StateDictError,
    check_name,
    first_five,
    shortened,
    warn,
)
from ..core.progress import progress
from ..core.types import all_finite
from ..core.version import __version__
from ..encoders.features import pick_device
from ..merging import PER_TASK, Context, Method, get_method
from ..merging.streaming import can_stream, stream
from .context import context_of, read_inputs
from .merged import Merged, TaskHead
from .parents import Parent, open_parent
from .parts import (
    Parts,
    check_same_architecture,
    find_parts,
    processors_of,
)
from .tokens import unified

PIECE = 1 << 21  # numbers read from each parent at a time
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.float64: "float32"}
NEEDS_NO_BASE = ("weight_averaging",)


def named_experts(experts: Any) -> list[Parent]:
    """Experts as parents with distinct names. Raises ``ConfigError`` for no expert, or two with the
    same name."""
    if isinstance(experts, str | bytes) or not hasattr(experts, "__iter__"):
        raise ConfigError("experts is a list of models, or a dict from task to model.")
    pairs = experts.items() if isinstance(experts, Mapping) else (("", s) for s in experts)
    parents = [open_parent(source, str(name)) for name, source in pairs]
    if not parents:
        raise ConfigError("Nothing to merge: give at least one expert.")
    names = [p.name for p in parents]
    if repeated := [n for n in names if names.count(n) > 1]:
        raise ConfigError(
            f"Two experts are called '{min(repeated)}'. Name them: experts={{'task': model, ...}}, "
            "task=FOLDER on the command line."
        )
    for name in names:
        check_folder_name(name)
    return parents


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
    inputs: Mapping[str, Any] | None = None,
    max_length: int = 0,
    show_progress: bool = False,
    **options: Any,
) -> Merged:
    """Merge the encoders of fine-tuned classifiers; every task keeps its own head.

    Weights are merged in float32 and rounded once. Of a model's folder, the tensors that
    ``from_pretrained`` loads are read. Buffers that are not weights (position ids, running
    statistics) are kept if all parents agree, and refused if not. Experts that treat texts or
    images differently each keep their own tokenizer or image processor. Where experts added tokens,
    all share the union, see ``tokens.unified``.

    Args:
        method: a registered method; ``python -m mergelib methods`` lists all. One that gives an
            encoder per task makes a ``Merged`` whose heads hold them.
        base: the model that the experts were fine-tuned from: a hub id, a folder or a loaded
            transformers model. ``weight_averaging`` needs none.
        experts: a list of such models, or a dict task -> model.
        encoder: patterns of names that override what is encoder (see ``Parts``).
        head: the last linear layer's module, if it cannot be found automatically.
        dtype: float32, bfloat16 or float16; default: the base's.
        device: where pieces are merged.
        processor: tokenizer or image processor of every task, instead of the parents'.
        inputs: for a method that needs more than weights: task -> inputs, or rows with labels if it
            needs labels, in any form that ``tasks.rows_of`` takes.
        max_length: cut texts among them to this many tokens; default: the model's maximum.
        show_progress: whether to show a progress bar.
        options: the method's.

    Raises:
        StateDictError: parents of different architecture, vocabulary or shape, files that do not
            make a complete model, quantised weights, or weights that are not finite.
        UnsafeFileError: a checkpoint that could only be loaded by running code.
        ConfigError, UnknownNameError: the rest.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification, BertModel
        >>> size = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
        >>> config = BertConfig(**size, num_labels=2)
        >>> experts = {t: BertForSequenceClassification(config) for t in ("news", "tv")}
        >>> merged = mergelib.merge("ties", base=BertModel(config), experts=experts, lam=1.0)
        >>> list(merged.heads)
        ['news', 'tv']
    """
    chosen = get_method(method)
    chosen.check_options(options)
    if base is None and method not in NEEDS_NO_BASE:
        raise ConfigError(
            f"{chosen.label} needs base=, the model that the experts were fine-tuned from."
        )
    parents = named_experts(experts)
    root = None if base is None else open_parent(base, "base")
    for parent in parents:
        _ = parent.model_class
    everyone = [*parents, root] if root else parents
    folders = tuple(p.folder for p in everyone)
    if root:
        *parents, root = everyone = unified(parents, root, processor)
    read = read_inputs(chosen, parents, inputs or {}) if chosen.needs else []
    first = everyone[0]
    for other in everyone[1:]:
        check_same_architecture(first.name, first.config, other.name, other.config)
    processors = processors_of(everyone) if processor is None else [processor] * len(everyone)
    parts = [find_parts(e, root, encoder=encoder, head=head) for e in parents]
    sources = _sources(parents, parts, root)
    lender, names = sources[-1 if root else 0]  # of buffers and dtype
    reader = Reader(sources[: len(parents)], (lender, names), pick_device(device))
    if not reader.shapes:
        raise StateDictError(
            f"The encoder of '{lender.name}' has no floating-point tensors; "
            "there is nothing to merge."
        )
    dtype = dtype or DTYPE_NAMES[lender.weights.dtypes[names[next(iter(reader.shapes))]]]
    check_name("dtype", dtype, DTYPES)
    by_task = _by_task(parents, processors, root)
    data = ()
    if chosen.needs:
        if reader.device.type == "mps":  # it lacks float64
            reader.device = torch.device("cpu")
        data = context_of(parents, parts, by_task, read, reader.device, max_length)
    states = reader.merge(chosen, options, DTYPES[dtype], show_progress, *data)
    record = {
        "mergelib": __version__,
        "method": method,
        "label": chosen.label,
        "options": options,
        "gives": chosen.gives,
        "dtype": dtype,
        "base": None if root is None else root.source,
        "experts": {p.name: p.source for p in parents},
        "parts": parts[0].describe(),
        "streamed": can_stream(chosen),
    }
    heads = [TaskHead.of(p, q, DTYPES[dtype]) for p, q in zip(parents, parts, strict=True)]
    state = states[0]
    if chosen.gives == PER_TASK:
        state = {}
        heads = [replace(h, tensors=h.tensors | own) for h, own in zip(heads, states, strict=True)]
    named, experts = {h.task: h for h in heads}, {p.name: p for p in parents}
    return Merged(state, named, record, by_task, experts, folders)


def _by_task(
    parents: Sequence[Parent], processors: Sequence[Any], root: Parent | None
) -> dict[str, Any]:
    """Each task's processor; for an expert without one, the base's or another expert's."""
    owners = [*zip(parents, processors, strict=False)]
    lenders = [*([(root, processors[-1])] if root else []), *owners]
    lender, lent = next((pair for pair in lenders if pair[1] is not None), (None, None))
    if lent is None:
        return {}
    if lacking := [p.name for p, own in owners if own is None]:
        warn(
            f"{first_five(lacking)} has no tokenizer or image processor in its folder; that of "
            f"'{lender.name}' is used. If it was trained with another one, copy that one's files "
            "there, or give processor=."
        )
    return {p.name: lent if own is None else own for p, own in owners}


Source = tuple[Parent, Mapping[str, str]]
"""A parent, and for each name of the merged encoder, which is that in the first expert's file, the
name in the parent's files."""


def _sources(
    experts: Sequence[Parent], parts: Sequence[Parts], base: Parent | None
) -> list[Source]:
    """Of every expert and then the base. Raises ``StateDictError`` for parents that do not fit
    together."""
    first, names = experts[0], parts[0].encoder
    sources = [(e, first.plan.names_in(e.plan)) for e in experts]
    for (expert, source), part in zip(sources, parts, strict=True):
        differing = sorted({source.get(n, n) for n in names} ^ set(part.encoder))
        if differing or part.head != parts[0].head:
            raise StateDictError(
                f"'{expert.name}' and '{first.name}' have different encoders: only one has "
                f"{first_five(differing) or part.head}."
            )
    if base:
        # the tensors that fine-tuning started from
        begun = base.plan_as(first.model_class, first.config)
        sources.append((base, first.plan.names_in(begun)))
    for parent, source in sources:
        mismatched = [
            f"{n} ({parent.weights.shape(source[n])}, {first.name} {first.weights.shape(n)})"
            for n in names
            if parent.weights.shape(source[n]) != first.weights.shape(n)
        ]
        if mismatched:
            raise StateDictError(
                f"'{parent.name}' differs from '{first.name}' in the shape of "
                f"{', '.join(mismatched[:3])}. Does it have another vocabulary or width?"
            )
        for n in (n for n in names if n in first.plan.buffers):
            if not torch.equal(parent.weights.tensor(source[n]), first.weights.tensor(n)):
                raise StateDictError(
                    f"'{parent.name}' and '{first.name}' differ in {n}, which is not a weight but "
                    "measured from data (such as BatchNorm's running statistics), so that it "
                    "would not fit the merged weights. Merge models without such layers."
                )
    return [(parent, {n: source[n] for n in names}) for parent, source in sources]


class Reader:
    """Base and experts in parallel, in flat float32 pieces."""

    def __init__(self, experts: Sequence[Source], base: Source, device: torch.device):
        self.experts, self.base, self.device = experts, base, device
        buffers, (parent, names) = experts[0][0].plan.buffers, base
        # of the tensors that are merged
        self.shapes = {
            n: parent.weights.shape(raw)
            for n, raw in names.items()
            if n not in buffers and parent.weights.is_float(raw)
        }

    def spans(self) -> Iterator[tuple[str, int | None, int | None]]:
        """Names with the rows to read: small tensors at once, large ones by rows."""
        for name, shape in self.shapes.items():
            step = max(1, PIECE // max(1, math.prod(shape[1:])))
            if not shape or shape[0] <= step:
                yield name, None, None
            else:
                yield from ((name, a, min(shape[0], a + step)) for a in range(0, shape[0], step))

    def pieces(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """theta_b ``[n]`` and the T experts' ``[n]``. Raises ``StateDictError`` for values that are
        not finite."""
        for name, start, stop in self.spans():
            flat = []
            for parent, names in (self.base, *self.experts):
                piece = parent.weights.tensor(names[name], start, stop)
                flat.append(piece.to(self.device, torch.float32).reshape(-1))
                if not all_finite(flat[-1]):
                    raise StateDictError(
                        f"'{parent.name}' holds NaN or inf in {names[name]}. Its training "
                        "diverged or its file is damaged; create it again."
                    )
            yield flat[0], flat[1:]

    def merge(
        self,
        method: Method,
        options: dict[str, Any],
        dtype: torch.dtype,
        show: bool,
        context: Context | None = None,
        places: Mapping[str, str] | None = None,
    ) -> list[dict[str, Tensor]]:
        """The merged encoder, or one per task, on the CPU.

        Args:
            method: the merging method.
            options: the method's.
            dtype: of the merged weights.
            show: whether to show a progress bar, for a method that streams.
            context: what a method gets that needs more than weights, see ``context_of``.
            places: name of a weight -> its name in the context's model; default: the same name.
        """
        parent, source = self.base
        kept = {n: raw for n, raw in source.items() if n not in self.shapes}
        out = {n: parent.weights.tensor(raw).clone() for n, raw in kept.items()}
        if not can_stream(method):
            warn(
                f"{method.label} has no streaming form: "
                f"base and {len(self.experts)} experts are loaded completely."
            )
            places = places or {n: n for n in self.shapes}
            base, *experts = (
                {
                    places[n]: one.weights.tensor(names[n]).to(self.device, torch.float32)
                    for n in self.shapes
                }
                for one, names in (self.base, *self.experts)
            )
            merged = method(base, experts, context, **options)
            return [
                out | {n: _finite(n, state[places[n]].to("cpu", dtype)) for n in self.shapes}
                for state in (merged if method.gives == PER_TASK else [merged])
            ]
        out |= {n: torch.empty(shape, dtype=dtype) for n, shape in self.shapes.items()}
        merged = stream(method, self.pieces, **options)
        spans = progress(list(self.spans()), desc=f"merge {method.name}" * show)
        for (name, start, stop), piece in zip(spans, merged, strict=True):
            target = out[name] if start is None else out[name][start:stop]
            _finite(name, target.copy_(piece.view(target.shape)))
        return [out]


def _finite(name: str, merged: Tensor) -> Tensor:
    """``merged``. Raises ``StateDictError`` for NaN or inf: an option is far too large, or the
    dtype's range is too small for the weights."""
    if not all_finite(merged):
        raise StateDictError(
            f"The merge has NaN or inf in {shortened(name)}. "
            "Use a smaller lambda, or dtype float32 or bfloat16."
        )
    return merged
