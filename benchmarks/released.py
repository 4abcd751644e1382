"""``python -m benchmarks.released [--rows 64] [--device auto]``: the profile `paper` from end to
end, on a stand-in of what the authors published.

The stand-in has the layout of the published files: a BERT-base with random weights, five
checkpoints near it, whose classifiers are solved for on their training rows, and CSV files made by
the miniature world, some documents of one class to a row. It proves that everything runs, and what
it costs; its accuracies mean nothing. Printed are time and memory per stage, tokens per second of
the encoder, and in every precision that the
device computes natively: the share of the measured peak of a matrix product, and average accuracies
beside those in float32.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.frame import memory
from mergelib import Study, tables
from mergelib.core.store import Store
from mergelib.core.types import Head, Split
from mergelib.encoders import encoder_state, load_base, released_encoder
from mergelib.encoders.features import PRECISIONS, extract, pick_device
from mergelib.profiles import TASK_NAMES
from mergelib.protocols import current_eval
from mergelib.tasks import miniature
from mergelib.tasks.released import ENCODER, HEAD, released_splits
from mergelib.training.config import resolve_precision

BERT_BASE = {"layers": 12, "width": 768, "heads": 12, "positions": 512, "vocabulary": 30522}
VALIDATION = 20
MARGIN = 4  # training rows of a class beyond the k of a draw


def vocabulary(size: int, seed: int = 0) -> list[str]:
    """Word pieces of the miniature world with special pieces where BERT has them (0, 100 to 103),
    filled up to ``size``."""
    from mergelib.foundations.bert import corpus_pieces

    pieces = corpus_pieces(
        [text for task in TASK_NAMES for text, _ in miniature.generate(task, 400, seed=seed)]
    )
    special = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    filling = (f"[unused{i}]" for i in range(99, size))
    return [*special, *pieces, *(next(filling) for _ in range(size - len(special) - len(pieces)))]


def rows_of(task: str, n: int, seed: int) -> list[tuple[int, str]]:
    """n rows (0-based label, text), classes in turn; a text joins one to eight documents of its
    class."""
    rng, documents = random.Random(seed), {}
    for text, label in miniature.generate(task, 20 * len(miniature.TEXT_TASKS[task]), seed=seed):
        documents.setdefault(label, []).append(text)
    labels = [i % len(documents) for i in range(n)]
    rng.shuffle(labels)
    return [(y, " ".join(rng.choices(documents[y], k=rng.randint(1, 8)))) for y in labels]


def solve_head(features: Tensor, labels: Tensor, n_classes: int, ridge: float = 1e-3) -> Head:
    """The linear classifier of least squares against ten times one-hot labels: W ``[C, d]``, b
    ``[C]``, from ``features [N, d]``."""
    x, y = features.double(), 10 * torch.nn.functional.one_hot(labels, n_classes).double()
    mean = x.mean(0)
    x, gram = x - mean, (x - mean).T @ (x - mean)
    weight = torch.linalg.solve(
        gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype),
        x.T @ (y - y.mean(0)),
    ).T
    return Head(weight.float(), (y.mean(0) - weight @ mean).float())


def write_stand_in(
    folder: Path,
    *,
    rows: int,
    k: int = 5,
    tasks: Sequence[str] = TASK_NAMES,
    shape: dict[str, int] | None = None,
    max_length: int = 256,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> None:
    """``base/``, ``checkpoints/<task>.pth`` and ``<task>/{train,test}.csv`` with ``rows`` test rows
    each, as the authors publish them."""
    from transformers import BertConfig, BertModel

    from mergelib.foundations.bert import tokenizer_from_vocab

    shape = shape or BERT_BASE
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=4 * shape["width"],
        max_position_embeddings=shape["positions"],
    )
    base = BertModel(config)
    base.save_pretrained(folder / "base")
    tokenizer_from_vocab(vocabulary(shape["vocabulary"])).save_pretrained(folder / "base")
    encoder = released_encoder(load_base(str(folder / "base"), max_length)[0])
    (folder / "checkpoints").mkdir()
    for t, task in enumerate(tasks):
        (folder / task).mkdir()
        n_classes = len(miniature.TEXT_TASKS[task])
        for split, n in (("train", (k + MARGIN) * n_classes + VALIDATION), ("test", rows)):
            with (folder / task / f"{split}.csv").open("w", newline="", encoding="utf-8") as f:
                csv.writer(f).writerows(
                    [y + 1, "What is this?", text]
                    for y, text in rows_of(task, n, seed=seed + 2 * t + (split == "test"))
                )
        state = {
            n: v + (0.05 * v.std() + 1e-3) * torch.randn_like(v)
            for n, v in base.state_dict().items()
        }
        model = encoder.module({n: state[n] for n in encoder_state(encoder.module())})
        train: Split = released_splits(task, str(folder))[1]
        head = solve_head(
            extract(encoder, model, train.inputs, batch_size=32, device=device),
            train.labels,
            n_classes,
        )
        extra = {f"{ENCODER}embeddings.position_ids": torch.arange(shape["positions"])[None]}
        torch.save(
            {f"{ENCODER}{n}": v for n, v in state.items()}
            | extra
            | {f"{HEAD}weight": head.weight, f"{HEAD}bias": head.bias},
            folder / "checkpoints" / f"{task}.pth",
        )


def stand_in_overrides(
    folder: Path,
    *,
    rows: int,
    k: int = 5,
    tasks: Sequence[str] = TASK_NAMES,
    max_length: int = 256,
    batch_size: int = 32,
    precision: str = "float32",
) -> dict[str, Any]:
    """What turns the profile `paper` to the stand-in in ``folder``: places, sizes, one lambda and
    two draws."""
    return {
        "encoder.base": str(folder / "base"),
        "released_dir": str(folder),
        "encoder.max_length": max_length,
        "encoder.batch_size": batch_size,
        "encoder.precision": precision,
        "tasks.names": list(tasks),
        "tasks.n_test": rows,
        "tasks.n_validation": VALIDATION,
        "tasks.pool_per_class": k + MARGIN,
        "protocols.ks": sorted({1, k}),
        "protocols.seeds": [0, 1],
        "merging.lams": [0.7],
        "resamples": 100,
    }


# ---- what is measured ----------------------------------------------------------------------------


@contextmanager
def stage(name: str, device: torch.device) -> Iterator[dict[str, float]]:
    """Time and memory of a block, printed: on a GPU the most that was allocated in it, on a CPU the
    most that was resident so far."""
    gpu, cost = device.type == "cuda", {}
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    yield cost
    if gpu:
        torch.cuda.synchronize(device)
    cost["seconds"] = time.perf_counter() - start
    most = torch.cuda.max_memory_allocated(device) if gpu else memory("VmHWM")
    print(f"{name:<44}{cost['seconds']:9.1f} s {most / 1e9:7.2f} GB", flush=True)


def flops_of_token(config: Any, length: int) -> float:
    """Multiplications and additions of a BERT per token of an input of ``length``: 24 d^2 for
    matrices, 4 L d for attention, per layer."""
    d = config.hidden_size
    return config.num_hidden_layers * (
        8 * d * d + 4 * d * config.intermediate_size + 4 * length * d
    )


def matrix_peak(device: torch.device, precision: str, repeats: int = 5) -> float:
    """FLOP per second of a product of two square matrices, the best of ``repeats``."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (
        torch.randn(
            n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32
        )
        for _ in range(2)
    )
    best = float("inf")
    with arithmetic(precision, device):
        for _ in range(repeats + 1):  # the first warms up
            start = time.perf_counter()
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Matrix products in "float32", "TF32" (float32 storage) or "bf16" (autocast)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    try:
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def compare_precisions(study: Study, encoder: str, timed_rows: int = 2000) -> None:
    """A line per precision: tokens per second over ``timed_rows`` test rows of each task, share of
    the peak, and average accuracy over all test rows under Current Eval minus that of the features
    that the study has stored."""
    device, per_token = study.device, flops_of_token(study.encoder.config, study.encoder.max_length)
    stored = _average(study, encoder, {t: study.features(encoder, t) for t in study.tasks})
    names = [
        "float32",
        *(["TF32"] if device.type == "cuda" else []),
        *(["bf16", "bf16_weights"] if resolve_precision("auto", device) == "bf16" else []),
    ]
    for name in names:
        peak, tokens, seconds, z = matrix_peak(device, name.removesuffix("_weights")), 0, 0.0, {}
        # All rows where that is quick and the study's own features are of another precision.
        whole = name != "float32" or study.precision != "float32"
        for task in study.tasks.values():
            inputs = task.test.inputs if whole else task.test.inputs[:timed_rows]
            with arithmetic("TF32" if name == "TF32" else "float32", device):
                start = time.perf_counter()  # its results reach the CPU: nothing is left in a queue
                z[task.name] = extract(
                    study.encoder,
                    study.module(encoder, task.name),
                    inputs,
                    device=device,
                    batch_size=study.profile.encoder.batch_size,
                    precision=name if name in PRECISIONS else "float32",
                )
                seconds += time.perf_counter() - start
            tokens += len(inputs) * study.encoder.max_length
        apart = (
            f"; accuracy - that of the table ({study.precision}): "
            f"{_average(study, encoder, z) - stored:+.3f} points"
            if whole
            else ""
        )
        print(
            f"{name:<13}{tokens / seconds:12.0f} tokens/s {peak / 1e12:8.2f} TFLOP/s matrix "
            f"peak, share {tokens * per_token / seconds / peak:5.2f}{apart}",
            flush=True,
        )
    if "bf16" not in names:
        print("bf16: not measured, this device emulates it")


def _average(study: Study, encoder: str, features: dict[str, Tensor]) -> float:
    right = [
        (current_eval(z, study.head(encoder, t)) == study.tasks[t].test.labels).float().mean()
        for t, z in features.items()
    ]
    return 100 * float(sum(right)) / len(right)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=64, help="test rows a task; the published files have 7,600"
    )
    parser.add_argument("-k", type=int, default=5, help="shots per class")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tasks", nargs="+", default=list(TASK_NAMES))
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "bf16", "bf16_weights"],
        help="of the table's features",
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--layers", type=int, default=BERT_BASE["layers"], help="fewer for a machine without GPU"
    )
    args = parser.parse_args(argv)
    device, sizes = pick_device(args.device), {"rows": args.rows, "k": args.k, "tasks": args.tasks}
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(
        f"{where}, torch {torch.__version__}; features in {args.precision}, {len(args.tasks)} "
        f"tasks, {args.rows} test rows each, BERT of {args.layers} layers x {BERT_BASE['width']}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with stage("stand-in written", device):
            write_stand_in(
                folder, shape=BERT_BASE | {"layers": args.layers}, device=device, **sizes
            )
        overrides = stand_in_overrides(
            folder, batch_size=args.batch_size, precision=args.precision, **sizes
        )
        study, begin = (
            Study("paper", overrides=overrides, device=args.device, store=Store(folder / "store")),
            time.perf_counter(),
        )
        with stage("CSV files read", device):
            _ = study.tasks
        with stage("f_b loaded", device):
            _ = study.base_state
        with stage("checkpoints loaded, label order checked", device):
            study.experts()
        for method in study.methods:
            with stage(f"{study.label(method)}: lambda and merge", device):
                study.merged_state(method)
        for encoder in ("f_t", *study.methods):
            rows = 0
            with stage(f"features of {encoder}, test and pool", device) as cost:
                for task in study.tasks:
                    rows += sum(
                        len(study.features(encoder, task, split)) for split in ("test", "pool")
                    )
            print(
                f"{'':<44}{rows * study.encoder.max_length / cost['seconds']:9.0f} tokens/s with "
                f"tokenising and storing"
            )
        with stage("protocols", device):
            scores = (
                study.scores(["f_t"], ["current"]),
                study.scores(study.methods, ["current", "knn", "ft_classifier"]),
            )
        print(
            f"{'the table, from files to scores':<44}{time.perf_counter() - begin:9.1f} s",
            flush=True,
        )
        compare_precisions(study, "task_arithmetic")
        print(
            tables.wide(tables.mean_and_std(tables.at_k(tables.stack(scores), args.k))).to_string()
        )


if __name__ == "__main__":
    main()
