"""The training loop: AdamW, clipped gradients, a learning rate that rises and falls linearly, and
checkpoints from which an interrupted run resumes."""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..core import distributed
from ..core.errors import ConfigError, StoreError, warn
from ..core.memory import within_memory
from ..core.progress import progress
from ..core.store import REMEDY
from ..core.types import shuffled
from .config import TrainConfig

MAX_NORM = 1.0  # norm of all gradients together


@contextmanager
def pinned_threads(n: int):
    """Run with n intra-op threads, so that results on one machine are reproducible."""
    previous = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


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
        order = shuffled(n, config.seed + epoch)
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


def backward(model: nn.Module, batch: dict[str, Any], config: TrainConfig) -> Tensor:
    """Add the gradients of a batch's mean loss, piece by piece; returns the loss."""
    first = tree_leaves(batch)[0]
    total = torch.zeros((), device=first.device)
    for part in torch.arange(len(first)).tensor_split(min(config.pieces, len(first))):
        inputs = batch
        if config.pieces > 1:
            inputs = tree_map(lambda t, part=part: t[part[0] : part[-1] + 1], batch)
        with torch.autocast(first.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = model(**inputs)["loss"]
        loss = loss.float() * (len(part) / len(first))
        loss.backward()
        total += loss.detach()
    return total


# ---- checkpoints ---------------------------------------------------------------------------------


def checkpoints(scratch: Path) -> list[Path]:
    """The checkpoints under ``scratch``, the newest last."""
    return sorted(scratch.glob("checkpoint-*.pt"))


def newest_checkpoint(scratch: Path) -> Path | None:
    """The newest intact checkpoint under ``scratch``; damaged ones are removed, with a warning."""
    for file in reversed(checkpoints(scratch)):
        try:
            # torch files are zip archives: their checksums reveal damage without unpickling
            # anything.
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is None:
                    return file
        except Exception:  # zipfile fails on damaged bytes in many ways
            pass
        warn(
            f"{file.name} is damaged; it is removed, and training resumes from the checkpoint "
            "before it, or from the beginning."
        )
        file.unlink(missing_ok=True)
    return None


def write_checkpoint(scratch: Path, step: int, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically, and remove old ones. Raises ``StoreError``."""
    file = scratch / f"checkpoint-{step:07}.pt"
    half = file.with_suffix(".tmp")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        torch.save(state, half)
        half.replace(file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        half.unlink(missing_ok=True)
        raise StoreError(f"Cannot write a checkpoint to {scratch}: {error}. {REMEDY}") from error
    # one older checkpoint is kept, in case the newest is damaged
    for old in checkpoints(scratch)[:-2]:
        old.unlink()


# ---- the loop ------------------------------------------------------------------------------------


def train(
    model: nn.Module,
    rows: Sequence[Any],
    collate: Callable[[list], dict],
    config: TrainConfig,
    *,
    device: torch.device,
    scratch: Path,
    desc: str,
    optional_parts: bool = False,
) -> dict[str, Any]:
    """Train ``model`` in place.

    With ``save_every``, checkpoints go to ``scratch`` and an interrupted run resumes from the
    newest intact one.

    Under torchrun every process calls this and takes its share of each batch of
    ``config.batch_size`` rows; gradients are averaged, and all end with equal weights. These are
    the weights of one process up to rounding, where the loss is a mean over rows, no layer draws
    dropout (each process draws its own), and ``batch_size`` divides the rows (else an epoch's last
    batch is filled up with rows from its beginning; one process takes a short batch).

    Args:
        model: Its forward returns ``{"loss": ...}``.
        rows: The training rows.
        collate: A list of rows -> the model's arguments.
        config: Steps, batch and rate.
        device: Where it trains.
        scratch: Folder for checkpoints; under torchrun the same for all processes.
        desc: The progress line's text.
        optional_parts: Whether some rows do not use some of the model's parameters.

    Returns:
        ``steps`` and ``last_loss`` (a mean over a tenth of the steps).

    Raises:
        StoreError: Checkpoints cannot be written.
        DeviceMemoryError: A piece of a batch, or the optimizer's state, does not fit; names the
            remedy.
        ConfigError: A batch that cannot be shared evenly, or a device that does not support it.
    """
    rank, together = distributed.rank(), distributed.world_size() > 1
    distributed.check_batch(config.batch_size)
    if together and device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"Several processes cannot train on '{device.type}' together: start mergelib without "
            "torchrun, or use cpu or cuda."
        )
    if together:
        distributed.wait_for_all()  # from here on each process has its own GPU
        device = torch.device(device.type)
    generators = [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]
    losses, start = torch.zeros(config.steps), 0
    # the GPU whose random state ``generators`` read
    gpu = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with (
        pinned_threads(config.threads),
        progress(desc=desc, total=config.steps) as bar,
        gpu,
        within_memory(
            f"{desc}: weights, gradients and the optimizer's state do not fit into the memory of "
            f"{device}. Free some of it, or use a smaller encoder or another device."
        ),
    ):
        parallel = model.to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
        torch.manual_seed(config.seed + rank)  # each process draws its own dropout
        newest = newest_checkpoint(scratch) if config.save_every and rank == 0 else None
        if newest := distributed.from_first(newest):
            saved = torch.load(newest, map_location="cpu", weights_only=True)
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
        no_room = (
            f"{desc}: {math.ceil(config.batch_size / config.pieces)} rows do not fit into the "
            f"memory of {device} at once. Raise fine_tuning.pieces, lower batch_size in the "
            "profile's section for it, free memory, or use another device or more processes."
        )
        model.zero_grad()
        batches = shuffled_batches(len(rows), config, start)
        for step in range(start, config.steps):
            batch = collate([rows[i] for i in next(batches)])
            batch = tree_map(lambda t: t.to(device), batch)
            with within_memory(no_room):
                losses[step] = backward(parallel, batch, config)
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.param_groups[0]["lr"] = learning_rate(step, config)
            optimizer.step()
            model.zero_grad()
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
                    write_checkpoint(scratch, done, state)
    window = max(1, config.steps // 10)
    end = config.steps - config.steps % window
    means = distributed.from_all(float(sum(losses[end - window : end])) / window)
    return {"steps": config.steps, "last_loss": round(sum(means) / len(means), 4)}
