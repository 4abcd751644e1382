"""``python -m benchmarks.your_models --text-dir DIR --base MODEL --out FOLDER``: the tool on real
text, as a user runs it.

Fine-tunes ``AutoModelForSequenceClassification`` on each task (kept under FOLDER/experts, so that a
second run goes on from there), then calls the command line: merge, align with k unlabelled training
texts per class, evaluate. What it prints is what `python -m mergelib` printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from mergelib.encoders.features import pick_device
from mergelib.run import cli
from mergelib.tasks.local import find_csv, local_splits
from mergelib.training.config import TrainConfig
from mergelib.training.loop import train

METHODS = {
    "weight_averaging": [],
    "task_arithmetic": ["--options", "lam=0.5"],
    "ties": ["--options", "lam=1.0", "keep=0.2", "combine=mean"],
}  # not tuned on anything


def fine_tune(
    base: str, text_dir: str, task: str, out: Path, config: TrainConfig, max_length: int
) -> None:
    """An ordinary fine-tuned classifier of ``transformers`` in ``out``."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names, rows, _ = local_splits(text_dir, task)
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(config.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        use_safetensors=True,
        dtype=torch.float32,
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
    )
    model.train()

    def collate(batch: list) -> dict:
        texts, labels = zip(*batch, strict=True)
        return {
            **tokenizer(
                list(texts),
                truncation=True,
                max_length=max_length,
                padding=True,
                return_tensors="pt",
            ),
            "labels": torch.tensor(labels),
        }

    start = time.monotonic()
    info = train(
        model,
        list(zip(rows.inputs, rows.labels.tolist(), strict=True)),
        collate,
        config,
        device=pick_device(),
        scratch=out.with_name(out.name + "-scratch"),
        desc=f"fine-tune {task}",
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"fine-tuned {task}: {info}, {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text-dir", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tasks", nargs="+", default=["ag", "dbpedia"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--limit", type=int, default=1000, help="scored test rows per task")
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    config = TrainConfig(
        steps=args.steps, batch_size=args.batch_size, lr=2e-4, threads=torch.get_num_threads()
    )
    experts = {task: args.out / "experts" / task for task in args.tasks}
    for task, folder in experts.items():
        if not (folder / "tokenizer.json").exists():
            fine_tune(args.base, args.text_dir, task, folder, config, max_length=64)
    if args.train_only:
        return
    files = {
        split: [f"{t}={find_csv(Path(args.text_dir).expanduser() / t, split)}" for t in args.tasks]
        for split in ("train", "test")
    }
    named = [f"{task}={folder}" for task, folder in experts.items()]
    length, limit = ["--max-length", "64"], ["--limit", str(args.limit)]
    for method, options in METHODS.items():
        merged, aligned = args.out / "merged" / method, args.out / "aligned" / method
        run(
            "merge",
            "--method",
            method,
            "--base",
            args.base,
            "--experts",
            *named,
            *options,
            "--out",
            str(merged),
            "--overwrite",
        )
        run(
            "align",
            "--merged",
            str(merged),
            "--experts",
            *named,
            "--inputs",
            *files["train"],
            "-k",
            str(args.k),
            "--data",
            *files["test"],
            *length,
            *limit,
            "--out",
            str(aligned),
            "--overwrite",
        )
        run(
            "evaluate",
            "--model",
            str(aligned),
            "--data",
            *files["test"],
            "--protocols",
            "current",
            *length,
            *limit,
        )


def run(*arguments: str) -> None:
    """One command line, with what it prints."""
    print(f"$ python -m mergelib {arguments[0]} ...", flush=True)
    if code := cli.main(arguments):
        raise SystemExit(code)
    print(flush=True)


if __name__ == "__main__":
    main()
