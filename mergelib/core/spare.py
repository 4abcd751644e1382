"""Deep copies for user code, which may modify them in any way."""

from __future__ import annotations

import copy
import weakref
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
    return _spare(thing, torch.UntypedStorage.clone, {}, {})


def call(function: Callable[..., Any], /, *given: Any, **options: Any) -> Any:
    """What ``function`` gives for copies of ``given`` and ``options`` that it may ruin; what it
    keeps of the result, it may ruin later. A function of ours, which ruins nothing, gets them as
    they are.

    A tensor is copied when it is written to or its address is asked for (``numpy()``), not before;
    what outlives the call is then copied, too.
    """
    if is_ours(function):
        return function(*given, **options)
    storages: Storages = {}
    copies, options = _spare((given, options), _on_write, storages, {})
    refs = [weakref.ref(copied) for _, copied in storages.values()]
    shared = {copied._cdata for _, copied in storages.values()}
    del storages
    kept: Storages = {}
    result = _spare(function(*copies, **options), _on_write, kept, {})
    for storage, copied in kept.values():
        if storage._cdata in shared:  # with ``given``
            copied.data_ptr()
    storage = None
    del copies, options, kept
    for storage in filter(None, (ref() for ref in refs)):
        storage.data_ptr()
    return result


def _on_write(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A copy that torch makes when the first of the two is written to; a real one of memory that
    torch did not allocate (a file's, numpy's)."""
    try:
        original = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        return torch._lazy_clone(original).untyped_storage()
    except RuntimeError:
        return storage.clone()


Storages = dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]]
"""Address -> original (kept alive, so that no other one gets its address) and copy."""
Copy = Callable[[torch.UntypedStorage], torch.UntypedStorage]


def _spare(x: Any, clone: Copy, storages: Storages, memo: dict[int, Any]) -> Any:
    if isinstance(x, PLAIN):
        return x
    if isinstance(x, Tensor):
        if x.layout is not torch.strided or x.is_quantized:
            return x.detach().clone()
        return _tensor(x.detach().resolve_conj().resolve_neg(), clone, storages)
    if isinstance(x, np.ndarray):
        return x.copy()
    if id(x) in memo:
        return memo[id(x)]
    if isinstance(x, nn.Module):
        for t in [*x.parameters(), *x.buffers()]:
            new = _tensor(t.detach(), clone, storages)
            new = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new
            memo[id(t)] = new
        return copy.deepcopy(x, memo)  # which also records its parts
    elif isinstance(x, Mapping):
        result = {k: _spare(v, clone, storages, memo) for k, v in x.items()}
    elif type(x) in (list, tuple):
        result = type(x)(v if type(v) in PLAIN else _spare(v, clone, storages, memo) for v in x)
    elif is_dataclass(x) and not isinstance(x, type):
        parts = {f.name: getattr(x, f.name) for f in fields(x) if f.init}
        result = replace(x, **{n: _spare(v, clone, storages, memo) for n, v in parts.items()})
    else:
        return x
    memo[id(x)] = result
    memo.setdefault(id(memo), []).append(x)  # kept alive, as deepcopy does
    return result


def _tensor(t: Tensor, clone: Copy, storages: Storages) -> Tensor:
    address = t.untyped_storage()._cdata
    if address not in storages:
        storages[address] = t.untyped_storage(), clone(t.untyped_storage())
    shared = torch.empty(0, dtype=t.dtype, device=t.device)
    return shared.set_(storages[address][1], t.storage_offset(), t.shape, t.stride())
