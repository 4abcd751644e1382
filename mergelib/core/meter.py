"""The cost of a computation: wall-clock seconds, and the peak memory of its tensors."""

from __future__ import annotations

import time
import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _strided(tree: object) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.layout == torch.strided]


class Meter(TorchDispatchMode):
    """``with Meter() as meter: ...``; then ``meter.cost`` holds ``seconds`` and ``peak_mb`` (10^6
    bytes).

    It counts the storages of tensors created inside the block, on every device, from their first
    appearance as an operation's result until they are freed; it does not count a kernel's scratch
    space, sparse tensors, copies that are deferred to the first write, or what existed before.
    Unlike the process's memory, the count is the same in every run. Metering slows each operation
    by some microseconds, which are included in the seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self._now = self._peak = 0

    def __enter__(self) -> Meter:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # work queued before does not count
        self._start = time.perf_counter()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.cost = {"seconds": time.perf_counter() - self._start, "peak_mb": self._peak / 1e6}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {t.untyped_storage()._cdata for t in _strided((args, kwargs))}
        made = function(*args, **(kwargs or {}))
        for t in _strided(made):
            if t.untyped_storage()._cdata not in before and not torch._C._is_cow_tensor(t):
                self._count(t.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = size
        self._now += size
        self._peak = max(self._peak, self._now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)
