"""Run an encoder over inputs, once: inputs -> features ``[N, d]``, which everything later is
computed from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, DeviceMemoryError, warn
from ..core.memory import out_of_memory, within_memory
from ..core.progress import progress
from ..core.types import Inputs
from . import Encoder

FEATURES_VERSION = 1
PRECISIONS = ("float32", "bf16", "bf16_weights")


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA if there is one, else the CPU. Apple's ``mps`` must be named, since some of
    its linear algebra is untested.

    Raises ``ConfigError`` for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device '{name}' cannot be used here ({error}); try 'auto' or 'cpu'."
        ) from error
    return torch.device(name)


def extract(encoder: Encoder, model: nn.Module, inputs: Inputs, **options: Any) -> Tensor:
    """Features ``[N, d]`` (float32, on the CPU) of N inputs.

    Args:
        encoder: The preprocessing.
        model: The encoder's ``module`` with the weights to use.
        inputs: N texts, or images uint8 ``[N, 3, S, S]``.
        options: Of ``extract_prepared``.
    """
    return extract_prepared(encoder, model, encoder.prepare(inputs), **options)


@torch.inference_mode()
def extract_prepared(
    encoder: Encoder,
    model: nn.Module,
    prepared: Sequence[Any],
    *,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    desc: str = "",
    dropout: bool = False,
    precision: str = "float32",
) -> Tensor:
    """Features ``[N, d]`` (float32, on the CPU) of N prepared inputs in evaluation mode, in the
    inputs' order.

    Inputs are batched by length, so little padding is computed; padding and batch mates change a
    feature by less than 1e-6. If the device runs out of memory, the batch is halved and the work
    continues, with a warning.

    Args:
        encoder: The preprocessing.
        model: The encoder's ``module`` with the weights to use.
        prepared: N rows, as ``encoder.prepare`` gives them.
        batch_size: Rows at once.
        device: Where the model runs.
        desc: Turns on a progress line.
        dropout: Keeps the encoder in training mode, as the authors' code does while it fits a head;
            features are then random.
        precision: "float32"; "bf16" computes matrix products in bfloat16 and everything else in
            float32 (autocast); "bf16_weights" runs a copy of the model that is bfloat16 throughout,
            which is faster on a GPU and less accurate.

    Raises:
        DeviceMemoryError: The weights or a single input do not fit.
        ConfigError: Another precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"Precision '{precision}' is unknown; choose from {', '.join(PRECISIONS)}."
        )
    order = sorted(range(len(prepared)), key=lambda i: (encoder.length(prepared[i]), i))
    with within_memory(
        f"The encoder's weights do not fit into the memory of {device}: "
        "free some of it, or take device 'cpu'."
    ):
        if precision == "bf16_weights":
            model = copy.deepcopy(model).to(torch.bfloat16)
        model = model.to(device).train(dropout)
    dtype, device = next(model.parameters()).dtype, torch.device(device)
    features, done = [torch.empty(0, encoder.width, device=device)], 0
    products = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with progress(desc=desc, total=len(order)) as bar, products:
        while done < len(order):
            rows = order[done : done + batch_size]
            batch = encoder.collate([prepared[i] for i in rows])
            try:
                features.append(model(**_sent(batch, device, dtype)).float())
                done += len(rows)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise DeviceMemoryError(
                        f"One input alone does not fit into the memory of {device}: free some of "
                        "it, shorten inputs (encoder.max_length), or take device 'cpu'."
                    ) from error
                batch_size = (len(rows) + 1) // 2
                warn(
                    f"Out of memory on {device} with {len(rows)} inputs at once; continuing with "
                    f"{batch_size}. Set encoder.batch_size to {batch_size} to avoid this warning."
                )
            bar.update(done - bar.n)
    return torch.cat(features).cpu()[torch.tensor(order).argsort()]


def _sent(batch: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The batch on the device, sent without waiting for running computations; floating-point
    values in the model's dtype."""
    if device.type == "cuda":
        batch = {name: values.pin_memory() for name, values in batch.items()}
    return {
        name: values.to(device, dtype if values.is_floating_point() else None, non_blocking=True)
        for name, values in batch.items()
    }
