"""A device that runs out of memory: what says so, and how it is freed."""

from __future__ import annotations

import torch


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
