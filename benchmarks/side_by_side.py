"""``python -m benchmarks.side_by_side FOLDER``: the core of the suites ``merge``, ``features`` and
``protocols`` here and in FOLDER, a checkout of another commit, in turn.

A process per checkout; they take turns, call by call, so that what else the machine does meets
both, and pairs of neighbouring calls are compared. The encoder of the features has random weights
and BERT's shape of ``mini``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.frame import machine, table

WORDS = [f"w{i}" for i in range(400)]


def write_model(folder: Path) -> None:
    """A random BERT with a tokenizer of plain words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*marks, *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    size = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(WORDS) + 5, intermediate_size=512, **size)
    BertModel(config).save_pretrained(folder)


def operations(model: str) -> dict[str, Callable[[], Any]]:
    """By name; the checkout that comes first in ``sys.path`` is used."""
    import torch

    from benchmarks.suite_merge import OPTIONS, bert_shapes, random_states
    from benchmarks.suite_protocols import PRESETS, evidence
    from mergelib.encoders import load_base
    from mergelib.merging import get_method
    from mergelib.protocols import fit_heads, get_protocol
    from mergelib.protocols.alignment import fit_l1
    from mergelib.protocols.surgery import surgery

    try:
        from mergelib.encoders.features import extract
    except ImportError:  # before the rooms
        from mergelib.features import extract
    torch.set_num_threads(1)
    base, experts = random_states(bert_shapes(layers=2), 5)
    calls = {n: partial(get_method(n), base, experts, **o) for n, o in OPTIONS.items()}
    encoder, state = load_base(model, 48)
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 60, (1200,), generator=draw).tolist()
    texts = [" ".join(WORDS[i] for i in torch.randint(400, (n,), generator=draw)) for n in lengths]
    calls["features"] = partial(extract, encoder, encoder.module(state), texts, batch_size=64)
    seen = evidence(10, 384, PRESETS["default"])
    calls |= {
        "ft_classifier": partial(fit_heads, seen),
        "knn": partial(get_protocol("knn").function, seen),
        "orthogonal_classifier": partial(get_protocol("orthogonal_classifier").function, seen),
    }
    x, y = seen.student_fit[None].repeat(3, 1, 1), seen.teacher_fit[None].repeat(3, 1, 1)
    rungs = ("affine", "orthogonal")
    calls |= {f"ladder, {r}": partial(fit_l1, x, y, r, seed=[0, 1, 2], steps=60) for r in rungs}
    rows = seen.rows(5)
    few = seen.student_fit[rows], seen.teacher_fit[rows]
    return calls | {"surgery": partial(surgery, *few, steps=200)}


def serve(model: str) -> None:
    """Time the operations whose names come in, a line each."""
    calls = operations(model)
    print(json.dumps(list(calls)), flush=True)
    for name in sys.stdin:
        start = time.perf_counter()
        calls[name.strip()]()
        print(time.perf_counter() - start, flush=True)


def worker(tree: Path, model: str) -> subprocess.Popen:
    """A process that uses the checkout ``tree``."""
    command = [sys.executable, __file__, str(tree), "--serve", model]
    pipes = {n: subprocess.PIPE for n in ("stdin", "stdout")} | {"stderr": subprocess.DEVNULL}
    env = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.Popen(command, env=env, cwd=tree, text=True, **pipes)


def seconds(process: subprocess.Popen, name: str) -> float:
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    lines = []
    with tempfile.TemporaryDirectory() as model:
        write_model(Path(model))
        trees = Path(__file__).resolve().parents[1], args.folder.resolve()
        workers = [worker(tree, model) for tree in trees]
        names, _ = [json.loads(w.stdout.readline()) for w in workers]
        for name in names:
            took: list[list[float]] = [[], []]
            for i in range(args.repeats + 1):
                for which in (0, 1) if i % 2 else (1, 0):
                    took[which].append(seconds(workers[which], name))
            ours, theirs = (t[1:] for t in took)  # without the first
            ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
            line = {"operation": name, "there s": median(theirs), "here s": median(ours)}
            line |= {"here / there": median(ratios), "middle half": middle_half(ratios)}
            lines.append(line)
        for w in workers:
            w.terminate()
    note = f"Medians of {args.repeats} pairs; one thread."
    print(machine(), table("Here and there", lines, note), sep="\n\n")


def middle_half(ratios: list[float]) -> str:
    return "–".join(f"{q:.2f}" for q in quantiles(ratios)[::2])


if __name__ == "__main__":
    main()
