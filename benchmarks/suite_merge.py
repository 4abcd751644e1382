"""``python -m benchmarks --suite merge [--peers]``: merging five models of BERT-base's size, in
memory and from disk to disk.

In memory: Weight Averaging, Task Arithmetic and Ties (keep 20 %, sum), each in a process of its
own, beside FusionBench's algorithms on the same tensors, in turn. Bytes are those that no
implementation gets below: each model read once (by Ties twice: its thresholds need all of it
first), one written. From disk to disk: ``benchmarks.merge_disk``, beside mergekit on the same
folders.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.frame import Table, Times, copy_bandwidth, interleaved, peak, table, timed, watched
from mergelib.merging import get_method

OPTIONS = {
    "weight_averaging": {},
    "task_arithmetic": {"lam": 0.3},
    "ties": {"lam": 0.3, "keep": 0.2},
}
LAMS = [0.1 * i for i in range(1, 11)]
EXPERTS = 5

Shapes = Mapping[str, tuple[int, ...]]


def bert_shapes(
    layers: int = 12, width: int = 768, vocabulary: int = 30522, positions: int = 512
) -> dict[str, tuple[int, ...]]:
    """Shapes of BERT's tensors; no dots in the names, which peers keep as parameters of one
    module."""
    shapes = {
        "words": (vocabulary, width),
        "positions": (positions, width),
        "types": (2, width),
        "norm": (width,),
        "norm_bias": (width,),
        "pooler": (width, width),
        "pooler_bias": (width,),
    }
    for i in range(layers):
        for part in ("query", "key", "value", "out"):
            shapes |= {f"l{i}_{part}": (width, width), f"l{i}_{part}_bias": (width,)}
        shapes |= {
            f"l{i}_up": (4 * width, width),
            f"l{i}_up_bias": (4 * width,),
            f"l{i}_down": (width, 4 * width),
            f"l{i}_down_bias": (width,),
        }
        shapes |= {f"l{i}_norm{j}{kind}": (width,) for j in (1, 2) for kind in ("", "_bias")}
    return shapes


def random_states(
    shapes: Shapes, n_experts: int, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A base and experts near it, float32; the same in every process."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise(shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).mul_(scale)

    base = {n: noise(s, 0.05) for n, s in shapes.items()}
    return base, [
        {n: noise(t.shape, 0.01).add_(t) for n, t in base.items()} for _ in range(n_experts)
    ]


def models_moved(method: str, n_experts: int) -> int:
    """Models that have to be read or written."""
    return {
        "weight_averaging": n_experts + 1,
        "task_arithmetic": n_experts + 2,
        "ties": 2 * (n_experts + 1) + 1,
    }[method]


def one_more(size: int, keep: float) -> float:
    """FusionBench's Ties keeps int(D * keep) + 1 entries: the fraction at which ours does."""
    return (int(size * keep) + 1.5) / size


# ---- FusionBench ---------------------------------------------------------------------------------


def module(state: Mapping[str, Tensor]) -> nn.Module:
    """The state as a module, on the same memory."""
    return nn.ParameterDict({n: nn.Parameter(t, requires_grad=False) for n, t in state.items()})


def peer_call(
    method: str, base: Mapping[str, Tensor], experts: list[dict[str, Tensor]]
) -> Callable[[], nn.Module]:
    """FusionBench's algorithm of the same name, told to keep its inputs where it can be: Ties
    writes over its base, so it gets a copy."""
    import fusion_bench
    from fusion_bench.method import (
        SimpleAverageAlgorithm,
        TaskArithmeticAlgorithm,
        TiesMergingAlgorithm,
    )

    pool = {f"e{t}": module(e) for t, e in enumerate(experts)}
    if method == "weight_averaging":
        algorithm = SimpleAverageAlgorithm(inplace=False)
    elif method == "task_arithmetic":
        pool["_pretrained_"] = module(base)
        algorithm = TaskArithmeticAlgorithm(scaling_factor=OPTIONS[method]["lam"], inplace=False)
    else:
        pool["_pretrained_"] = module({n: t.clone() for n, t in base.items()})
        algorithm = TiesMergingAlgorithm(
            scaling_factor=OPTIONS[method]["lam"],
            threshold=OPTIONS[method]["keep"],
            remove_keys=[],
            merge_func="sum",
        )

    def call() -> nn.Module:
        with contextlib.redirect_stdout(io.StringIO()):
            return algorithm.run(fusion_bench.BaseModelPool(pool))

    return call


# ---- in memory -----------------------------------------------------------------------------------


def measure(
    method: str, shapes: Shapes, *, peers: bool, n: int, n_experts: int = EXPERTS
) -> dict[str, Any]:
    """One method in this process: seconds and peak of ours and of the peer, largest difference
    between the two, seconds of a lambda grid."""
    base, experts = random_states(shapes, n_experts)
    size = sum(t.numel() for t in base.values())
    found, options = get_method(method), dict(OPTIONS[method])
    if "keep" in options:
        options["keep"] = one_more(size, options["keep"])

    def ours() -> dict[str, Tensor]:
        return found(base, experts, **options)

    def grid() -> None:
        for _ in found.scan(
            base, experts, LAMS, **{o: v for o, v in options.items() if o != "lam"}
        ):
            pass

    made = {
        "parameters": size,
        "model": 4 * size,
        "bandwidth": copy_bandwidth(),
        "threads": torch.get_num_threads(),
    }
    reference = ours()
    made["ours"], made["ours_peak"] = vars(timed(ours, n)), peak(ours)
    if found.has_lam:
        made["grid"] = vars(timed(grid, max(1, n // 2), warmup=0))
    if peers:
        call = peer_call(method, base, experts)
        theirs = call().state_dict()
        made["differs"] = max(float((reference[k] - theirs[k]).abs().max()) for k in reference)
        del reference, theirs
        made["peer_peak"] = peak(call)
        both = interleaved({"ours": ours, "peer": call}, 2 if method == "ties" else n, warmup=0)
        made["ours"], made["peer"] = vars(both["ours"]), vars(both["peer"])
    return made


def in_a_process(*arguments: str) -> dict[str, Any]:
    """What this module prints as JSON for the arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.suite_merge", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def memory_tables(results: Mapping[str, dict[str, Any]], n_experts: int = EXPERTS) -> list[Table]:
    """Seconds and peaks beside the peer's, bytes beside the copy bandwidth, lambda grids."""
    first = next(iter(results.values()))
    rows, grids = [], []
    for method, r in results.items():
        ours, moved = Times(**r["ours"]), models_moved(method, n_experts) * r["model"]
        row = {
            "method": get_method(method).label,
            "seconds": ours,
            "GB moved": moved / 1e9,
            "share of copy bandwidth": moved / ours.median / r["bandwidth"],
            "peak beyond inputs, models": r["ours_peak"] / r["model"],
        }
        if "peer" in r:
            row |= {
                "FusionBench, seconds": Times(**r["peer"]),
                "ratio": r["peer"]["median"] / ours.median,
                "FusionBench, peak": r["peer_peak"] / r["model"],
                "largest difference": f"{r['differs']:.1e}",
            }
        rows.append(row)
        if "grid" in r:
            grid = Times(**r["grid"])
            floor = (models_moved(method, n_experts) - 1 + 3 * len(LAMS)) / models_moved(
                method, n_experts
            )
            grids.append(
                {
                    "method": get_method(method).label,
                    f"{len(LAMS)} lambdas, seconds": grid,
                    "merges": grid.median / ours.median,
                    "merges, by bytes": floor,
                }
            )
    title = (
        f"{n_experts} experts of {first['parameters'] / 1e6:.0f} M parameters, float32, in memory"
    )
    note = (
        f"Median (lowest–highest) of {first['ours']['n']} runs, Ties of "
        f"{results['ties']['ours']['n']} where a peer runs; {first['threads']} threads; one model "
        f"{first['model'] / 1e9:.2f} GB. Copy bandwidth, read and written: "
        f"{min(r['bandwidth'] for r in results.values()) / 1e9:.1f} to "
        f"{max(r['bandwidth'] for r in results.values()) / 1e9:.1f} GB/s. Our seconds hold the "
        f"checks of keys, shapes and finite values; FusionBench makes none."
    )
    return [
        table(title, rows, note),
        table(
            "A lambda grid in merges",
            grids,
            "By bytes: what the experts' reads cost once and each lambda's two reads and a "
            "write, over one merge.",
        ),
    ]


# ---- from disk to disk ---------------------------------------------------------------------------


def mergekit_merge(folder: Path, method: str, n_experts: int) -> float:
    """Seconds that mergekit takes from the same folders to a saved one."""
    import logging

    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    logging.disable(logging.WARNING)
    parameters = {"weight": 1.0} | (
        {"density": OPTIONS[method]["keep"]} if method == "ties" else {}
    )
    config = {
        "merge_method": {"weight_averaging": "linear"}.get(method, method),
        "dtype": "float32",
        "models": [
            {"model": str(folder / f"expert{i}"), "parameters": parameters}
            for i in range(n_experts)
        ],
    }
    if method != "weight_averaging":
        config |= {
            "base_model": str(folder / "base_classifier"),
            "parameters": {"lambda": OPTIONS[method]["lam"], "normalize": False},
        }
    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    tiny = {"merge_method": "linear", "dtype": "float32"}
    tiny["models"] = [
        {"model": str(folder / f"tiny{i}"), "parameters": {"weight": 1.0}} for i in range(2)
    ]
    with tempfile.TemporaryDirectory(dir=folder) as out:  # as ours: the first brings in imports
        run_merge(MergeConfiguration.model_validate(tiny), out, options)
        run = partial(run_merge, MergeConfiguration.model_validate(config), out, options)
        return timed(run, n=1, warmup=0).median


def disk_table(*, peers: bool, n_experts: int = EXPERTS, repeats: int = 1) -> Table:
    """``benchmarks.merge_disk`` and mergekit on the same folders, each merge in a process of its
    own."""
    from benchmarks import merge_disk

    rows = []
    with tempfile.TemporaryDirectory(prefix="mergelib-disk-") as scratch:
        size = merge_disk.write_models(Path(scratch), n_experts)
        for method in OPTIONS:
            runs = [merge_disk.in_a_process(scratch, method, n_experts) for _ in range(repeats)]
            row = {
                "method": get_method(method).label,
                "seconds": Times.of([r["seconds"] for r in runs]),
                "anonymous MB": max(r["anonymous"] for r in runs) / 1e6,
            }
            if peers:
                theirs = [
                    in_a_process("--mergekit", scratch, method, "--experts", str(n_experts))
                    for _ in range(repeats)
                ]
                row |= {
                    "mergekit, seconds": Times.of([r["seconds"] for r in theirs]),
                    "mergekit, anonymous MB": max(r["anonymous"] for r in theirs) / 1e6,
                }
                row["ratio"] = row["mergekit, seconds"].median / row["seconds"].median
            rows.append(row)
    return table(
        f"{n_experts} experts from disk to disk",
        rows,
        f"{repeats} run{'s' * (repeats > 1)} each; one model {size / 1e6:.0f} MB. mergekit's "
        f"Ties trims and elects otherwise (per tensor; see tests/peers), its work is the same.",
    )


def run(peers: bool, *, shapes: Shapes | None = None, n: int = 5, disk: bool = True) -> list[Table]:
    """The suite. With ``shapes`` in this process, which is for tests."""
    if shapes is None:
        results = {m: in_a_process("--one", m, "-n", str(n), *["--peers"] * peers) for m in OPTIONS}
    else:
        results = {m: measure(m, shapes, peers=peers, n=n) for m in OPTIONS}
    return [*memory_tables(results), *([disk_table(peers=peers)] if disk else [])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="One measurement in this process, as JSON (see python -m benchmarks --suite "
        "merge)."
    )
    parser.add_argument("--one", metavar="METHOD", choices=OPTIONS)
    parser.add_argument("--mergekit", nargs=2, metavar=("FOLDER", "METHOD"))
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--experts", type=int, default=EXPERTS)
    parser.add_argument("-n", type=int, default=5)
    args = parser.parse_args()
    if args.one:
        made = measure(args.one, bert_shapes(), peers=args.peers, n=args.n, n_experts=args.experts)
    else:
        folder, method = args.mergekit
        with watched() as highest:
            made = {"seconds": mergekit_merge(Path(folder), method, args.experts)}
        made["anonymous"] = highest[0]
    print("\n" + json.dumps(made))


if __name__ == "__main__":
    main()
