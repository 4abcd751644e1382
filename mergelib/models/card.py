"""The model card: parents, method, options, alignment, samples, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from huggingface_hub import ModelCardData

from ..merging import METHODS, PER_TASK
from ..protocols import PROTOCOLS
from .kinds import score_table

PAPER = "[arXiv 2412.13526](https://arxiv.org/abs/2412.13526)"
LICENCE = (
    "## Licence\n\nNot stated. Those of base, experts and data apply; choose one that they "
    "allow, and name it at the top of this file (`license:`).\n"
)
REALIGNED = f"The method of re-alignment is that of {PAPER}."


def _front(record: Mapping[str, Any], is_image: bool) -> str:
    # Only a hub id is useful to others here; a folder's name appears in the text.
    parents = [
        p for p in [record.get("base"), *record.get("experts", {}).values()] if p and "/" in p
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=_pipeline(is_image),
        tags=["merge", "mergelib"],
        base_model=sorted({p.partition("@")[0] for p in parents}) or None,
        base_model_relation="merge" if parents else None,
    )
    return f"---\n{data}\n---"


def _pipeline(is_image: bool) -> str:
    return "image-classification" if is_image else "text-classification"


def _how(record: Mapping[str, Any]) -> str:
    method = METHODS.get(record.get("method"))
    options = ", ".join(f"{k} = {v}" for k, v in record.get("options", {}).items()) or "defaults"
    rows = [
        ("method", f"{record.get('label', 'unknown')} ({options})"),
        ("formula", f"`{method.about}`" if method and method.about else ""),
        ("lambda", record.get("lam_curve", "")),
        ("base", record.get("base") or "none"),
        *(("expert", f"{task}: {source}") for task, source in record.get("experts", {}).items()),
        ("parts", record.get("parts", "")),
        ("weights", f"merged in float32, saved in {record.get('dtype', 'float32')}"),
        ("made with", f"mergelib {record.get('mergelib', '')}"),
    ]
    return "\n".join(["| what | value |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows if b)])


def _protocol(name: str) -> str:
    return PROTOCOLS[name].label if name in PROTOCOLS else name


def alignment_text(alignment: Mapping[str, Any]) -> str:
    """One sentence on where a head comes from."""
    if not alignment:
        return "the expert's own head, not re-aligned"
    label = _protocol(alignment["protocol"])
    cut = alignment.get("max_length")
    return (
        f"re-aligned by {label} (preset {alignment['preset']}) with {alignment['n']} unlabelled "
        f"inputs, {alignment['n'] / alignment['classes']:.3g} per class"
        + (f", of at most {cut} tokens" if isinstance(cut, int) else "")
    )


def _scores(scores: pd.DataFrame | None) -> str:
    if scores is None or scores.empty:
        return "## Scores\n\nNot evaluated when this folder was written."
    heading, rows = score_table(scores)
    rows = [[*row[:2], _protocol(row[2]), *row[3:]] for row in rows]
    table = [heading, ["---"] * len(heading), *rows]
    return "\n".join(["## Scores", "", *(f"| {' | '.join(row)} |" for row in table)])


def single(
    record: Mapping[str, Any],
    task: str,
    labels: Sequence[str],
    is_image: bool,
    scores: pd.DataFrame | None,
) -> str:
    """Card of an ordinary single-task folder."""
    cut = "" if is_image else ", truncation=True"  # the tokenizer says after how many tokens
    return "\n\n".join(
        [
            _front(record, is_image),
            f"# {task}: merged encoder with its head",
            f"One encoder merged from {len(record.get('experts', {}))} fine-tuned models, with the "
            f"head of the task *{task}*, {alignment_text(record['heads'][task])}. {REALIGNED}",
            _how(record),
            f"Labels: {', '.join(map(str, labels))}.",
            _scores(scores),
            "## Use",
            "```python\nfrom transformers import pipeline",
            f'pipeline("{_pipeline(is_image)}", "THIS FOLDER"{cut})\n```',
            LICENCE,
        ]
    )


def several(
    record: Mapping[str, Any],
    labels: Mapping[str, Sequence[str]],
    is_image: bool,
    scores: pd.DataFrame | None,
) -> str:
    """Card of a folder with one encoder and T heads."""
    own = record.get("gives") == PER_TASK
    heads = [
        f"| {t} | {len(names)} | {alignment_text(record['heads'][t])} |"
        for t, names in labels.items()
    ]
    return "\n\n".join(
        [
            _front(record, is_image),
            f"# {'An encoder per task' if own else 'One encoder'}, {len(labels)} tasks",
            f"{'Each task has its own' if own else 'All tasks share one'} merged encoder; `heads/` "
            f"holds what belongs to each task. {REALIGNED}",
            _how(record),
            "\n".join(["| task | classes | head |", "|---|---|---|", *heads]),
            _scores(scores),
            "## Use",
            "Needs torch, transformers and safetensors only:",
            "```python\nfrom load_merged import load, tasks  # the file in this folder",
            f"model = load({next(iter(labels))!r})\n```",
            "`python load_merged.py TASK OUT` writes an ordinary single-task folder. "
            "With mergelib, `python -m mergelib predict --model THIS_FOLDER "
            "--inputs FILE` lets all heads answer.",
            LICENCE,
        ]
    )
