"""A study's tasks: examples, bounds and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten

import pandas as pd
import torch
from pandas.io.formats.style import Styler
from torch import Tensor

from ..core.names import BASE, FINE_TUNED
from ..core.types import percent
from ..protocols.surgery import trainable_parameters
from ..study import Study
from .labels import labelled, task_label
from .scores import mean_and_std, show, wide


def task_table(study: Study) -> pd.DataFrame:
    """A row per task: classes, chance, sizes of its splits and of the pool of draws, source."""
    rows = [
        {
            "task": task_label(t.name),
            "classes": t.n_classes,
            "chance (%)": round(100 / t.n_classes, 1),
            "train": len(t.train),
            "validation": len(t.validation),
            "test": len(t.test),
            "pool": len(study.pool(t.name)),
            "source": t.source,
        }
        for t in study.tasks.values()
    ]
    return pd.DataFrame(rows)


def example_table(study: Study, row: int = 0, width: int = 220) -> Styler:
    """One test input per task with its label, cut to ``width`` characters."""
    rows = []
    for t in study.tasks.values():
        text = shorten(t.test.inputs[row], width, placeholder=" …")
        rows.append((task_label(t.name), t.label_names[t.test.labels[row]], text))
    return show(pd.DataFrame(rows, columns=["task", "label", "text"]))


def contact_sheet(study: Study, classes: int = 5) -> dict[str, tuple[list[str], Tensor]]:
    """Some test images for ``figures.plot_contact_sheet``.

    Args:
        study: A study of image tasks.
        classes: Classes shown per task, spread over all of them.

    Returns:
        Per task the names of its classes and uint8 images ``[classes, each, 3, H, W]``, eight of
            each class or all that the smallest has.
    """
    sheets = {}
    for task in study.tasks.values():
        steps = torch.linspace(0, task.n_classes - 1, min(classes, task.n_classes))
        chosen = steps.round().int().unique().tolist()
        rows = [(task.test.labels == c).nonzero().flatten()[:8] for c in chosen]
        fewest = min(map(len, rows))
        images = task.test.inputs[torch.stack([r[:fewest] for r in rows])]
        sheets[task.name] = ([task.label_names[c] for c in chosen], images)
    return sheets


def chance_level(study: Study) -> float:
    """Mean over tasks of 1/C, in percent."""
    return 100 * sum(1 / t.n_classes for t in study.tasks.values()) / len(study.tasks)


def bounds_table(study: Study) -> pd.DataFrame:
    """A row per task: classes, chance, f_b and f_t under Current Eval in percent, and f_b / f_t.

    The heads of a CLIP are the embeddings of class names, so its f_b is the zero-shot accuracy.
    """
    rows = []
    for task in study.tasks.values():
        f_b, f_t = (percent(study.correct(e, task.name, "current")[0]) for e in (BASE, FINE_TUNED))
        rows.append((task_label(task.name), task.n_classes, 100 / task.n_classes, f_b, f_t))
    names = ["task", "classes", "chance", "f_b", "f_t"]
    means = pd.DataFrame(rows, columns=names)[["chance", "f_b", "f_t"]].mean()
    frame = pd.DataFrame([*rows, ("Average", "", *means)], columns=names)
    return frame.assign(**{"f_b / f_t": frame.f_b / frame.f_t})


def against_base(study: Study) -> pd.DataFrame:
    """Current Eval of f_b and of every merge: a row per encoder, a column per task, their average,
    and the number of tasks on which a merge beats f_b."""
    scores = study.scores([BASE, *study.methods], ["current"])
    by_task = scores.pivot(index="method", columns="task", values="accuracy")
    better = (by_task > by_task.loc[BASE]).sum(axis=1)
    counts = ["", *(f"{better[m]} of {len(study.tasks)}" for m in study.methods)]
    return wide(mean_and_std(scores), "method").assign(**{"better than f_b": counts})


def size_table(studies: Mapping[str, Study]) -> pd.DataFrame:
    """A row per study: base model, d, its weights (each tensor once), the vocabulary's share."""
    rows = []
    for panel, study in studies.items():
        count = sum(t.numel() for t in study.base_state.values())
        words = study.encoder.module().transformer.get_input_embeddings().weight.numel()
        share = 100 * words / count
        rows.append((panel, study.profile.backbone, study.encoder.width, count, share))
    return pd.DataFrame(rows, columns=["", "base model", "d", "weights", "in the vocabulary (%)"])


def trained_table(study: Study) -> pd.DataFrame:
    """Numbers trained and added, summed over the tasks, for FT-Classifier and Surgery."""
    d = study.encoder.width
    heads = sum(t.n_classes * (d + 1) for t in study.tasks.values())
    modules = len(study.tasks) * trainable_parameters(d)
    rows = [("ft_classifier", heads, 0), ("surgery", modules, modules)]
    return labelled(pd.DataFrame(rows, columns=["protocol", "trained", "added to the model"]))
