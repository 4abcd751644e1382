"""State dicts for merging methods: checks, task vectors, flat views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, StateDictError, first_five
from ..core.types import State, not_finite, place

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Numbers per model in one piece: pieces of a few models fit into a processor's cache.
PIECE = 1 << 17
DEVICE_PIECE = 1 << 24  # on other devices; not more, because float32 counts exactly only up to here


def check_states(base: State, experts: Sequence[State]) -> None:
    """Refuse weights that cannot be merged: other keys, shapes or dtypes than the base, NaN or inf.

    Raises ``StateDictError`` naming the expert (0-based position) and the first five offending
    keys.
    """
    if not isinstance(experts, list | tuple) or not experts:
        raise StateDictError("Nothing to merge: give a list of at least one expert.")
    for i, state in enumerate([base, *experts]):
        who = "The base" if i == 0 else f"Expert {i - 1}"
        _check_kind(who, state)
        missing, extra = sorted(base.keys() - state.keys()), sorted(state.keys() - base.keys())
        if missing or extra:
            said = [f"lacks {first_five(missing)}"] * bool(missing) + [
                f"has extra {first_five(extra)}"
            ] * bool(extra)
            raise StateDictError(
                f"{who} {' and '.join(said)} compared with the base. Merge encoders of one "
                "architecture, "
                "without their heads and with the same key prefix."
            )
        for what, of in (("shape", lambda t: tuple(t.shape)), ("dtype", lambda t: t.dtype)):
            wrong = [
                f"{k} ({of(state[k])}, base {of(base[k])})"
                for k in sorted(base)
                if of(state[k]) != of(base[k])
            ]
            if wrong:
                raise StateDictError(
                    f"{who} differs from the base in {what} at {first_five(wrong)}. Fine-tune "
                    f"from this base, or convert first."
                )
        bad = not_finite(state)
        if bad:
            raise StateDictError(
                f"{who} holds NaN or inf in {first_five(sorted(bad))}. Its training diverged or "
                f"its file is damaged; create it again."
            )


def _check_kind(who: str, state: State) -> None:
    """Refuse anything but a state dict of dense tensors that can be added: other objects, complex
    numbers, 8-bit floats."""
    if not isinstance(state, Mapping) or not all(isinstance(k, str) for k in state):
        raise StateDictError(f"{who} is not a state dict (parameter name -> tensor).")
    odd = [
        k
        for k, t in sorted(state.items())
        if not isinstance(t, Tensor)
        or t.layout is not torch.strided
        or t.is_meta
        or t.is_quantized
        or t.is_complex()
        or (t.is_floating_point() and t.dtype not in FLOATS)
    ]
    if odd:
        raise StateDictError(
            f"{who} needs dense float64, float32, float16, bfloat16 or integer tensors in "
            f"{first_five(odd)}. Convert first."
        )
    if not any(t.is_floating_point() and t.numel() for t in state.values()):
        raise StateDictError(f"{who} has no floating-point numbers; there is nothing to merge.")


def check_merged(who: str, base: State, merged: Sequence[State], n: int) -> None:
    """Refuse anything but a list of ``n`` encoders with the base's keys, shapes and dtypes, all
    finite.

    Raises ``StateDictError``.
    """
    if (
        not isinstance(merged, list | tuple)
        or len(merged) != n
        or not all(isinstance(state, Mapping) for state in merged)
    ):
        raise StateDictError(
            f"{who} must return {n} state dict{'s' * (n > 1)}; its function returned something "
            f"else."
        )
    for state in merged:
        if state.keys() != base.keys():
            raise StateDictError(
                f"{who} returned keys that differ from the base's: "
                f"{first_five(sorted(state.keys() ^ base.keys()))}."
            )
        wrong = [
            f"{k} ({_form(state[k])}, base {_form(t)})"
            for k, t in sorted(base.items())
            if _form(state[k]) != _form(t)
        ]
        if wrong:
            raise StateDictError(
                f"{who} returned shapes or dtypes that differ from the base's in "
                f"{first_five(wrong)}."
            )
        bad = not_finite(state)
        if bad:
            raise StateDictError(f"{who} returned NaN or inf in {first_five(sorted(bad))}.")


def check_direction(who: str, base: State, direction: Any) -> None:
    """Refuse what cannot be scaled and added to the base, tensor by tensor. Raises
    ``StateDictError``."""
    if not isinstance(direction, Mapping) or not direction:
        raise StateDictError(f"{who}: its direction must return one state dict.")
    wrong = [
        f"{k} ({_form(t)}, base {_form(base.get(k))})"
        for k, t in direction.items()
        if _form(t).partition(" ")[2] != _form(base.get(k)).partition(" ")[2]
    ]
    if wrong:
        raise StateDictError(
            f"{who}: its direction differs in shape or dtype from the base in {first_five(wrong)}."
        )


def _form(t: Any) -> str:
    """Dtype and shape for a message, or the type of what is not a tensor."""
    if not isinstance(t, Tensor):
        return f"{type(t).__name__}, not a tensor"
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"


def detached(state: State) -> State:
    """The state detached from any graph; unchanged if no tensor requires a gradient."""
    if not any(t.requires_grad for t in state.values()):
        return state
    return {n: t.detach() for n, t in state.items()}


def check_fraction(
    method_name: str,
    option: str,
    value: float,
    *,
    low: float = 0.0,
    high: float = 1.0,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raises ``ConfigError`` unless ``value`` lies in the range, which NaN never does."""
    if not (
        (value > low if open_low else value >= low)
        and (value < high if open_high else value <= high)
    ):
        raise ConfigError(
            f"{method_name}: {option} must lie in {'(' if open_low else '['}{low:g}, "
            f"{high:g}{')' if open_high else ']'}, not {value}."
        )


def float_names(state: State) -> list[str]:
    """Names of floating-point tensors, sorted, each storage once: of tied tensors only the first
    counts."""
    seen: set[tuple] = set()
    names = []
    for name in sorted(state):
        t = state[name]
        if not t.is_floating_point():
            continue
        if t.numel() and place(t) in seen:
            continue
        seen.add(place(t))
        names.append(name)
    return names


def complete(base: State, changed: dict[str, Tensor]) -> dict[str, Tensor]:
    """``changed`` (by ``float_names``) as a full state dict: other dtypes are copied from the base,
    ties stay tied."""
    by_place = {place(base[n]): t for n, t in changed.items()}
    full = {}
    for name, t in base.items():
        if name in changed:
            full[name] = changed[name]
        elif t.is_floating_point() and t.numel():
            full[name] = by_place[place(t)]
        else:
            full[name] = t.clone()
    return full


def untied(base: State, experts: Sequence[State]) -> State:
    """The base, with its tied tensors untied if an expert holds different values under the tied
    names: merged as one tensor, all values but the first name's would be lost."""
    first: dict[tuple, str] = {}
    apart = {}
    for name in sorted(base):
        source = first.setdefault(place(base[name]), name) if base[name].numel() else name
        if source != name and not all(torch.equal(e[name], e[source]) for e in experts):
            apart[name] = base[name].clone()
    return {**base, **apart} if apart else base


def as_float32(state: State) -> dict[str, Tensor]:
    """The state with floating-point tensors in float32, ties kept, for running data through weights
    of any dtype."""
    return complete(state, {n: state[n].float() for n in float_names(state)})


def empty(like: State, names: Sequence[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Uninitialised tensors with the named ones' shapes, in their dtypes or ``dtype``."""
    return {
        n: torch.empty(like[n].shape, dtype=dtype or like[n].dtype, device=like[n].device)
        for n in names
    }


def piece_size(like: State, names: Sequence[str]) -> int:
    """Length of the longest piece that ``cut`` gives for the named tensors."""
    return min(
        max(like[n].numel() for n in names),
        max(PIECE if like[n].is_cpu else DEVICE_PIECE for n in names),
    )


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
        if flat[0].numel():
            yield from zip(
                *(f.split(PIECE if f.is_cpu else DEVICE_PIECE) for f in flat), strict=True
            )


def add_scaled(base: State, direction: State, lam: float) -> dict[str, Tensor]:
    """theta_b + lam * direction for the names in ``direction``; computed in float32, returned in
    the base's dtype."""
    names = list(direction)
    merged, room = (
        empty(base, names),
        torch.empty(piece_size(base, names), device=base[names[0]].device),
    )
    for b, change, out in cut([base, direction, merged], names):
        out.copy_(torch.mul(change, lam, out=room[: len(out)]).add_(b.float()))
    return complete(base, merged)


Summed = Callable[..., Iterator[tuple[Tensor, Tensor, Tensor]]]
"""``(base, experts, target, **options)`` -> pieces of theta_b, of the merged task vector (float32,
may be overwritten) and of ``target``. If a piece comes twice, the last one counts."""


def direction_of(
    summed: Summed, base: State, experts: Sequence[State], **options: Any
) -> dict[str, Tensor]:
    """The merged task vector, float32."""
    target = empty(base, float_names(base), torch.float32)
    for _, total, out in summed(base, experts, target, **options):
        out.copy_(total)
    return target


def merged_by(
    summed: Summed, base: State, experts: Sequence[State], lam: float, **options: Any
) -> dict[str, Tensor]:
    """theta_b + lam * the merged task vector, which is never in memory all at once: ``add_scaled``
    of ``direction_of``."""
    target = empty(base, float_names(base))
    for b, total, out in summed(base, experts, target, **options):
        out.copy_(total.mul_(lam).add_(b.float()))
    return complete(base, target)


def task_vectors(
    base: State, experts: Sequence[State], change: Callable[[Tensor], Tensor] = lambda tau: tau
) -> list[dict[str, Tensor]]:
    """``change(tau_t)`` per expert and tensor, float32. Experts come in the outer loop and names
    are sorted, which fixes the order of random draws."""
    return [
        {n: change(expert[n].float() - base[n].float()) for n in float_names(base)}
        for expert in experts
    ]


def stacked_task_vectors(base: State, experts: Sequence[State], name: str) -> Tensor:
    """tau_t of one tensor, ``[T, ...]``, float32."""
    return torch.stack([e[name].float() for e in experts]) - base[name].float()


def total(vectors: Sequence[State]) -> dict[str, Tensor]:
    """The sum of task vectors, tensor by tensor."""
    return {n: sum(v[n] for v in vectors) for n in vectors[0]}


def flatten(state: State, names: Sequence[str]) -> Tensor:
    """The named tensors as one float32 vector ``[D]``."""
    return torch.cat([state[n].reshape(-1).float() for n in names])


def unflatten(vector: Tensor, like: State, names: Sequence[str]) -> dict[str, Tensor]:
    """Inverse of ``flatten``: views into ``vector [D]`` with the shapes of ``like``."""
    parts = vector.split([like[n].numel() for n in names])
    return {n: p.view(like[n].shape) for n, p in zip(names, parts, strict=True)}


def flat_task_vectors(
    base: State, experts: Sequence[State], names: Sequence[str]
) -> Iterator[Tensor]:
    """Yield each tau_t over all named tensors, ``[D]`` float32; one after the other, because they
    are large."""
    flat_base = flatten(base, names)
    yield from (flatten(e, names) - flat_base for e in experts)
