"""The training loop: AdamW, clipped gradients, a learning rate that rises and falls linearly, and
checkpoints from which an interrupted run resumes."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..core import distributed
from ..core.errors import ConfigError, StoreError
from ..core.memory import within_memory
from ..core.progress import progress
from ..core.store import REMEDY
from .config import TrainConfig

MAX_NORM = 1.0  # norm of all gradients together


@contextmanager
def pinned_threads(n: int):
    """Run with n intra-op threads, so that results on one machine are reproducible."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int):
    """Run a block with its own random state, so that it does not depend on what ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# ---- one step ------------------------------------------------------------------------------------


def shuffled_batches(n: int, config: TrainConfig, start: int) -> Iterator[list[int]]:
    """Yield the row numbers, out of n, of batch ``start`` and all later ones, endlessly; every
    epoch has a new order.

    A single process takes an epoch's last batch short. Several processes each take their share, and
    the last batch is filled up from the epoch's beginning.
    """
    processes, per_epoch = distributed.world_size(), math.ceil(n / config.batch_size)
    first_epoch, place = divmod(start, per_epoch)
    for epoch in itertools.count(first_epoch):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(config.seed + epoch))
        if processes > 1:
            order = order[torch.arange(per_epoch * config.batch_size) % n]
        # as a DataLoader draws: stored weights were trained with one, and dropout depends on it
        if place == 0:
            torch.empty((), dtype=torch.int64).random_()
        for rows in order.split(config.batch_size)[place:]:
            yield rows.tensor_split(processes)[distributed.rank()].tolist()
        place = 0


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a step, counted from 0: it rises from 0 during the warm-up, then falls
    towards 0."""
    warmup = int(config.warmup * config.steps)
    if step < warmup:
        return config.lr * (step / warmup)
    return config.lr * ((config.steps - step) / (config.steps - warmup))


# ---- checkpoints ---------------------------------------------------------------------------------


def read_checkpoint(file: Path) -> dict[str, Any] | None:
    """What ``write_checkpoint`` wrote; None, with a warning, for a damaged file."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch fails on damaged bytes in many ways
        warnings.warn(
            f"{file} is damaged; training starts from the beginning.", UserWarning, stacklevel=3
        )
        return None


def write_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint as a whole. Raises ``StoreError``."""
    half = file.with_suffix(".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, half)
        half.replace(file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        half.unlink(missing_ok=True)
        raise StoreError(f"Cannot write {file}: {error}. {REMEDY}") from error


# ---- the loop ------------------------------------------------------------------------------------


def train(
    model: nn.Module,
    dataset: torch.utils.data.Dataset,
    collate: Callable[[list], dict],
    config: TrainConfig,
    *,
    device: torch.device,
    scratch: Path,
    desc: str,
    optional_parts: bool = False,
) -> dict[str, Any]:
    """Train ``model`` in place.

    With ``save_every``, an interrupted run resumes from its last checkpoint.

    Under torchrun every process calls this and takes its share of each batch of
    ``config.batch_size`` rows; gradients are averaged, and all end with equal weights. These are
    the weights of one process up to rounding, where the loss is a mean over rows, no layer draws
    dropout (each process draws its own), and ``batch_size`` divides the rows (else an epoch's last
    batch is filled up with rows from its beginning; one process takes a short batch).

    Args:
        model: Its forward returns ``{"loss": ...}``.
        dataset: Rows.
        collate: Makes a list of rows the model's arguments.
        config: Steps, rate, precision, seed.
        device: Where to train.
        scratch: A folder for checkpoints, the same for all processes.
        desc: What is trained, for the progress line and for messages.
        optional_parts: Some rows do not use some of the parameters.

    Returns:
        The number of steps and the last logged loss.

    Raises:
        ConfigError: A batch cannot be shared evenly, or several processes cannot use the device.
        DeviceMemoryError: A step does not fit into the device's memory.
        StoreError: A checkpoint cannot be written.
    """
    rank, together = distributed.rank(), distributed.world_size() > 1
    distributed.share_of_batch(config.batch_size)
    if together:
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(
                f"Several processes cannot train on '{device.type}' together: start mergelib "
                "without torchrun, or use cpu or cuda."
            )
        distributed.wait_for_all()  # from here on each process has its own GPU
        device = torch.device(device.type)
    generators = [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]
    losses, start, checkpoint = torch.zeros(config.steps), 0, scratch / "checkpoint.pt"
    # the GPU whose random state ``generators`` read
    gpu = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with (
        pinned_threads(config.threads),
        progress(desc=desc, total=config.steps) as bar,
        gpu,
        within_memory(
            f"{desc}: a step does not fit into the memory of {device}. Lower batch_size in the "
            "profile's section for it, free memory, or use a smaller encoder, another device or "
            "more processes."
        ),
    ):
        parallel = model.to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
        torch.manual_seed(config.seed + rank)  # each process draws its own dropout
        resumes = distributed.from_first(config.save_every > 0 and checkpoint.exists())
        if resumes and (saved := read_checkpoint(checkpoint)):
            start = saved["step"]
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            losses, *states = saved["own"][rank]
            for generator, state in zip(generators, states, strict=True):
                generator.set_rng_state(state)
            bar.update(start)
        if together:  # averages gradients
            parallel = nn.parallel.DistributedDataParallel(
                model, find_unused_parameters=optional_parts
            )
        batches = shuffled_batches(len(dataset), config, start)
        for step in range(start, config.steps):
            batch = collate([dataset[i] for i in next(batches)])
            batch = tree_map(lambda t: t.to(device), batch)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                loss = parallel(**batch)["loss"].float()
            loss.backward()
            losses[step] = loss.detach()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.param_groups[0]["lr"] = learning_rate(step, config)
            optimizer.step()
            bar.update()
            done = step + 1
            if config.save_every and (done % config.save_every == 0 or done == config.steps):
                state = {
                    "step": done,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "own": distributed.from_all([losses, *(g.get_rng_state() for g in generators)]),
                }
                if rank == 0:
                    write_checkpoint(checkpoint, state)
    window = max(1, config.steps // 10)
    end = config.steps - config.steps % window
    means = distributed.from_all(float(sum(losses[end - window : end])) / window)
    return {"steps": config.steps, "last_loss": round(sum(means) / len(means), 4)}
