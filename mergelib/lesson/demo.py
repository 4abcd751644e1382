"""What the notebook ``ext04_your_models`` needs besides the library: small ordinary models to start
from, and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from .. import tables
from ..core.store import Artifact
from ..core.types import state_digest
from ..figures import PROTOCOL_STYLE, plots
from ..figures.style import WIDTHS
from ..models.heads import evaluate
from ..models.merged import Merged
from ..models.parents import quiet
from ..protocols import uniform_order
from ..study import Study
from ..study.experts import training_key
from ..training.loop import seeded, train

EXPERT, OLD, NEW = "expert", "merged, old head", "merged, re-aligned head"


def save_base(study: Study, folder: Path) -> Path:
    """The study's f_b as an ordinary transformers folder, with its tokenizer and without a
    pooler."""
    with quiet():
        study.encoder.module(study.base_state).transformer.save_pretrained(folder)
        study.encoder.tokenizer.save_pretrained(folder)
    return folder


def fine_tune_classifier(study: Study, task: str, base: Path, folder: Path) -> Path:
    """``AutoModelForSequenceClassification`` fine-tuned from ``base`` on a task's training split
    with the profile's settings, saved in ``folder`` in the usual way.

    The study's store keeps its weights, for the next run.
    """
    rows, names = study.task(task).train, study.task(task).label_names
    config = study.profile.train_config(study.profile.fine_tuning, study.device)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    tokenizer.save_pretrained(folder)  # as it is: its first use sets truncation and padding

    def collate(rows: list) -> dict:
        texts, labels = zip(*rows, strict=True)
        length = study.encoder.max_length
        batch = tokenizer(
            list(texts), truncation=True, max_length=length, padding=True, return_tensors="pt"
        )
        return {**batch, "labels": torch.tensor(labels)}

    with seeded(config.seed), quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            id2label=dict(enumerate(names)),
            label2id={n: i for i, n in enumerate(names)},
            problem_type="single_label_classification",  # else the first training step sets it
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )

        def make() -> Artifact:
            train(
                model.train(),
                list(zip(rows.inputs, rows.labels.tolist(), strict=True)),
                collate,
                config,
                device=study.device,
                scratch=folder.with_name(folder.name + "-scratch"),
                desc=f"fine-tune {task}",
            )
            return Artifact(dict(model.to("cpu").state_dict()))

        key = training_key(study, "classifier", study.profile.fine_tuning) | {
            "start": state_digest(model.state_dict()),
            "encoder": study.encoder.digest,
            "train_rows": rows.digest,
        }
        model.load_state_dict(study.store.get("classifier", key, make).tensors)
        model.eval().save_pretrained(folder)
    return folder


def unlabelled(study: Study, task: str, k: int) -> list[str]:
    """k * C texts from the task's pool, drawn without using the classes."""
    pool = study.pool(task)
    return list(pool.subset(uniform_order(len(pool), k * study.task(task).n_classes, 0)).inputs)


def before_after(
    study: Study, merged: Merged, aligned: Merged, experts: Mapping[str, Path]
) -> pd.DataFrame:
    """Test accuracy (percent) of expert, merged encoder with the old head, and with the re-aligned
    one: tidy rows."""
    device = study.device.type
    rows = [
        evaluate(model, study.task(task).test, task=task, method=method, device=device)
        for task, expert in experts.items()
        for method, model in ((EXPERT, expert), (OLD, merged), (NEW, aligned))
    ]
    return pd.concat(rows, ignore_index=True)


def plot_before_after(scores: pd.DataFrame) -> Figure:
    """A group of bars per task: old head, re-aligned head, and the expert as a line."""
    fig, ax = plt.subplots(figsize=(WIDTHS[2], 2.6))
    heads = {OLD: "current", NEW: "ft_classifier"}
    colours = {head: PROTOCOL_STYLE[protocol]["color"] for head, protocol in heads.items()}
    rows = tables.labelled(scores)
    plots.bars(ax, rows[rows.method != EXPERT], "task", "method", colours)
    tops = rows[rows.method == EXPERT].accuracy
    places = np.arange(len(tops))
    ax.hlines(tops, places - 0.42, places + 0.42, color="black", linestyle=":", label=EXPERT)
    ax.set_ylabel("accuracy (%)")
    mean = rows.groupby("method").accuracy.mean()
    title = f"Re-aligned heads lift the merge from {mean[OLD]:.0f} to {mean[NEW]:.0f} % on average"
    plots.head(fig, title, 2)
    return fig


def wide(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per task, a column per model."""
    table = tables.wide(scores, "task", "method", "accuracy")[[OLD, NEW, EXPERT]].round(1)
    return table.rename_axis(index=None, columns="accuracy (%)")


def alt(scores: pd.DataFrame) -> str:
    """Alt text of the figure, from the numbers themselves."""
    cells = scores.set_index(["task", "method"]).accuracy
    parts = [
        f"{tables.task_label(t)} {cells[t, OLD]:.1f} and {cells[t, NEW]:.1f} "
        f"(expert {cells[t, EXPERT]:.1f})"
        for t in scores.task.unique()
    ]
    title = "Accuracy in percent of the merged encoder with the old and with the re-aligned head"
    return f"{title}: {'; '.join(parts)}."


def checks(aligned: Merged, folder: Path, inputs: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Promises and results: the largest difference in logits between this process and the saved
    folders, and the space on disk."""
    largest = 0.0
    for task, texts in inputs.items():
        batch = aligned.processor(
            list(texts),
            padding=True,
            truncation=True,
            max_length=aligned.heads[task].config.max_position_embeddings,
            return_tensors="pt",
        )
        with torch.no_grad(), quiet():
            plain = AutoModelForSequenceClassification.from_pretrained(
                folder / "tasks" / task, use_safetensors=True, trust_remote_code=False
            ).eval()
            own = aligned.classifier(task).model.to("cpu")
            largest = max(largest, float((plain(**batch).logits - own(**batch).logits).abs().max()))
    heads = sum((folder / "heads" / t / "head.safetensors").stat().st_size for t in aligned.heads)
    shared = (folder / "model.safetensors").stat().st_size
    alone = sum((folder / "tasks" / t / "model.safetensors").stat().st_size for t in aligned.heads)
    same = "plain transformers predicts the same: logits differ by less than"
    smaller = "shared folder over single folders, bytes of weights"
    promises = [(same, 1e-5, largest), (smaller, 1.0, (heads + shared) / alone)]
    frame = pd.DataFrame(promises, columns=["promised", "at most", "here"])
    return frame.assign(holds=frame.here < frame["at most"])


def provenance(study: Study, merged: Merged, k: int) -> Styler:
    """The settings behind the notebook's numbers."""
    p = study.profile
    rows = {
        "profile": p.name,
        "base model": p.backbone,
        "method": merged.record["label"],
        "options": merged.record["options"],
        "parts": merged.record["parts"],
        "re-aligned with": f"{k} unlabelled texts per class, one draw",
        "device": study.device.type,
        "training": f"{p.fine_tuning.steps} steps of {p.fine_tuning.batch_size}, "
        f"{p.threads} threads",
        "versions": tables.versions(),
    }
    return tables.show(pd.DataFrame({"what": rows.keys(), "value": rows.values()}))
