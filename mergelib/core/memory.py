"""A device that runs out of memory: what says so, and how it is freed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import DeviceMemoryError


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device's memory was too small: CUDA's own error, or a
    ``RuntimeError`` that accelerate knows as such (MPS, the CPU's allocator)."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


def free_device_memory() -> None:
    """Give what is cached back to the device. Call it outside the ``except`` block: the error's
    traceback holds tensors."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


@contextmanager
def within_memory(message: str) -> Iterator[None]:
    """Where the block runs out of a device's memory, ``DeviceMemoryError`` with ``message``."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise DeviceMemoryError(message) from error
