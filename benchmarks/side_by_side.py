"""``python -m benchmarks.side_by_side FOLDER``: the core of the suites ``merge``, ``features`` and
``protocols`` here and in FOLDER, a checkout of another commit, in turn.

Each repetition is a process of its own per checkout, in alternating order, and reports the quicker
of two calls. The encoder of the features has random weights and BERT's shape of ``mini``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
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


def seconds(model: str) -> dict[str, float]:
    """The quicker of two calls of each operation, after one that is not counted."""
    import time

    found = {}
    for name, call in operations(model).items():
        call()
        took = []
        for _ in range(2):
            start = time.perf_counter()
            call()
            took.append(time.perf_counter() - start)
        found[name] = min(took)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(seconds(args.one)))
        return
    here = Path(__file__).resolve().parents[1]
    runs: dict[Path, list[dict[str, float]]] = {here: [], args.folder.resolve(): []}
    with tempfile.TemporaryDirectory() as model:
        write_model(Path(model))
        for i in range(args.repeats):
            for tree in (list(runs), list(runs)[::-1])[i % 2]:
                command = [sys.executable, __file__, str(tree), "--one", model]
                env = os.environ | {"PYTHONPATH": str(tree)}
                done = subprocess.run(command, env=env, cwd=tree, check=True, capture_output=True)
                runs[tree].append(json.loads(done.stdout.splitlines()[-1]))
    new, old = runs.values()
    lines = []
    for name in new[0]:
        ours, theirs = median(r[name] for r in new), median(r[name] for r in old)
        ratios = sorted(a[name] / b[name] for a, b in zip(new, old, strict=True))
        spread = f"{ratios[0]:.2f}–{ratios[-1]:.2f}"
        lines.append({"operation": name, "there s": theirs, "here s": ours})
        lines[-1] |= {"here / there": ours / theirs, "spread": spread}
    print(machine(), table("Here and there", lines, f"n = {args.repeats}; one thread."), sep="\n\n")


if __name__ == "__main__":
    main()
