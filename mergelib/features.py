"""Run an encoder over inputs, once: inputs -> features ``[N, d]``, the narrow point of the road."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .encoders import Encoder
from .errors import ConfigError
from .progress import progress
from .types import Inputs

FEATURES_VERSION = 1


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA, else the CPU; Apple's ``mps`` is taken only when named, some of its linear algebra being untried.

    Raises ``ConfigError`` for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' cannot be used here ({error}); try 'auto' or 'cpu'.") from error
    return torch.device(name)


@torch.inference_mode()
def extract(encoder: Encoder, model: nn.Module, inputs: Inputs, *, batch_size: int = 128,
            device: torch.device | str = "cpu", desc: str | None = None, dropout: bool = False) -> Tensor:
    """Features ``[N, d]`` (float32, on the CPU) of N inputs in evaluation mode, in the inputs' order.

    Inputs are batched by length, so little padding is computed; padding and batch mates change a feature by less than
    1e-6. ``desc`` switches a progress line on. ``dropout`` leaves the encoder in training mode, as the authors' code does
    while it fits a head; features are then random.
    """
    prepared = encoder.prepare(inputs)
    order = sorted(range(len(prepared)), key=lambda i: (encoder.length(prepared[i]), i))
    features = torch.empty(len(prepared), encoder.width)
    model = model.to(device).train(dropout)
    starts = range(0, len(order), batch_size)
    for start in progress(starts, desc=desc) if desc else starts:
        rows = order[start : start + batch_size]
        batch = {k: v.to(device) for k, v in encoder.collate([prepared[i] for i in rows]).items()}
        features[rows] = model(**batch).float().cpu()
    return features
