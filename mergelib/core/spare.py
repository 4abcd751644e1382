"""Deep copies for user code, which may modify them in any way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .identity import is_ours

T = TypeVar("T")
PLAIN = (int, float, str, bytes, type(None))


def spare(thing: T) -> T:
    """A deep copy: writing to it never reaches the original.

    Tensors that share storage still do so, and none requires a gradient.

    Args:
        thing: Tensors, arrays, modules, mappings, lists, tuples and dataclasses of them, in any
        nesting; the rest is passed on.
    """
    return _spare(thing, {})


def call(function: Callable[..., Any], /, *given: Any, **options: Any) -> Any:
    """What ``function`` gives for copies of ``given`` and ``options`` that it may ruin; what it
    keeps of the result, it may ruin later. A function of ours, which ruins nothing, gets them as
    they are."""
    if is_ours(function):
        return function(*given, **options)
    given, options = spare((given, options))
    return spare(function(*given, **options))


def _spare(x: Any, memo: dict[int, Any]) -> Any:
    """A copy of ``x``; ``memo`` is that of ``copy.deepcopy``: the copies so far, by the id of their
    originals, and the originals themselves, so that no other object gets their id."""
    if isinstance(x, PLAIN):
        return x
    if isinstance(x, Tensor):
        if x.layout is not torch.strided or x.is_quantized:
            return x.detach().clone()
        return copy.deepcopy(x.detach().resolve_conj().resolve_neg(), memo)
    if isinstance(x, np.ndarray):
        return x.copy()
    if id(x) in memo:
        return memo[id(x)]
    if isinstance(x, nn.Module):
        for t in [*x.parameters(), *x.buffers()]:  # deepcopy alone would untie them from states
            own = _spare(t, memo)
            is_parameter = isinstance(t, nn.Parameter)
            memo[id(t)] = nn.Parameter(own, t.requires_grad) if is_parameter else own
        return copy.deepcopy(x, memo)
    if isinstance(x, Mapping):
        made = {k: _spare(v, memo) for k, v in x.items()}
    elif type(x) in (list, tuple):
        made = type(x)(_spare(v, memo) for v in x)
    elif is_dataclass(x) and not isinstance(x, type):
        parts = {f.name: _spare(getattr(x, f.name), memo) for f in fields(x) if f.init}
        made = replace(x, **parts)
    else:
        return x
    memo[id(x)] = made
    memo.setdefault(id(memo), []).append(x)
    return made
