"""``python -m benchmarks.merge_disk [--experts 5] [--repeats 3]``: merging from disk to disk.

Random models of BERT-base's shape are written to a temporary folder; each merge then runs in a
process of its own, from folders to a saved folder, and its wall time and peak memory (anonymous
pages and the largest resident set, mapped files included) are printed, beside the size of one model
and a process that only imports what a merge imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.frame import memory, watched

METHODS = {
    "import only": {},
    "weight_averaging": {},
    "task_arithmetic": {"lam": 0.3},
    "ties": {"lam": 1.0, "keep": 0.2},
}


def write_models(folder: Path, n: int) -> int:
    """A base and n experts; returns the bytes of one."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    config = BertConfig(num_labels=4)
    base = BertModel(config)
    base.save_pretrained(folder / "base")
    model = BertForSequenceClassification(config)
    model.bert.load_state_dict(base.state_dict())
    model.save_pretrained(
        folder / "base_classifier"
    )  # mergekit wants the base in the experts' class
    for i in range(n):
        state = {k: v + 0.01 * torch.randn_like(v) for k, v in base.state_dict().items()}
        model.bert.load_state_dict(state)
        model.save_pretrained(folder / f"expert{i}")
    small = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    tiny = BertConfig(num_labels=4, vocab_size=20, intermediate_size=8, **small)
    for i in range(2):
        BertForSequenceClassification(tiny).save_pretrained(folder / f"tiny{i}")
    return (folder / "expert0" / "model.safetensors").stat().st_size


def one(folder: Path, method: str, n: int) -> None:
    """In a process of its own: merge, save, print seconds and peaks as JSON."""
    import mergelib

    # Imports count neither as time nor as the merge's memory; the first merge brings them in.
    first = mergelib.merge("weight_averaging", experts=[folder / f"tiny{i}" for i in range(2)])
    first.save_pretrained(folder / "out")
    shutil.rmtree(folder / "out")
    with watched() as highest:
        start = time.perf_counter()
        if method != "import only":
            merged = mergelib.merge(
                method,
                base=None if method == "weight_averaging" else folder / "base",
                experts=[folder / f"expert{i}" for i in range(n)],
                **METHODS[method],
            )
            merged.save_pretrained(folder / "out")
            shutil.rmtree(folder / "out")
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "anonymous": highest[0], "resident": memory("VmHWM")}))


def in_a_process(folder: str, method: str, n: int) -> dict[str, float]:
    """Seconds and peaks (bytes, anonymous and resident) of one merge."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.merge_disk",
            "--experts",
            str(n),
            "--one",
            folder,
            method,
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "METHOD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(Path(args.one[0]), args.one[1], args.experts)
    with tempfile.TemporaryDirectory(prefix="mergelib-disk-") as scratch:
        size = write_models(Path(scratch), args.experts)
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; one "
            f"model {size / 1e6:.0f} MB, "
            f"{args.experts} experts and a base; median of {args.repeats} (lowest, highest)"
        )
        print(f"{'':<18} {'seconds':>20} {'anonymous MB':>14} {'resident MB':>13}")
        for method in METHODS:
            runs = [in_a_process(scratch, method, args.experts) for _ in range(args.repeats)]
            seconds = sorted(r["seconds"] for r in runs)
            print(
                f"{method:<18} "
                f"{f'{statistics.median(seconds):.1f} ({seconds[0]:.1f}, {seconds[-1]:.1f})':>20} "
                f"{max(r['anonymous'] for r in runs) / 1e6:>14.0f} "
                f"{max(r['resident'] for r in runs) / 1e6:>13.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
