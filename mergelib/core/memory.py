"""Recognise that a device ran out of memory, and free what it caches."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import DeviceMemoryError

# What a ``RuntimeError`` says on MPS, of the CPU's allocator, and where cuDNN finds no room.
SAYS = ("out of memory", "can't allocate memory", "CUDNN_STATUS_NOT_SUPPORTED")


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that a device ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in SAYS)
    )


def free_device_memory() -> None:
    """Return cached memory to the device. Call it outside the ``except`` block: the error's
    traceback holds tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


@contextmanager
def within_memory(message: str) -> Iterator[None]:
    """Raise ``DeviceMemoryError`` with ``message`` if the block runs out of a device's memory."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise DeviceMemoryError(message) from error
