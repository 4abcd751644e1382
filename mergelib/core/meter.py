"""The cost of a computation: wall-clock seconds, and the peak memory of its tensors."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SET = torch.ops.aten.set_


def _strided(values: Iterable[object]) -> Iterator[Tensor]:
    for v in values:
        if isinstance(v, Tensor):
            if v.layout == torch.strided:
                yield v
        elif isinstance(v, list | tuple):
            yield from _strided(v)


def _storages(args: Sequence[object], kwargs: Mapping[str, object]) -> set[int]:
    return {t.untyped_storage()._cdata for t in _strided((*args, *kwargs.values()))}


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
        self._alive: dict[int, weakref.ref] = {}
        self._now = self._peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: without this, torch imports its compiler, which takes seconds,
        and asks it before each operation."""
        return False

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
        kwargs = kwargs or {}
        # Storages that were given are looked up late, because most results are new; only ``set_``
        # gives a tensor another storage.
        inputs = _storages(args, kwargs) if function.overloadpacket is SET else None
        result = function(*args, **kwargs)
        for t in _strided((result,)):
            storage = t.untyped_storage()
            if storage._cdata in self._alive or torch._C._is_cow_tensor(t):
                continue
            inputs = _storages(args, kwargs) if inputs is None else inputs
            if storage._cdata not in inputs:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._now += size
        self._peak = max(self._peak, self._now)

        def freed(_: object) -> None:
            self._now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, freed)
