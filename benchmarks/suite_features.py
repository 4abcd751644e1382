"""``python -m benchmarks.suite_features --model DIR --text-dir DIR [--peers] [--accuracy]``:
features of real texts, beside others.

AG News, a third of the texts titles, a third descriptions, a third both, through a MiniLM (or any
BERT-like folder): ``extract``, a plain loop that pads batches as they come, and with ``--peers``
``SentenceTransformer.encode``, all at one batch size, in float32 and in bfloat16, tokenising
included. The share of the peak counts real tokens only, against a matrix product of the same type
measured in the same run. ``--accuracy`` fine-tunes an expert per task found in the folder for some
steps, merges them and scores every protocol on features of both types.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.frame import Table, interleaved, machine, matmul_rate, table, timed
from mergelib.core.errors import ConfigError
from mergelib.encoders import TextEncoder, load_base
from mergelib.encoders.features import extract
from mergelib.profiles import TASK_NAMES

LENGTH = 256  # all-MiniLM-L6-v2's own limit, which encode keeps to
SCORED = (
    "current",
    "knn",
    "ft_classifier",
    "orthogonal_classifier",
    "orthogonal_procrustes",
    "surgery",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="sentence-transformers/all-MiniLM-L6-v2",
        help="folder or hub id of the encoder",
    )
    parser.add_argument("--text-dir", default="", help="folder with <task>/{train,test}.csv[.gz]")
    parser.add_argument("--rows", type=int, default=1000, help="texts")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--accuracy",
        action="store_true",
        help="also score every protocol in both types (about five minutes more)",
    )


def mixed_texts(text_dir: str, n: int, task: str = "ag") -> list[str]:
    """n texts of a task in random order: titles, descriptions and both, in turn."""
    path = next(
        p for p in (Path(text_dir) / task / f"test.csv{end}" for end in (".gz", "")) if p.is_file()
    )
    with (gzip.open if path.suffix == ".gz" else open)(
        path, "rt", encoding="utf-8", newline=""
    ) as f:
        rows = list(csv.reader(f))
    random.Random(0).shuffle(rows)
    return [(title, text, f"{title} {text}")[i % 3] for i, (_, title, text) in enumerate(rows[:n])]


def flops(encoder: TextEncoder, lengths: Sequence[int]) -> float:
    """Multiplications and additions of a BERT over texts of these lengths in tokens: per token and
    layer 8 d^2 + 4 d f for matrices, 4 L d for attention."""
    d, f = encoder.width, encoder.config.intermediate_size
    return encoder.config.num_hidden_layers * float(
        sum(n * (8 * d * d + 4 * d * f + 4 * n * d) for n in lengths)
    )


@torch.inference_mode()
def padded_loop(
    encoder: TextEncoder, module: nn.Module, texts: Sequence[str], batch_size: int
) -> Tensor:
    """What one writes first: tokenise and pad each batch as it comes."""
    found = []
    for i in range(0, len(texts), batch_size):
        batch = encoder.tokenizer(
            list(texts[i : i + batch_size]),
            truncation=True,
            max_length=encoder.max_length,
            padding=True,
            return_tensors="pt",
        )
        found.append(module(batch["input_ids"], batch["attention_mask"]).float())
    return torch.cat(found)


def peer(
    model: str, dtype: torch.dtype, texts: Sequence[str], batch_size: int
) -> Callable[[], Tensor]:
    """``encode`` of sentence-transformers; its model normalises, so that only directions
    compare."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": dtype})
    loaded.max_seq_length = LENGTH
    return lambda: loaded.encode(
        list(texts), batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True
    ).float()


def apart(found: Tensor, reference: Tensor) -> tuple[float, float]:
    """Relative distance of features: over all rows, and of the worst row."""
    gap = found - reference
    return float(gap.norm() / reference.norm()), float(
        (gap.norm(dim=1) / reference.norm(dim=1)).max()
    )


def speed(
    model: str, text_dir: str, rows: int, batch_size: int, peers: bool, n: int = 3
) -> list[Table]:
    """Seconds of every way in both types, and how far apart features are."""
    encoder, state = load_base(model, LENGTH)
    texts = mixed_texts(text_dir, rows)
    lengths = [len(r) for r in encoder.prepare(texts)]
    work, lines, reference = flops(encoder, lengths), [], None
    tokenising = timed(lambda: encoder.prepare(texts), n=3).median
    module = encoder.module(state)
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        typed = copy.deepcopy(module).to(dtype)
        ways = {
            "extract": lambda p=name: extract(
                encoder, module, texts, batch_size=batch_size, precision=p
            ),
            "padded loop": lambda m=typed: padded_loop(encoder, m, texts, batch_size),
        }
        if dtype is torch.bfloat16:
            ways["extract, bf16_weights"] = lambda: extract(
                encoder, module, texts, batch_size=batch_size, precision="bf16_weights"
            )
        if peers:
            ways["sentence-transformers"] = peer(model, dtype, texts, batch_size)
        made: dict[str, Tensor] = {}
        times = interleaved(
            {
                way: lambda w=way, c=call, made=made: made.update({w: c()})
                for way, call in ways.items()
            },
            n=n,
        )
        peak = matmul_rate("cpu", dtype)
        reference = made["extract"] if reference is None else reference
        for way, took in times.items():
            z = made[way]
            # encode's rows have length 1; as long as ours they compare as they are
            z = (
                z
                if way != "sentence-transformers"
                else z * reference.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True)
            )
            over_all, worst = apart(z, reference)
            lines.append(
                {
                    "type": name,
                    "way": way,
                    "seconds": str(took),
                    "tokens/s": sum(lengths) / took.median,
                    "times extract": took.median / times["extract"].median,
                    "GFLOP/s": work / took.median / 1e9,
                    "peak GFLOP/s": peak / 1e9,
                    "share of peak": work / took.median / peak,
                    "apart from float32": f"{over_all:.1e}",
                    "worst row": f"{worst:.1e}",
                }
            )
    waste = padding(lengths, [len(t) for t in texts], batch_size)
    title = (
        f"Features of {len(texts)} texts, {sum(lengths)} tokens ({min(lengths)} to {max(lengths)} "
        f"a text), batches of {batch_size}"
    )
    return [
        table(
            title,
            lines,
            f"n = {n}. Tokenising alone, all texts at once: {tokenising:.2f} s, part of every "
            f"time.",
        ),
        table("Positions computed per real token, by the order that batches are cut from", waste),
    ]


def padding(
    tokens: Sequence[int], characters: Sequence[int], batch_size: int
) -> list[dict[str, Any]]:
    """What padding costs: as the texts come, longest first in characters as ``encode`` sorts, by
    tokens as ``extract`` does."""
    by = {
        "as they come": range(len(tokens)),
        "by characters": sorted(range(len(tokens)), key=lambda i: -characters[i]),
        "by tokens": sorted(range(len(tokens)), key=lambda i: tokens[i]),
    }
    rows = []
    for name, order in by.items():
        batches = [
            [tokens[i] for i in order[s : s + batch_size]]
            for s in range(0, len(tokens), batch_size)
        ]
        rows.append(
            {
                "order": name,
                "positions per token": sum(len(b) * max(b) for b in batches) / sum(tokens),
            }
        )
    return rows


def accuracies(
    model: str,
    text_dir: str,
    batch_size: int,
    *,
    steps: int = 40,
    n_test: int = 400,
    ks: Sequence[int] = (1, 5),
    seeds: Sequence[int] = (0, 1, 2),
    tasks: Sequence[str] = TASK_NAMES,
) -> Table:
    """Average accuracy over tasks of every protocol, f_m by Task Arithmetic, on features of both
    types; experts, lambda and draws are the same."""
    from mergelib import Study
    from mergelib.core.store import Store
    from mergelib.protocols import PROTOCOLS
    from mergelib.tables import encoder_label, protocol_label

    few_shot = [name for name in SCORED if PROTOCOLS[name].few_shot]
    overrides = {
        "tasks.names": list(tasks),
        "tasks.n_test": n_test,
        "tasks.n_validation": 100,
        "tasks.n_train": 1500,
        "tasks.pool_per_class": 20,
        "fine_tuning.steps": steps,
        "fine_tuning.save_every": 0,
        "encoder.batch_size": batch_size,
        "merging.methods": ["task_arithmetic"],
        "merging.options": {"task_arithmetic": {"lam": 0.4}},
        "protocols.ks": list(ks),
        "protocols.seeds": list(seeds),
    }
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("float32", "bf16"):
            study = Study(
                "real",
                text_dir=text_dir,
                base=model,
                overrides=overrides | {"encoder.precision": precision},
                device="cpu",
                store=Store(Path(scratch)),
            )
            scores = [study.scores(["f_t"], ["current"]), study.scores(study.methods, SCORED)]
            found[precision] = [
                frame.groupby(["method", "protocol", "k"], dropna=False, sort=False).accuracy.mean()
                for frame in scores
            ]
    rows = []
    for exact, near in zip(*found.values(), strict=True):
        rows += [
            {
                "encoder": encoder_label(method),
                "protocol": protocol_label(protocol),
                "k": int(k) if protocol in few_shot else "",
                "float32": f"{before:.2f}",
                "bf16": f"{after:.2f}",
                "difference": f"{after - before:+.2f}",
            }
            for ((method, protocol, k), before), after in zip(exact.items(), near, strict=True)
        ]
    said = (
        f"{len(tasks)} tasks, {steps} steps of fine-tuning each, {n_test} test texts a task, "
        f"{len(seeds)} seeds; one text of one task is {100 / n_test / len(tasks):.2f} points."
    )
    return table("Average accuracy (percent) on features of both types", rows, said)


def run(
    peers: bool = False,
    model: str = "sentence-transformers/all-MiniLM-L6-v2",
    text_dir: str = "",
    rows: int = 1000,
    batch_size: int = 32,
    accuracy: bool = False,
) -> list[Table]:
    if not text_dir:
        raise ConfigError(
            "The suite reads real texts: give --text-dir with <task>/{train,test}.csv[.gz]."
        )
    made = speed(model, text_dir, rows, batch_size, peers)
    return [*made, accuracies(model, text_dir, batch_size)] if accuracy else made


if __name__ == "__main__":  # with options, which `python -m benchmarks` has none of
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", action="store_true")
    add_options(parser)
    print(machine(), *run(**vars(parser.parse_args())), sep="\n\n")
