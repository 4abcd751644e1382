"""Several processes that fine-tune one expert together, as ``torchrun`` starts them.

torchrun tells each process its rank and their number by environment variables; without them there
is one process, with rank 0. Only rank 0 touches the store. It tells the others whether they have to
compute.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch

from .errors import ConfigError
from .store import Artifact, Store

PATIENCE = timedelta(days=1)  # the others wait while rank 0 waits for a lock or fetches a model


def world_size() -> int:
    """The number of processes that work together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """This process's number; process 0 writes, prints and shows progress."""
    return int(os.environ.get("RANK") or 0) if world_size() > 1 else 0


def check_batch(batch_size: int) -> None:
    """Raises ``ConfigError`` if the processes' shares of a batch are not equal: their rows would
    have unequal weights."""
    if batch_size % world_size():
        raise ConfigError(
            f"A batch of {batch_size} rows cannot be shared evenly by {world_size()} processes: "
            "start torchrun with a number of processes that divides it, "
            "or change fine_tuning.batch_size."
        )


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this process works as if there were no others. They wait meanwhile."""
    size = os.environ.pop("WORLD_SIZE", "")
    try:
        yield
    finally:
        os.environ["WORLD_SIZE"] = size


@cache
def _control_group() -> Any:
    """The group for messages between the processes. It uses gloo on the CPU, whichever backend
    carries the gradients."""
    dist = torch.distributed
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0) % torch.cuda.device_count())
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def from_first(value: Any = None) -> Any:
    """Rank 0's value, in every process. All processes must call this; the others' values are
    ignored."""
    if world_size() == 1:
        return value
    box = [value if rank() == 0 else None]
    torch.distributed.broadcast_object_list(box, src=0, group=_control_group())
    return box[0]


def from_all(value: Any) -> list[Any]:
    """The values of all processes, in rank order. All processes must call this."""
    if world_size() == 1:
        return [value]
    box = [None] * world_size()
    torch.distributed.all_gather_object(box, value, group=_control_group())
    return box


def wait_for_all() -> None:
    """Wait until every process has called this."""
    if world_size() > 1:
        torch.distributed.barrier(group=_control_group())


def leave() -> None:
    """End the process group, if there is one, when all work is done: torch warns about groups that
    still exist when the interpreter ends."""
    _control_group.cache_clear()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class SharedStore(Store):
    """A ``Store`` for several processes that ask for the same things in the same order: rank 0
    reads, locks and writes; the others receive what it read, or run ``make`` with it and discard
    their result."""

    def get(self, step: str, key: Mapping[str, Any], make: Callable[[], Artifact]) -> Artifact:
        if rank() > 0:
            message = from_first()
            if message is None:
                make()
                message = from_first()
            return message

        def make_with_all() -> Artifact:
            from_first(None)
            return make()

        return from_first(super().get(step, key, make_with_all))


def shared(store: Store) -> Store:
    """``store``, wrapped so that several processes can share it; with one process, ``store``
    itself."""
    return store if world_size() == 1 or isinstance(store, SharedStore) else SharedStore(store.root)
