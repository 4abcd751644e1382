"""Recognise that a device ran out of memory."""

from __future__ import annotations

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


@contextmanager
def within_memory(message: str) -> Iterator[None]:
    """Raise ``DeviceMemoryError`` with ``message`` if the block runs out of a device's memory."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise DeviceMemoryError(message) from error
