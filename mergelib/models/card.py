"""The model card: parents, method, options, alignment, samples, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from huggingface_hub import ModelCardData

from ..merging import METHODS, PER_TASK
from ..protocols import PROTOCOLS
from .kinds import score_table


def write_card(
    folder: Path,
    record: Mapping[str, Any],
    labels: Mapping[str, Sequence[str]],
    is_image: bool,
    scores: pd.DataFrame | None,
    task: str = "",
) -> None:
    """``README.md`` of a folder with one encoder and T heads or, of a ``task``, of its ordinary
    single-task folder.

    Args:
        folder: where the card is written.
        record: what the folder's record says.
        labels: task -> its classes.
        is_image: whether inputs are images.
        scores: rows of ``evaluate``.
        task: the only one.
    """
    experts = record.get("experts", {})
    # Only a hub id is useful to others here; a folder's name appears in the text.
    parents = {p.partition("@")[0] for p in (record.get("base"), *experts.values()) if p}
    parents = sorted(p for p in parents if "/" in p)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification" if is_image else "text-classification",
        tags=["merge", "mergelib"],
        base_model=parents or None,
        base_model_relation="merge" if parents else None,
    )

    def label(name: str) -> str:
        return PROTOCOLS[name].label if name in PROTOCOLS else name

    if scored := scores is not None and not scores.empty:
        scores = scores.assign(protocol=scores.protocol.map(label))
    room = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent))
    room.trim_blocks = room.keep_trailing_newline = True
    text = room.get_template("card.md.jinja").render(
        data=data,
        record=record,
        formula=METHODS[record["method"]].about if record.get("method") in METHODS else "",
        experts=experts,
        labels=labels,
        task=task,
        first=repr(next(iter(labels))),
        scores=score_table(scores) if scored else None,
        label=label,
        per_task=PER_TASK,
    )
    (folder / "README.md").write_text(text)
