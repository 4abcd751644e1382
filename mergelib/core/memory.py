"""Recognise that a device ran out of memory, and free what it caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import DeviceMemoryError


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that a device ran out of memory: CUDA's own error, or a
    ``RuntimeError`` that accelerate recognises (MPS, the CPU's allocator)."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


def free_device_memory() -> None:
    """Return cached memory to the device. Call it outside the ``except`` block: the error's
    traceback holds tensors."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


@contextmanager
def within_memory(message: str) -> Iterator[None]:
    """Raise ``DeviceMemoryError`` with ``message`` if the block runs out of a device's memory."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise DeviceMemoryError(message) from error
