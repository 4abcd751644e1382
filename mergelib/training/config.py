"""The numbers of one training run; without torch, so that profiles are read at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation of one training run. ``precision`` is "float32" or "bf16" (autocast); AdamW
    without weight decay, linear decay after a warm-up over ``warmup`` (fraction of steps).
    ``save_every`` steps a checkpoint is written. A batch's gradients are added over ``pieces`` of
    it, one after another, for which its loss must be a mean over rows."""

    steps: int
    batch_size: int
    lr: float
    warmup: float = 0.1
    precision: str = "float32"
    threads: int = 2
    save_every: int = 0
    seed: int = 0
    pieces: int = 1


def resolve_precision(precision: str, device: Any) -> str:
    """ "auto" as "bf16" where ``device`` computes in bfloat16 natively, else "float32"; other names
    as they are.

    A CPU without bfloat16 instructions (AVX2 only) emulates them: a training step then takes about
    twenty times as long as in float32.
    """
    if precision != "auto":
        return precision
    import torch  # profiles, which import this file, are read without it

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # ATEN_CPU_CAPABILITY may forbid instructions that the processor has.
        native = (
            device.type == "cpu"
            and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
            and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        )
    return "bf16" if native else "float32"
