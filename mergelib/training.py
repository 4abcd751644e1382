"""The one place where weights are trained: `transformers.Trainer` with text progress, resume and
pinned threads."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from . import distributed
from .errors import ConfigError, DeviceMemoryError, MergelibError, StoreError
from .memory import free_device_memory, out_of_memory
from .progress import progress
from .store import REMEDY


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation of one training run. ``precision`` is "float32" or "bf16" (autocast); AdamW
    without weight decay, linear decay after a warm-up over ``warmup`` (fraction of steps).
    ``save_every`` steps a checkpoint is written."""

    steps: int
    batch_size: int
    lr: float
    warmup: float = 0.1
    precision: str = "float32"
    threads: int = 2
    save_every: int = 0
    seed: int = 0


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto" as "bf16" where ``device`` computes in bfloat16 natively, else "float32"; other names
    as they are.

    A CPU without bfloat16 instructions (AVX2 only) emulates them: a training step then takes about
    twenty times as long as in float32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return "bf16" if native else "float32"


@contextmanager
def pinned_threads(n: int):
    """Run with n intra-op threads: equal pins give equal bytes on one machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def newest_checkpoint(scratch: Path) -> str | None:
    """The newest whole checkpoint under ``scratch``; damaged ones (a kill in mid-write) are
    removed, with a warning."""
    numbered = [p for p in scratch.glob("checkpoint-*") if p.name.split("-")[1].isdigit()]
    for folder in sorted(numbered, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text())
            n = distributed.world_size()
            names = [
                "pytorch_model.bin",
                "optimizer.pt",
                "scheduler.pt",
                *(["rng_state.pth"] if n == 1 else [f"rng_state_{i}.pth" for i in range(n)]),
            ]
            # torch files are zip archives: their checksums tell damage without unpickling anything.
            if all(zipfile.ZipFile(folder / name).testzip() is None for name in names):
                return str(folder)
        except (OSError, ValueError, zipfile.BadZipFile):
            pass
        warnings.warn(
            f"checkpoint {folder.name} is damaged and cannot be resumed; it is removed, training "
            f"goes on from the "
            "one before it, or from the beginning.",
            UserWarning,
            stacklevel=2,
        )
        shutil.rmtree(folder, ignore_errors=True)
    return None


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
    mean_over_rows: bool = False,
) -> dict[str, Any]:
    """Train ``model`` (its forward returns ``{"loss": ...}``) in place; returns the last logged
    loss. ``optional_parts``: some rows pass by some of its parameters. ``mean_over_rows``: the loss
    is a mean over the batch's rows, along which every tensor of it can be cut.

    With ``save_every``, checkpoints go to ``scratch`` and an interrupted run resumes from the
    newest whole one. Raises ``StoreError`` where they cannot be written.

    Where the device runs out of memory and the loss is a mean over rows, a batch goes through the
    model in halves, quarters and so on, whose gradients are added, with a warning; the returned
    ``pieces`` says so. The result is that of whole batches up to rounding and to what dropout
    draws. Elsewhere, or where one row is too much, ``DeviceMemoryError`` names the remedy.

    Under torchrun every process calls this and takes its share of each batch of
    ``config.batch_size`` rows; gradients are averaged, and all end with equal weights. These are
    the weights of one process up to rounding, where the loss is a mean over rows, no layer draws
    dropout (each process draws its own), and ``batch_size`` divides the rows (else an epoch's last
    batch is filled up with rows from its beginning; one process takes a short batch). ``scratch``
    must be one folder for all. Raises ``ConfigError`` for a batch that cannot be shared evenly, or
    a device that cannot take part.
    """
    together = distributed.world_size() > 1
    share = distributed.share_of_batch(config.batch_size)
    if together and device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"Several processes cannot train on '{device.type}' together: start mergelib without "
            f"torchrun, or take cpu or cuda."
        )
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class TextProgress(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = progress(desc=desc, total=state.max_steps)
            self.bar.update(state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(1)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=config.steps,
        per_device_train_batch_size=share,
        learning_rate=config.lr,
        weight_decay=0.0,
        warmup_steps=int(config.warmup * config.steps),
        lr_scheduler_type="linear",
        bf16=config.precision == "bf16",
        use_cpu=device.type == "cpu",
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=max(1, config.steps // 10),
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        log_level="error",
        ddp_backend="gloo" if together and device.type == "cpu" else None,
        # one process's rows may all pass by what another's need
        ddp_find_unused_parameters=optional_parts,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else the Trainer would take batch_size rows per visible GPU

    class QuietTrainer(Trainer):
        pieces, share_of_rows = 1, 1.0

        def training_step(self, model, inputs, num_items_in_batch=None):
            rows = len(tree_leaves(inputs)[0])
            while True:
                try:
                    return self._step_in_pieces(model, inputs, rows)
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    if together or not mean_over_rows or self.pieces >= rows:
                        raise DeviceMemoryError(
                            f"{desc}: a batch of {rows} "
                            f"rows{f', in {self.pieces} pieces,' * (self.pieces > 1)} does not "
                            f"fit into the "
                            f"memory of {device}. Lower batch_size in the profile's section for "
                            f"it, free memory, or "
                            f"{'start more processes' if together else 'take another device'}."
                        ) from error
                self.pieces = min(2 * self.pieces, rows)
                model.zero_grad(set_to_none=True)  # the failed step's; nothing else is accumulated
                free_device_memory()
                warnings.warn(
                    f"{desc}: out of memory on {device} with a batch of {rows} rows; it goes "
                    f"through in {self.pieces} pieces from now on, whose "
                    "gradients are added.",
                    UserWarning,
                    stacklevel=2,
                )

        def _step_in_pieces(self, model, inputs, rows):
            if self.pieces == 1:
                return super().training_step(model, inputs)
            losses = []
            for part in torch.arange(rows).tensor_split(min(self.pieces, rows)):
                self.share_of_rows = len(part) / rows
                losses.append(
                    super().training_step(
                        model, tree_map(lambda t, part=part: t[part[0] : part[-1] + 1], inputs)
                    )
                )
            return torch.stack(losses).sum()

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss if self.pieces == 1 else loss * self.share_of_rows

        def _save_checkpoint(self, model, trial):
            try:
                super()._save_checkpoint(model, trial)
            except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
                shutil.rmtree(scratch / f"checkpoint-{self.state.global_step}", ignore_errors=True)
                raise StoreError(
                    f"Cannot write a checkpoint to {scratch}: {error}. {REMEDY}"
                ) from error

        def log(self, logs, start_time=None):
            self.state.log_history.append({**logs, "step": self.state.global_step})

        def save_model(self, output_dir=None, _internal_call=False):
            # The Trainer's own safetensors writer wants a PreTrainedModel; a state dict is all that
            # resume needs.
            if not self.args.should_save:
                return
            target = Path(output_dir or self.args.output_dir)
            target.mkdir(parents=True, exist_ok=True)
            torch.save(self.model.state_dict(), target / "pytorch_model.bin")

        def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
            path = Path(resume_from_checkpoint) / "pytorch_model.bin"
            self.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    with pinned_threads(config.threads), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        first = config.save_every and distributed.rank() == 0
        try:
            trainer = QuietTrainer(
                model=model,
                args=arguments,
                train_dataset=dataset,
                data_collator=collate,
                callbacks=[TextProgress()],
            )  # puts the weights on the device
            trainer.remove_callback(PrinterCallback)
            if together:
                torch.manual_seed(
                    config.seed + distributed.rank()
                )  # equal weights, but dropout of one's own
            trainer.train(
                resume_from_checkpoint=distributed.from_first(
                    newest_checkpoint(scratch) if first else None
                )
            )
        except RuntimeError as error:
            if isinstance(error, MergelibError) or not out_of_memory(error):
                raise
            raise DeviceMemoryError(
                f"{desc}: weights, gradients and the optimizer's state do not fit into the "
                f"memory of {device}. Free some of it, "
                "or take a smaller encoder or another device."
            ) from error
        distributed.wait_for_all()  # nobody still writes to scratch when rank 0 removes it
    losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    return {
        "steps": config.steps,
        "last_loss": round(float(losses[-1]), 4) if losses else None,
        **({"pieces": trainer.pieces} if trainer.pieces > 1 else {}),
    }
