"""The smallest study, notebook and models that several tests need."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import nbformat
import torch
from near import seeded

from mergelib.core.types import Split

TINY = {
    "tasks.names": ["ag", "yelp"],
    "tasks.n_train": 160,
    "tasks.n_validation": 40,
    "tasks.n_test": 60,
    "tasks.pool_per_class": 12,
    "resamples": 200,
    "threads": 1,
    "fine_tuning.steps": 12,
    "encoder.pretraining": {"documents": 120, "steps": 4, "batch_size": 16, "lr": 2.0e-3},
}


def with_test(tasks, change):
    """The same tasks with another test split."""
    return {n: replace(t, test=change(t.test)) for n, t in tasks.items()}


def relabelled(split):
    """The same inputs under each other's labels."""
    order = torch.randperm(len(split), generator=seeded(5))
    return Split(split.inputs, split.labels[order])


def python(*arguments, **more):
    """What a Python of its own says, which must succeed."""
    command, more = [sys.executable, *map(str, arguments)], {"timeout": 300} | more
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def write_notebook(path, *cells, parameters='profile: str = "mini"  # which'):
    """A cell of parameters for papermill, then ``cells``."""
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "x", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[first, *map(nbformat.v4.new_code_cell, cells)], metadata={"kernelspec": kernel}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def write_berts(folder, tasks):
    """An untrained ``base`` and a classifier per task (name: its classes), as transformers saves
    them."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    from mergelib.foundations.bert import build_tokenizer

    tokenizer = build_tokenizer(["one two three four five six seven"] * 9)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "max_position_embeddings": 32,
    }
    for seed, (name, labels) in enumerate({"base": (), **tasks}.items()):
        torch.manual_seed(seed)
        if labels:
            size["id2label"] = dict(enumerate(labels))
            size["label2id"] = {label: i for i, label in enumerate(labels)}
        kind = BertForSequenceClassification if labels else BertModel
        kind(BertConfig(**size)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder
