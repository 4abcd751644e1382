"""``python -m benchmarks --suite gpu``: merging and features at BERT-base's size on one GPU, beside
what its memory and its matrix units allow.

Random weights. ``benchmarks.released`` has the complete table of the profile `paper`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.frame import Table, copy_bandwidth, interleaved, matmul_rate, peak, table, timed
from benchmarks.released import BERT_BASE, arithmetic, flops_of_token
from mergelib.core.errors import ConfigError
from mergelib.merging import METHODS

T, LENGTH = 5, 256
STORED = {
    "float32": "float32",
    "TF32": "TF32",
    "bf16": "float32",
}  # products of float32 tensors beside each arithmetic; bf16 is the ways' own affair
MODELS_MOVED = {"weight_averaging": T + 1, "task_arithmetic": T + 2, "ties": 2 * (T + 1) + 1}
"""Reads and writes of whole models that a merge of T experts cannot do without; Ties reads every
expert twice: for its threshold and for its merge."""


def run(peers: bool = False, parameters: int = 110_000_000, rows: int = 4096) -> list[Table]:
    """Tables of merging and of features. Raises ``ConfigError`` on a machine without an NVIDIA
    GPU."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "The suite 'gpu' needs an NVIDIA GPU; the suites 'merge' and 'features' run on a CPU."
        )
    return [merging(torch.device("cuda"), parameters), *features(torch.device("cuda"), rows)]


def states(device: torch.device, parameters: int) -> list[dict[str, Tensor]]:
    """A base and T experts near it, each of one long and many short tensors, float32."""
    generator = torch.Generator(device).manual_seed(0)
    short, n_short = 768, 1000
    shapes = {"long": parameters - short * n_short, **{f"short.{i}": short for i in range(n_short)}}
    base = {n: torch.randn(size, device=device, generator=generator) for n, size in shapes.items()}
    return [
        base,
        *(
            {
                n: t + 0.01 * torch.randn(t.shape, device=device, generator=generator)
                for n, t in base.items()
            }
            for _ in range(T)
        ),
    ]


def merging(device: torch.device, parameters: int) -> Table:
    """Seconds and peak memory of three merges; bytes that must move over the seconds, as a share of
    the copy bandwidth."""
    base, *experts = states(device, parameters)
    bandwidth, rows = copy_bandwidth(device, 2**32 if device.type == "cuda" else 2**28), []
    times = interleaved(
        {
            name: lambda name=name: METHODS[name](
                base, experts, **({} if name == "weight_averaging" else {"lam": 0.3})
            )
            for name in MODELS_MOVED
        }
    )
    for name, models in MODELS_MOVED.items():
        options = {} if name == "weight_averaging" else {"lam": 0.3}
        moved, most = (
            models * 4 * parameters,
            peak(lambda name=name, options=options: METHODS[name](base, experts, **options)),
        )
        rows.append(
            {
                "merge": METHODS[name].label,
                "seconds": times[name],
                "GB to move": moved / 1e9,
                "share of copy bandwidth": moved / times[name].median / bandwidth,
                "peak beyond inputs (models)": most / (4 * parameters),
            }
        )
    return table(
        f"Merging {T} x {parameters / 1e6:.0f} M parameters, float32, on the GPU",
        rows,
        f"Copy bandwidth {bandwidth / 1e12:.2f} TB/s, bytes read and written both counted. "
        f"{times['ties'].n} runs, in turn.",
    )


# ---- features ------------------------------------------------------------------------------------


class Mean(nn.Module):
    """A BERT and the mean of its outputs, nothing masked: what the released code computes."""

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, ids: Tensor) -> Tensor:
        return self.transformer(input_ids=ids, attention_mask=None).last_hidden_state.mean(1)


def features(
    device: torch.device,
    rows: int,
    batches: tuple[int, ...] = (64, 256),
    shape: dict[str, int] | None = None,
) -> list[Table]:
    """Tokens per second of a BERT-base at 256 positions by precision and batch, and how far
    features lie from float32's."""
    from transformers import BertConfig, BertModel

    shape = shape or BERT_BASE
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=4 * shape["width"],
        max_position_embeddings=shape["positions"],
    )
    exact = Mean(BertModel(config, add_pooling_layer=False)).eval().requires_grad_(False).to(device)
    half = Mean(BertModel(config, add_pooling_layer=False)).eval().requires_grad_(False)
    half.load_state_dict(exact.state_dict())
    half = half.to(device, torch.bfloat16)
    ids = torch.randint(
        1000,
        shape["vocabulary"],
        (rows, LENGTH),
        device=device,
        generator=torch.Generator(device).manual_seed(1),
    )

    def autocast(batch: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return exact(batch)

    ways: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "float32": ("float32", exact),
        "TF32": ("TF32", exact),
        "bf16 (autocast)": ("bf16", autocast),
        "bf16_weights": ("bf16", half),
        "bf16_weights, compiled": ("bf16", torch.compile(half)),
    }
    rates = {}
    for precision in ("float32", "TF32", "bf16"):
        with arithmetic(STORED[precision], device):
            rates[precision] = matmul_rate(
                device, torch.bfloat16 if precision == "bf16" else torch.float32
            )
    per_token, found = flops_of_token(config, LENGTH), []
    with torch.inference_mode():
        reference = torch.cat([exact(part) for part in ids.split(64)])
        for way, (precision, call) in ways.items():
            for batch in batches if precision == "bf16" and "compiled" not in way else batches[-1:]:
                with arithmetic(STORED[precision], device):
                    times = timed(
                        lambda call=call, batch=batch: [call(part) for part in ids.split(batch)],
                        n=3,
                    )
                    z = torch.cat([call(part) for part in ids.split(batch)]).float()
                rate = rows * LENGTH / times.median
                found.append(
                    {
                        "arithmetic": way,
                        "batch": batch,
                        "seconds": times,
                        "tokens/s": rate,
                        "TFLOP/s": rate * per_token / 1e12,
                        "share of the matrix rate": rate * per_token / rates[precision],
                        "relative error": float(
                            ((z - reference).norm(dim=1) / reference.norm(dim=1)).max()
                        ),
                    }
                )
    peaks = [{"arithmetic": p, "TFLOP/s": rate / 1e12} for p, rate in rates.items()]
    said = (
        f"BERT of {shape['layers']} x {shape['width']}, random weights, {rows} inputs of {LENGTH} "
        "tokens, none of them padding; ids already on the device"
    )
    return [
        table("Measured rate of a product of two square matrices", peaks),
        table("Features", found, f"{said}. Relative error: the largest of all inputs."),
    ]


if __name__ == "__main__":  # what runs on any machine, to try the code: tiny sizes on the CPU
    arguments: Any = {
        "device": torch.device("cpu"),
        "rows": 8,
        "batches": (4,),
        "shape": BERT_BASE | {"layers": 1, "width": 64, "heads": 2},
    }
    print(*features(**arguments), merging(torch.device("cpu"), 2_000_000), sep="\n")
