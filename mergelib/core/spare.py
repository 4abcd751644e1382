"""Copies for code that is not ours: it may ruin them, whatever way it writes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
PLAIN = (int, float, str, bytes, type(None))


def spare(thing: T) -> T:
    """A deep copy: no way of writing to it reaches the original.

    Tensors that share a storage still do, and none requires a gradient.

    Args:
        thing: Tensors, modules, mappings, lists, tuples and dataclasses of them, in any nesting;
        the rest is passed on.
    """
    return _spare(thing, {}, {})


def _spare(x: Any, storages: dict[int, torch.UntypedStorage], memo: dict[int, Any]) -> Any:
    if isinstance(x, PLAIN):
        return x
    if isinstance(x, Tensor):
        return _tensor(x.detach(), storages)
    if id(x) in memo:
        return memo[id(x)]
    if isinstance(x, nn.Module):
        for t in [*x.parameters(), *x.buffers()]:
            own = _tensor(t.detach(), storages)
            own = nn.Parameter(own, t.requires_grad) if isinstance(t, nn.Parameter) else own
            memo[id(t)] = own
        return copy.deepcopy(x, memo)  # which also remembers its parts
    elif isinstance(x, Mapping):
        made = {k: _spare(v, storages, memo) for k, v in x.items()}
    elif type(x) in (list, tuple):
        made = type(x)(v if type(v) in PLAIN else _spare(v, storages, memo) for v in x)
    elif is_dataclass(x) and not isinstance(x, type):
        parts = {f.name: getattr(x, f.name) for f in fields(x) if f.init}
        made = replace(x, **{n: _spare(v, storages, memo) for n, v in parts.items()})
    else:
        return x
    memo[id(x)] = made
    return made


def _tensor(t: Tensor, storages: dict[int, torch.UntypedStorage]) -> Tensor:
    known = t.untyped_storage()._cdata
    if known not in storages:
        storages[known] = t.untyped_storage().clone()
    shared = torch.empty(0, dtype=t.dtype, device=t.device)
    return shared.set_(storages[known], t.storage_offset(), t.shape, t.stride())
