"""State dicts for merging methods: checks, task vectors, flat views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import StateDictError, first_five
from ..core.types import State, not_finite, place

Experts = Sequence[State]
"""The T fine-tuned theta_t, with the names, shapes and dtypes of their base theta_b."""
Tensors = dict[str, Tensor]
"""Tensors by name, like ``State``, to be filled or changed."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Numbers per model in one piece: pieces of a few models fit into a processor's cache.
PIECE = 1 << 17
DEVICE_PIECE = 1 << 24  # on other devices; not more, because float32 counts exactly only up to here


def check_states(base: State, experts: Experts) -> None:
    """Refuse weights that cannot be merged.

    Raises:
        StateDictError: The base holds what cannot be added (sparse or complex tensors, 8-bit
            floats), an expert (its 0-based position is named) differs from it, or values are not
            finite.
    """
    if not isinstance(experts, list | tuple) or not experts:
        raise StateDictError("Nothing to merge: give a list of at least one expert.")
    remedy = "Merge encoders of one architecture, fine-tuned from this base, without their heads."
    check_like("The base", base, base, remedy)
    if not any(t.is_floating_point() and t.numel() for t in base.values()):
        raise StateDictError("The base has no floating-point numbers; there is nothing to merge.")
    for i, state in enumerate(experts):
        check_like(f"Expert {i}", state, base, remedy)


def check_like(
    who: str, state: Any, base: State, remedy: str, *, is_direction: bool = False
) -> None:
    """Refuse anything but a state dict with the base's names, shapes and dtypes, all finite. A
    direction may have fewer names and other dtypes.

    Raises ``StateDictError`` naming the first five offending tensors.
    """
    if not isinstance(state, Mapping) or not state or not all(isinstance(n, str) for n in state):
        raise StateDictError(f"{who} is not a state dict (parameter name -> tensor). {remedy}")
    missing = [] if is_direction else sorted(base.keys() - state.keys())
    for verb, names in (("lacks", missing), ("has extra", sorted(state.keys() - base.keys()))):
        if names:
            raise StateDictError(f"{who}, unlike the base, {verb} {first_five(names)}. {remedy}")
    wrong = [
        f"{n} ({_form(t)}, base {_form(base[n])})"
        for n, t in sorted(state.items())
        if not (_can_be_added(t) and t.shape == base[n].shape)
        or not (is_direction or t.dtype == base[n].dtype)
    ]
    if wrong:
        raise StateDictError(
            f"{who} must hold dense tensors of the base's shape and dtype, which is float64, "
            f"float32, float16, bfloat16 or integer; not {first_five(wrong)}. {remedy}"
        )
    if bad := not_finite(state):
        raise StateDictError(
            f"{who} holds NaN or inf in {first_five(sorted(bad))}. Training diverged, a file is "
            "damaged, or an option is too large."
        )


def _form(t: Any) -> str:
    """A tensor's dtype and shape for a message, or the type of what is not a dense tensor."""
    if not isinstance(t, Tensor) or t.layout is not torch.strided or t.is_meta:
        return f"{type(t).__name__}, not a dense tensor"
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"


def _can_be_added(t: Any) -> bool:
    """Whether ``t`` is a dense tensor of whole numbers or of the floats that torch adds."""
    return (
        isinstance(t, Tensor)
        and t.layout is torch.strided
        and not (t.is_meta or t.is_quantized or t.is_complex())
        and (t.dtype in FLOATS or not t.is_floating_point())
    )


def detached(state: State) -> State:
    """The state detached from any graph; unchanged if no tensor requires a gradient."""
    if not any(t.requires_grad for t in state.values()):
        return state
    return {n: t.detach() for n, t in state.items()}


def float_names(state: State) -> list[str]:
    """Names of floating-point tensors that hold numbers, sorted, each storage once: of tied tensors
    only the first counts."""
    first: dict[tuple, str] = {}
    for name in sorted(state):
        t = state[name]
        if t.is_floating_point() and t.numel():
            first.setdefault(place(t), name)
    return list(first.values())


def complete(base: State, changed: Tensors) -> Tensors:
    """``changed`` (by ``float_names``) as a full state dict: other dtypes are copied from the base,
    ties stay tied."""
    by_place = {place(base[n]): t for n, t in changed.items() if t.numel()}
    full = {n: by_place.get(place(t)) for n, t in base.items()} | changed
    return {n: base[n].clone() if t is None else t for n, t in full.items()}


def rounded(base: State, merged: State) -> Tensors:
    """``complete``, with each merged tensor in the base's dtype."""
    return complete(base, {n: t.to(base[n].dtype) for n, t in merged.items()})


def untied(base: State, experts: Experts) -> State:
    """The base, with its tied tensors untied if an expert holds different values under the tied
    names: merged as one tensor, all values but the first name's would be lost."""
    first: dict[tuple, str] = {}
    copies = {}
    for name in sorted(base):
        source = first.setdefault(place(base[name]), name) if base[name].numel() else name
        if source != name and not all(torch.equal(e[name], e[source]) for e in experts):
            copies[name] = base[name].clone()
    return {**base, **copies} if copies else base


def as_float32(state: State) -> Tensors:
    """The state with floating-point tensors in float32, ties kept, for running data through weights
    of any dtype."""
    return complete(state, {n: state[n].float() for n in float_names(state)})


def empty(like: State, names: Sequence[str], dtype: torch.dtype | None = None) -> Tensors:
    """Uninitialised tensors with the named ones' shapes, in their dtypes or ``dtype``."""
    return {
        n: torch.empty(like[n].shape, dtype=dtype or like[n].dtype, device=like[n].device)
        for n in names
    }


def cut(states: Sequence[State], names: Sequence[str]) -> Iterator[tuple[Tensor, ...]]:
    """Pieces ``[n]`` of the named tensors, the same piece of each state at a time, in their dtypes.

    Contiguous tensors are cut into views: writing to a piece of an ``empty`` state writes to the
    state.

    Work of several operations is done piece by piece, so that memory is read once, not once per
    operation, and intermediate results take the room of a piece, not of a model: allocating memory
    costs more than the arithmetic.
    """
    for name in names:
        flat = [state[name].detach().reshape(-1) for state in states]
        size = PIECE if flat[0].is_cpu else DEVICE_PIECE
        yield from zip(*(f.split(size) for f in flat), strict=True)


def add_scaled(base: State, direction: State, lam: float) -> Tensors:
    """theta_b + lam * direction, and theta_b for names that ``direction`` lacks; computed in
    float32, returned in the base's dtype."""
    merged = empty(base, list(direction))
    for b, change, out in cut([base, direction, merged], list(direction)):
        out.copy_(torch.mul(change, lam).add_(b.float()))
    unchanged = {n: base[n].clone() for n in float_names(base) if n not in direction}
    return complete(base, unchanged | merged)


Summed = Callable[..., Iterator[tuple[Tensor, Tensor, Tensor]]]
"""``(base, experts, target, **options)`` -> pieces of theta_b, of the merged task vector (float32,
may be overwritten) and of ``target``. If a piece comes twice, the last one counts."""


def assembled(
    summed: Summed, base: State, experts: Experts, lam: float | None = None, **options: Any
) -> Tensors:
    """theta_b + lam * the merged task vector, which is never in memory all at once; without ``lam``
    that vector itself, float32."""
    target = empty(base, float_names(base), torch.float32 if lam is None else None)
    for b, total, out in summed(base, experts, target, **options):
        out.copy_(total if lam is None else total.mul_(lam).add_(b.float()))
    return target if lam is None else complete(base, target)


def task_vectors(
    base: State, experts: Experts, change: Callable[[Tensor], Tensor] = lambda tau: tau
) -> list[Tensors]:
    """``change(tau_t)`` per expert and tensor, float32. Experts come in the outer loop and names
    are sorted, which fixes the order of random draws."""
    return [
        {n: change(expert[n].float() - base[n].float()) for n in float_names(base)}
        for expert in experts
    ]


def stacked_task_vectors(base: State, experts: Experts, name: str) -> Tensor:
    """tau_t of one tensor, ``[T, ...]``, float32."""
    return torch.stack([e[name].float() for e in experts]) - base[name].float()


def total(vectors: Sequence[State]) -> Tensors:
    """The sum of task vectors, tensor by tensor."""
    return {n: sum(v[n] for v in vectors) for n in vectors[0]}


def flatten(state: State, names: Sequence[str]) -> Tensor:
    """The named tensors as one float32 vector ``[D]``."""
    return torch.cat([state[n].reshape(-1).float() for n in names])


def unflatten(vector: Tensor, like: State, names: Sequence[str]) -> Tensors:
    """Inverse of ``flatten``: views into ``vector [D]`` with the shapes of ``like``."""
    parts = vector.split([like[n].numel() for n in names])
    return {n: p.view(like[n].shape) for n, p in zip(names, parts, strict=True)}


def flat_task_vectors(base: State, experts: Experts, names: Sequence[str]) -> Iterator[Tensor]:
    """Yield each tau_t over all named tensors, ``[D]`` float32; one after the other, because they
    are large."""
    flat_base = flatten(base, names)
    yield from (flatten(e, names) - flat_base for e in experts)
